"""A claim: a sentence that stands in a notebook or page, and the check that it is true."""

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import manage
import parameters

ROOT = Path(__file__).resolve().parent.parent


def prose(name: str) -> str:
    """The Markdown of a notebook (its name without suffix) or page, on one line."""
    if name.endswith(".md"):
        return " ".join((ROOT / name).read_text(encoding="utf-8").split())
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    return " ".join(" ".join(texts).split())


def claim(name: str, *sentences: str) -> Callable[[Callable], Callable]:
    """The decorated test also fails unless each sentence stands in ``name``, word for word."""

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def check(*args: object, **kwargs: object) -> None:
            text = prose(name)
            for sentence in sentences:
                assert " ".join(sentence.split()) in text, f"{name} no longer says: {sentence}"
            test(*args, **kwargs)

        return check

    return decorate


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
