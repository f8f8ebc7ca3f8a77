"""Run, publish and keep in order the notebooks of this folder.

python notebooks/manage.py run [NAME]        run one (default: step 6) and show its verdict
python notebooks/manage.py execute NAME ...  run in place from a clean kernel, to be committed
python notebooks/manage.py refresh           rewrite what records make: results, diffs, README
python notebooks/manage.py rename OWNER/REPO put a fork's name into badges and set-up cells
"""

import argparse
import difflib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import tokenize
import tomllib
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # no progress bars in stored outputs; the epoch rows stay

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
sys.path.insert(0, str(ROOT))
from files import write_atomically

STEPS = (
    "01_baseline",
    "02_batch_norm",
    "03_dropout",
    "04_gap_fc",
    "05_augmentation",
    "06_lr_schedule",
)


def names() -> list[str]:
    """All notebooks, solutions included, as paths without suffix from this folder."""
    paths = itertools.chain(NOTEBOOKS.glob("*.ipynb"), NOTEBOOKS.glob("solutions/*.ipynb"))
    return sorted(path.relative_to(NOTEBOOKS).with_suffix("").as_posix() for path in paths)


def read(name: str) -> dict:
    """A notebook as its JSON says; each cell's source is one string."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def write(name: str, notebook: dict) -> None:
    """Write a notebook in the form in which Jupyter does."""
    cells = [{**c, "source": c["source"].splitlines(keepends=True)} for c in notebook["cells"]]
    text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False, sort_keys=True)
    replace_text(NOTEBOOKS / f"{name}.ipynb", text + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text at once: whoever is stopped half-way leaves the old one, not half of the new."""
    write_atomically(path, text.encode())


def code_cells(name: str) -> dict[str, dict]:
    """The code cells of a notebook by their id, in order."""
    return {cell["id"]: cell for cell in read(name)["cells"] if cell["cell_type"] == "code"}


def printed(cell: dict) -> str:
    """What an executed cell printed."""
    texts = [o["text"] for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    return "".join("".join(text) for text in texts)


# --- Running --------------------------------------------------------------------------------------


def run(name: str, parameters: dict | None = None, output: Path | None = None) -> Path:
    """Execute a copy of a notebook, what it prints shown as it comes; return the copy's path.

    Raises:
        nbclient.exceptions.CellExecutionError: with the notebook's traceback, if a cell fails.
    """
    import nbformat

    os.environ.pop("MPLBACKEND", None)  # "agg" draws nothing: the copy is to have its figures
    output = output or NOTEBOOKS / "run" / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    place = next(i for i, found in enumerate(tags) if "parameters" in found)
    values = "\n".join(f"{key} = {value!r}" for key, value in (parameters or {}).items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(values))
    _run_cells(notebook, (NOTEBOOKS / name).parent)
    nbformat.write(notebook, output)
    return output


def _run_cells(notebook, folder: Path) -> None:
    """Execute a notebook's cells in ``folder`` in a clean kernel, their text shown as it comes."""
    from nbclient import NotebookClient

    class Live(NotebookClient):
        def output(self, outs, message, display_id, cell_index):
            if message["msg_type"] == "stream":
                print(message["content"]["text"], end="", flush=True)
            return super().output(outs, message, display_id, cell_index)

    options = {"timeout": None, "kernel_name": "python3", "coalesce_streams": True}
    # Coalesced: else each piece of text gets a box of its own on GitHub, a table in twenty parts.
    Live(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()


def execute(name: str) -> None:
    """Execute a notebook in place from a clean kernel and leave only what should be committed.

    Smoke tests, other data and backends that draw nothing are switched off: what is published
    shows the whole thing. Here alone published records and pictures may be replaced.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails (the file stays as it was).
        RuntimeError: if a cell wrote to stderr: a warning is to be understood, not hidden.
    """
    import nbformat

    for variable in ("SMOKE_TEST", "DATASET", "MPLBACKEND"):
        os.environ.pop(variable, None)
    os.environ["PUBLISH"] = "1"
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    _run_cells(notebook, path.parent)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps: noise in a diff
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name}, cell {cell.id} wrote to stderr: {output.text}")
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    done = json.loads(nbformat.writes(notebook))
    for cell in done["cells"]:
        cell["source"] = "".join(cell["source"])
    done["metadata"]["fingerprint"] = fingerprint(done)
    write(name, done)


def fingerprint(notebook: dict) -> str:
    """The code behind a notebook's outputs as a hash; comments and the set-up cell aside.

    A stored output whose notebook has another fingerprint is stale: a test compares.
    """
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and c["id"] != "setup"]
    code = "\n".join(without_comments(cell["source"]) for cell in cells)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def without_comments(source: str) -> str:
    """Python source without its comments and blank lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


# --- What changes from step to step ---------------------------------------------------------------


def is_change(cell: dict) -> bool:
    """Whether a cell carries its step's change."""
    return "change" in cell["metadata"].get("tags", [])


def change_diff(before: str, after: str) -> str:
    """What step ``after`` changes in the cells it shares with step ``before``, as a short diff."""
    old, lines = code_cells(before), []
    for key, cell in code_cells(after).items():
        if key in old and key != "identity" and is_change(cell):
            texts = (old[key]["source"].splitlines(), cell["source"].splitlines())
            diff = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
            lines += [line for line in diff if not line.startswith("@@")]
    return "\n".join(["```diff", *lines, "```"])


def between(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the markers of ``name`` made anew.

    Raises:
        ValueError: unless the markers stand there exactly once.
    """
    pattern = rf"(<!-- {name}: .*?-->\n).*?(<!-- end of {name} -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S)
    if count != 1:
        raise ValueError(f"the markers of {name!r} must stand there exactly once, found {count}")
    return new


def refresh() -> None:
    """Rewrite what is made from records: each step's result and diff, runs.csv, README."""
    import records
    import report  # not above: rename needs neither torch nor pandas

    table = records.table()
    text = table.to_csv(index=False, lineterminator="\n")
    replace_text(records.RESULTS / "runs.csv", text)
    for step in STEPS:
        notebook = read(step)
        header = notebook["cells"][0]
        header["source"] = between(header["source"], "result", report.step_result(step))
        if step != STEPS[0]:
            diff = change_diff(STEPS[STEPS.index(step) - 1], step)
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    parts = re.split(r"```diff\n.*?```", cell["source"], flags=re.S)
                    cell["source"] = diff.join(parts)
        write(step, notebook)
    readme = ROOT / "README.md"
    replace_text(readme, report.render_readme(readme.read_text(encoding="utf-8")))


# --- The repository's name ------------------------------------------------------------------------


def settings() -> tuple[str, str]:
    """The repository's public name and branch, from the one place where they stand."""
    series = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["series"]
    return series["repository"], series["ref"]


def badges(name: str) -> str:
    """The badges that open a notebook in Colab and on Kaggle."""
    repository, ref = settings()
    path = f"{repository}/blob/{ref}/notebooks/{name}.ipynb"
    colab = f"https://colab.research.google.com/github/{path}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )


def rename(repository: str, ref: str) -> None:
    """Write a repository's name and branch into pyproject.toml, the notebooks and README.

    Raises:
        ValueError: if ``repository`` does not read OWNER/REPO, or one of the two is no name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+/(?!\.\.?$)[A-Za-z0-9_.-]+", repository):
        raise ValueError(f"expected OWNER/REPO, got {repository!r}")
    # Of what git allows, what means nothing in an address, a string or a shell.
    if not re.fullmatch(
        r"(?!.*(\.\.|//|/\.|\./|\.lock(/|$)))[\w][A-Za-z0-9_./-]*(?<![./])", ref, re.A
    ):
        raise ValueError(f"expected a branch or tag, got {ref!r}")
    old, old_ref = map(re.escape, settings())
    swaps = {  # whole names: "a/b" is not found in "a/b-2", and a repeated rename changes nothing
        rf"(github(?:\.com)?/){old}/blob/{old_ref}/": rf"\g<1>{repository}/blob/{ref}/",
        rf"(github\.com/){old}(?![\w.-])": rf"\g<1>{repository}",
        rf'\\"{old}\\", \\"{old_ref}\\"': rf'\\"{repository}\\", \\"{ref}\\"',
        rf'^repository = "{old}"$': f'repository = "{repository}"',
        rf'^ref = "{old_ref}"$': f'ref = "{ref}"',
    }
    # pyproject.toml last: it holds the old name, and a rename that was stopped can be repeated.
    texts = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("site/models/*/README.md")]
    texts += [NOTEBOOKS / f"{name}.ipynb" for name in names()]
    for path in [*texts, ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        for before, after in swaps.items():
            text = re.sub(before, after, text, flags=re.M)
        replace_text(path, text)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("name", nargs="?", default=STEPS[-1], choices=names())
    command = commands.add_parser("execute")
    command.add_argument("names", nargs="+", choices=names())
    commands.add_parser("refresh")
    command = commands.add_parser("rename")
    command.add_argument("repository")
    command.add_argument("--ref", default="main")
    arguments = parser.parse_args()
    if arguments.command == "run":
        # Another study: a run leaves the published records alone, execute renews them.
        path = run(arguments.name, {"STUDY": "scratch"} if arguments.name in STEPS else None)
        if arguments.name in STEPS:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            print("\n" + printed(next(cell for cell in cells if cell["id"] == "rules")))
        print(f"executed notebook: {path.relative_to(ROOT)}")
        print("figures: in that notebook; the published ones in images/")
    elif arguments.command == "execute":
        for name in arguments.names:
            execute(name)
    elif arguments.command == "refresh":
        refresh()
    else:
        rename(arguments.repository, arguments.ref)


if __name__ == "__main__":
    main()
