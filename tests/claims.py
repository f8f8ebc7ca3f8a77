"""A claim: a sentence that stands in a notebook or page, and the check that it is true."""

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import manage
import parameters
import records

ROOT = Path(__file__).resolve().parent.parent


def prose(name: str) -> str:
    """The Markdown of a notebook (its name without suffix) or page, on one line."""
    if name.endswith(".md"):
        return " ".join((ROOT / name).read_text(encoding="utf-8").split())
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    return " ".join(" ".join(texts).split())


def says(name: str, *sentences: str) -> None:
    """Fail unless each sentence stands in ``name``, word for word."""
    text = prose(name)
    for sentence in sentences:
        assert " ".join(sentence.split()) in text, f"{name} no longer says: {sentence}"


def claim(name: str, *sentences: str) -> Callable[[Callable], Callable]:
    """The decorated test also fails unless each sentence stands in ``name``, word for word."""

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def check(*args: object, **kwargs: object) -> None:
            says(name, *sentences)
            test(*args, **kwargs)

        return check

    return decorate


def seeds(name: str, study: str = "seeds") -> list[dict]:
    """The records of one name in a study."""
    return records.load_records(study, name)


def run_cells(name: str, *ids: str, **scope: object) -> dict:
    """The names that a notebook's parameters, its imports and then these cells make.

    ``scope`` replaces parameters before the imports run.
    """
    cells = manage.code_cells(name)
    names = {"__name__": "__main__", "display": lambda *_: None, "parameters": parameters}
    exec(cells["parameters"]["source"], names)
    names |= scope
    with contextlib.redirect_stdout(io.StringIO()):
        for key in ("imports", *ids):
            exec(cells[key]["source"], names)
    return names


def run(name: str, *ids: str, **scope: object) -> SimpleNamespace:
    """The same, as attributes."""
    return SimpleNamespace(**run_cells(name, *ids, **scope))


def shown(name: str, cell: str) -> dict[str, list[float]]:
    """The numbers that end each row of what an executed cell prints and shows, by the row's label.

    Without a label the first number is it; rows with one label are joined.
    """
    outputs = manage.code_cells(name)[cell]["outputs"]
    texts = ["".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs]
    rows: dict[str, list[float]] = {}
    for line in "\n".join(texts).splitlines():
        found = re.fullmatch(r"(.*?)((?:(?:^|\s+)(?:-?[\d.]+|NaN|diverged))+)\s*", line)
        if found:
            label, numbers = found[1].strip(), found[2].replace("diverged", "nan").split()
            label = label or numbers.pop(0)
            rows.setdefault(label, []).extend(map(float, numbers))
    return rows
