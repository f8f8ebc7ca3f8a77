"""README against the records, and the repository as a whole: size, pickles, private paths."""

import ast
import itertools
import re
import shlex
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

import manage
import utils

ROOT = utils.HERE
README = (ROOT / "README.md").read_text()

# Figures that no record can hold, each with its reason. Any other must be found in a record.
CONSTANTS = {
    "99.4 %": "the rule",
    "20,000": "the rule",
    "20": "the rule",
    "3.11": "Python's oldest version",
    "1,797": "scikit-learn's digits: see test_digits_are_shaped_like_mnist",
}
FIGURE = re.compile(r"(?<![\w.,/])\d[\d,]*(?:\.\d+)?(?: ?%)?(?!\w)")
NOT_RESULTS = [
    r"^```.*?^```",  # code
    r"`[^`\n]*`",
    r"<!--.*?-->",
    r"\]\([^)]*\)",  # where links lead
    r"^\d+\. ",  # numbered lists
    r"\b[Ss]teps? \d+(?:(?:, | and | to )\d+)*",  # names, not figures
    r"\b[Nn]otebooks? \d+(?:(?:, | and | to )\d+)*",
    r"\[\d\d_\w+",
    r"\bet al\., \d{4}|\b[A-Z]\w+, \d{4}",  # years of papers
]


def figures(text: str) -> list[str]:
    """Every number with which a text may state a result; a percentage keeps its sign."""
    for pattern in NOT_RESULTS:
        text = re.sub(pattern, " ", text, flags=re.M | re.S)
    found = (text.rstrip(",") for text in FIGURE.findall(text))
    return [re.sub(r"(?<=\d)%", " %", text) for text in found]


def groups() -> dict[tuple[str, str], list[dict]]:
    """The published records by study and name: those of one group differ in their seed."""
    found = defaultdict(list)
    for path in sorted(utils.RESULTS.glob("*/*.json")):
        if path.parent.name != "scratch":
            record = utils.load_record(path)
            found[record["study"], record["name"]].append(record)
    return found


def decimals(value: float) -> set[str]:
    """How a measured value may be written: with 1 to 3 decimals, as a percentage or not."""
    numbers = {f"{abs(value):,.{places}f}" for places in (1, 2, 3)}
    return numbers | {f"{number} %" for number in numbers}


def scalars(value: object) -> Iterator[float]:
    """The single numbers in a record: neither histories nor lists, in which anything is found."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("history", "versions", "seed", "test_accuracy"):
                yield from scalars(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def of_one(record: dict) -> set[str]:
    """What a record says about its run, apart from its accuracy on the test set."""
    found = {f"{record['train_images'] + record['val_images']:,}"}
    for value in scalars(record):
        found |= {f"{value:,}"} if isinstance(value, int) else {f"{value:,.0f}"} | decimals(value)
    return found


def facts() -> set[str]:
    """Every figure that the records support, as text.

    The accuracy of a single run counts only where a group has but one: of many seeds only their
    number, mean, standard deviation, minimum and maximum, and how far a mean is from another one
    in the same study or from that of step 6. Otherwise nearly any accuracy would be found.
    """
    found, means = set(), {}
    per_study = defaultdict(int)
    for (study, name), records in groups().items():
        per_study[study] += len(records)
        per_study[study, name.split("-")[0]] += len(records)
        found |= of_one(records[0]) | {f"{len(records)}"}
        if records[0].get("family") == "race":  # seconds of each recipe, all in one process
            for row in (rows := records[0]["rows"]):
                seconds = [r["seconds"] for r in rows if r["name"] == row["name"]]
                found |= decimals(statistics.median(seconds))
        accuracy = [r["test_accuracy"] for r in records if r["test_accuracy"] is not None]
        if accuracy:  # the search never saw the test set
            means[study, name] = statistics.mean(accuracy)
            values = [means[study, name], min(accuracy), max(accuracy)]
            values += [statistics.stdev(accuracy)] if len(accuracy) > 1 else []
            found |= set().union(*map(decimals, values))
    found |= {f"{count}" for count in per_study.values()}
    for (one, a), (other, b) in itertools.combinations(means.items(), 2):
        if one[0] == other[0] or "seeds" in (one[0], other[0]):
            found |= decimals(a - b)
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    return facts() | set(CONSTANTS)


def test_every_figure_in_readme_is_found_in_a_record(known):
    found = figures(README)
    assert len(found) > 20
    assert [figure for figure in found if figure not in known] == []


def test_constants_are_used():
    assert set(CONSTANTS) <= set(figures(README))


@pytest.mark.parametrize("place", ["**Over ", "## The protocol", "| [03_dropout]"])
def test_an_invented_figure_is_found_out(known, place):
    """Wherever it stands; and most accuracies and sizes are in no record."""
    accuracies = [f"{99 + i / 1000:.3f} %" for i in range(1000)]
    sizes = [f"{n:,}" for n in range(1_000, 30_000)]
    for candidates in (accuracies, sizes):
        invented = [figure for figure in candidates if figure not in known]
        assert len(invented) > 0.8 * len(candidates)
        before, after = README.split(place, 1)
        assert invented[0] in figures(f"{before}{place} {invented[0]} {after}")


def test_a_stopped_refresh_leaves_the_old_page(tmp_path, monkeypatch):
    page, write = tmp_path / "README.md", Path.write_text
    page.write_text("old")

    def stop_half_way(path, text, **_):
        write(path, text[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        manage.replace_text(page, "new and longer")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    monkeypatch.undo()
    manage.replace_text(page, "new and longer")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new and longer"]


def test_pictures_in_readme_have_a_description():
    assert re.findall(r"!\[([^\]]*)\]", README)
    assert all(len(text) > 10 for text in re.findall(r"!\[([^\]]*)\]", README))


# --- The repository as a whole --------------------------------------------------------------------


def tracked() -> list[Path]:
    """What a checkout holds, new files included that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def test_the_workflow_checks_the_newest_and_the_oldest_versions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    check = workflow["jobs"]["check"]
    assert {case["versions"] for case in check["strategy"]["matrix"]["include"]} == {
        "newest",
        "oldest",
    }
    commands = [step["run"] for step in check["steps"] if "run" in step]
    assert commands[-1] == "bash .ci/run"
    pin = shlex.split(commands[0].replace("sed -i", "sed"))
    pinned = subprocess.run(pin, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in pinned.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 10
    assert all(re.fullmatch(r"[a-z0-9_\[\]-]+==[\d.]+\.\*", line) for line in lines)


def test_a_checkout_is_small():
    assert sum(path.stat().st_size for path in tracked()) < 30_000_000


def test_no_private_paths_in_what_is_published():
    """Records, README and pictures; the notebooks' outputs have their own test."""
    private = re.compile(rb"/(root|home|work|tmp|Users|content)/|[A-Z]:\\+Users")
    published = [p for p in tracked() if p.suffix in (".json", ".md", ".png", ".safetensors")]
    assert len(published) > 50
    assert [path for path in published if private.search(path.read_bytes())] == []


PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unpickles(source: str) -> list[str]:
    """What in a program could load a pickle, and so run whatever the file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [n.name for n in node.names if n.name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLING:
            found.append(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"torch.{n.name}" for n in node.names if n.name in ("load", "hub")]
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if re.fullmatch(r"torch\.(load|jit\.load|hub\..+)|\w+\.read_pickle", name):
                found.append(name)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
    return found


def programs() -> dict[str, str]:
    """Every Python source of the repository: modules, tests and notebooks' code cells."""
    found = {p.name: p.read_text() for p in tracked() if p.suffix == ".py" and p.parent != ROOT}
    found["utils.py"] = (ROOT / "utils.py").read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found[path.name] = re.sub(r"^[%!].*$", "", code, flags=re.M)
    return found


def test_nothing_loads_a_pickle():
    sources = programs()
    assert {"utils.py", "manage.py", "01_baseline.ipynb"} <= set(sources)
    assert {name: found for name, text in sources.items() if (found := unpickles(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('weights.pt')",
        "from torch import load",
        "torch.hub.load('a/b', 'c')",
        "np.load('a.npy', allow_pickle=True)",
        "pd.read_pickle('a')",
    ],
)
def test_a_pickle_would_be_found(line):
    assert unpickles(line)
