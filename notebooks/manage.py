"""Run, publish and keep in order the notebooks of this folder.

python notebooks/manage.py run [NAME]        run one (default: step 6) and show its verdict
python notebooks/manage.py execute NAME ...  run in place from a clean kernel, to be committed
python notebooks/manage.py refresh           rewrite the diffs and README's results from the records
python notebooks/manage.py rename OWNER/REPO put a fork's name into badges and set-up cells
"""

import argparse
import difflib
import itertools
import os
import re
import statistics
import sys
import tomllib
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # no progress bars in stored outputs; the epoch rows stay

import nbformat
import papermill
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
sys.path.insert(0, str(ROOT))
STEPS = {
    "01_baseline": "six convolutions, ReLU, flatten + linear",
    "02_batch_norm": "batch norm after each convolution",
    "03_dropout": "a little dropout after each block",
    "04_gap_fc": "global average pooling + a small linear layer",
    "05_augmentation": "random affine transforms of the training images",
    "06_lr_schedule": "one-cycle learning rate",
}


def replace_text(path: Path, text: str) -> None:
    """Write a file at once: whoever is stopped half-way leaves the old one, not half of the new."""
    temporary = path.with_name(f".{path.name}-new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def run(name: str, parameters: dict | None = None, output: Path | None = None) -> Path:
    """Execute a copy of a notebook, its output shown as it comes; return the copy's path.

    Raises:
        papermill.PapermillExecutionError: with the notebook's traceback, if a cell fails.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    output = output or NOTEBOOKS / "run" / source.name
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        source,
        output,
        parameters,
        cwd=NOTEBOOKS,
        kernel_name="python3",
        log_output=True,
        progress_bar=False,
        stdout_file=sys.stdout,
    )
    return output


def cell_output(path: Path, tag: str) -> str:
    """The printed text of the first cell with ``tag`` in an executed notebook."""
    for cell in nbformat.read(path, as_version=4).cells:
        if tag in cell.metadata.get("tags", []):
            return "".join(o.text for o in cell.outputs if o.output_type == "stream")
    raise ValueError(f"{path} has no cell tagged {tag!r}")


def execute(name: str) -> None:
    """Execute a notebook in place from a clean kernel and leave only what should be committed.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails (the file stays as it was).
        RuntimeError: if a cell wrote to stderr: a warning is to be understood, not hidden.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    options = {"timeout": None, "kernel_name": "python3", "resources": resources}
    # Else each piece of text that arrives gets a box of its own on GitHub: a table in twenty parts.
    client = NotebookClient(notebook, coalesce_streams=True, **options)
    client.on_cell_executed = lambda cell, cell_index, **_: print(
        f"{name}: cell {cell_index + 1}/{len(notebook.cells)} {cell.get('id')}", flush=True
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps: noise in a diff
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name}, cell {cell.id} wrote to stderr: {output.text}")
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    replace_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def code_cells(name: str) -> dict[str, nbformat.NotebookNode]:
    """The code cells of a notebook by their id, in order."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    return {cell.id: cell for cell in cells if cell.cell_type == "code"}


def is_change(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell carries its step's change."""
    return "change" in cell.metadata.get("tags", [])


def change_diff(before: str, after: str) -> str:
    """What step ``after`` changes in the cells it shares with step ``before``, as a short diff."""
    old, lines = code_cells(before), []
    for key, cell in code_cells(after).items():
        if key in old and key != "identity" and is_change(cell):
            texts = (old[key].source.splitlines(), cell.source.splitlines())
            diff = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
            lines += [line for line in diff if not line.startswith("@@")]
    return "\n".join(["```diff", *lines, "```"])


def write_diffs() -> None:
    """Put each step's diff into the Markdown cell that opens its network section."""
    for before, after in itertools.pairwise(STEPS):
        path = NOTEBOOKS / f"{after}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        diff = change_diff(before, after)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                parts = re.split(r"```diff\n.*?```", cell.source, flags=re.S)
                cell.source = diff.join(parts)
        replace_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def settings() -> tuple[str, str]:
    """The repository's public name and branch, from the one place where they stand."""
    series = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["series"]
    return series["repository"], series["ref"]


def colab_url(name: str) -> str:
    """Where Colab opens a notebook of this repository."""
    repository, ref = settings()
    address = "https://colab.research.google.com/github"
    return f"{address}/{repository}/blob/{ref}/notebooks/{name}.ipynb"


def smallest_line(records: list[dict], bar: float = 99.4, seeds: int = 10) -> list[str]:
    """README's sentence on the smallest network with a mean at the bar; none, no sentence."""
    groups: dict[tuple[int, str], list[float]] = {}
    for record in records:
        key = record["parameters"], record["name"]
        groups.setdefault(key, []).append(record["test_accuracy"])
    enough = {k: v for k, v in groups.items() if len(v) >= seeds and statistics.mean(v) >= bar}
    if not enough:
        return []
    (parameters, _), last = min(enough.items())
    return [
        "",
        f"**{parameters:,} parameters are enough for {statistics.mean(last):.3f} % on average** "
        f"(last epoch; {len(last)} seeds, std {statistics.stdev(last):.3f}, min {min(last):.2f} %, "
        f"max {max(last):.2f} %): [09_smallest_network](notebooks/09_smallest_network.ipynb).",
    ]


def fastest_line(records: list[dict], bar: float = 99.4, seeds: int = 10) -> list[str]:
    """README's sentence on the shortest training with a mean at the bar, one for each device."""
    lines = []
    for race in (r for r in records if r.get("family") == "race"):
        kind = race["device"].split(":")[0]
        seconds: dict[str, list[float]] = {}
        for row in race["rows"]:
            seconds.setdefault(row["name"], []).append(row["seconds"])
        for name in sorted(seconds, key=lambda name: statistics.median(seconds[name])):
            found = [r for r in records if r.get("recipe") == name and r["seed"] < 100]
            last = [r["test_accuracy"] for r in found if r["name"] == f"{name}_{kind}"]
            if len(last) < seeds:
                continue
            error = statistics.stdev(last) / len(last) ** 0.5
            if statistics.mean(last) - 2 * error >= bar:  # not by luck: as notebook 10 asks
                words = f"{statistics.median(seconds[name]):.1f} seconds of training"
                lines += [
                    "",
                    f"**{words} ({found[0]['epochs']} epochs) are enough for "
                    f"{statistics.mean(last):.3f} % on average** (last epoch; {len(last)} seeds, "
                    f"std {statistics.stdev(last):.3f}, min {min(last):.2f} %, "
                    f"max {max(last):.2f} %; timed apart, the median of {len(seconds[name])} runs "
                    f"on {race['device']}, {race['threads']} threads): "
                    "[10_speed](notebooks/10_speed.ipynb).",
                ]
                break
    return lines


def results_table() -> str:
    """README's headlines and table, from the records of the studies."""
    import utils  # not above: the other commands should not wait for torch

    steps = utils.load_records("steps")
    records = {record["name"]: record for record in steps if record["seed"] == 0}  # the published
    last = [record["test_accuracy"] for record in utils.load_records("seeds")]
    speed = utils.load_records("speed")
    lines = [
        f"**Over {len(last)} seeds step 6 reaches {statistics.mean(last):.3f} % on average** "
        f"(last epoch; std {statistics.stdev(last):.3f}, min {min(last):.2f} %, "
        f"max {max(last):.2f} %): "
        "[08_many_seeds](notebooks/08_many_seeds.ipynb). The table shows one seed each.",
        *smallest_line(utils.load_records("smallest")),
        *fastest_line(speed),
        "",
        "| notebook | idea | parameters | test accuracy, last epoch | |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for name, idea in STEPS.items():
        record = records[name]
        badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        lines.append(
            f"| [{name}](notebooks/{name}.ipynb) | {idea} | {record['parameters']:,} "
            f"| {record['test_accuracy']:.2f} % | {badge}({colab_url(name)}) |"
        )
    tried, epochs = utils.load_records("search"), records[name]["epochs"]
    ours = sum(record["name"].startswith("steps-") for record in tried)
    short = len({r["recipe"] for r in speed if r["seed"] >= 100})  # these never see the test set
    lines += [
        "",
        f"{epochs} epochs, 55,000 training images. In all, {len(tried)} configurations were run to",
        f"their end and compared on the validation images: {ours} for these six notebooks, "
        f"{len(tried) - ours} for the smallest network; and {short} more, of two to four epochs,"
        " for the fastest.",
    ]
    return "\n".join(lines)


def render_readme(text: str) -> str:
    """README with what stands between the ``results`` markers made anew."""
    pattern = r"(<!-- results: .*?-->\n).*?(<!-- end of results -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}{results_table()}\n{m[2]}", text, flags=re.S)
    if count != 1:
        raise ValueError("README.md must hold the results markers exactly once")
    return new


def rename(repository: str, ref: str) -> None:
    """Write a repository's name and branch into pyproject.toml, the notebooks and README.

    Raises:
        ValueError: if ``repository`` does not read OWNER/REPO.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"expected OWNER/REPO, got {repository!r}")
    old_repository, old_ref = settings()
    swaps = {
        f"github/{old_repository}/blob/{old_ref}/": f"github/{repository}/blob/{ref}/",
        f'\\"{old_repository}\\", \\"{old_ref}\\"': f'\\"{repository}\\", \\"{ref}\\"',
        f'repository = "{old_repository}"': f'repository = "{repository}"',
        f'ref = "{old_ref}"': f'ref = "{ref}"',
        f"github.com/{old_repository}": f"github.com/{repository}",
    }
    # pyproject.toml last: it holds the old name, and a rename that was stopped can be repeated.
    for path in [ROOT / "README.md", *sorted(NOTEBOOKS.glob("*.ipynb")), ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        for old, new in swaps.items():
            text = text.replace(old, new)
        replace_text(path, text)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    command = commands.add_parser("run")
    command.add_argument("name", nargs="?", default="06_lr_schedule", choices=names)
    command = commands.add_parser("execute")
    command.add_argument("names", nargs="+", choices=names)
    commands.add_parser("refresh")
    command = commands.add_parser("rename")
    command.add_argument("repository")
    command.add_argument("--ref", default="main")
    arguments = parser.parse_args()
    if arguments.command == "run":
        # Another study: a run leaves the published records alone, execute renews them.
        path = run(arguments.name, {"STUDY": "scratch"} if arguments.name in STEPS else None)
        if arguments.name in STEPS:
            print("\n" + cell_output(path, "rules"))
        print(f"executed notebook: {path.relative_to(ROOT)}")
        print("figures: in that notebook; the published ones in images/")
    elif arguments.command == "execute":
        for name in arguments.names:
            execute(name)
    elif arguments.command == "refresh":
        write_diffs()
        readme = ROOT / "README.md"
        replace_text(readme, render_readme(readme.read_text()))
    else:
        rename(arguments.repository, arguments.ref)


if __name__ == "__main__":
    main()
