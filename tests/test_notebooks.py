"""The notebooks as files: hygiene, the one-change rule, outputs that belong to their code."""

import itertools
import json
import re
import shutil

import nbformat
import pytest

import manage
import mnist
import records

ROOT = records.HERE
NAMES = manage.names()
MAIN = [name for name in NAMES if "/" not in name]
STEPS = list(manage.STEPS)
notebooks = pytest.mark.parametrize("name", NAMES)
main = pytest.mark.parametrize("name", MAIN)


def markdown(name: str) -> str:
    cells = manage.read(name)["cells"]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


# --- Hygiene --------------------------------------------------------------------------------------


@notebooks
def test_a_notebook_is_valid_one_sitting_and_asks_for_a_t4(name):
    path, notebook = ROOT / f"notebooks/{name}.ipynb", manage.read(name)
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 3_000_000 and "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["accelerator"] == "GPU"
    assert notebook["metadata"]["colab"]["gpuType"] == "T4"
    tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    assert sum("parameters" in found for found in tags) == 1
    cells = [(c["id"], c["source"].splitlines()) for c in manage.code_cells(name).values()]
    assert not [key for key, lines in cells if len(lines) > (40 if key[:5] == "model" else 30)]
    code, most = sum(bool(line.strip()) for _, lines in cells for line in lines), len(tags)
    assert (code <= 250 and most <= 40) if name in STEPS else (code <= 300 and most <= 45)


@notebooks
def test_outputs_come_from_one_clean_run_of_this_code(name):
    notebook, cells = manage.read(name), list(manage.code_cells(name).values())
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert notebook["metadata"]["fingerprint"] == manage.fingerprint(notebook), "execute it again"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    for cell in cells:  # a printed table stays in one piece
        assert [o.get("name") for o in cell["outputs"]].count("stdout") <= 1, cell["id"]
    text = json.dumps(outputs)
    assert not re.search(r"/(root|home|work|tmp|Users|content)/|[A-Z]:\\\\\\\\", text)
    assert "SMOKE TEST" not in text and mnist.STAND_IN not in text


@notebooks
def test_a_figure_has_a_text_alternative_and_is_followed_by_what_to_see(name):
    cells = manage.read(name)["cells"]
    for place, cell in enumerate(cells):
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        for picture in pictures:
            alt = picture["metadata"].get("image/png", {}).get("alt", "")
            assert len(alt) > 20, f"{cell['id']} has no alt: show it with utils.show"
        if pictures and "/" not in name:
            after = next(c for c in cells[place + 1 :] if c["cell_type"] == "markdown")
            assert "*What to see:*" in after["source"], cell["id"]
    assert cells[-1]["cell_type"] == "markdown" or "/" in name


@main
def test_the_opening_is_the_same_and_links_resolve(name):
    first = manage.read(name)["cells"][0]["source"]
    lines = first.splitlines()
    assert lines[0] == manage.badges(name)
    assert next(line for line in lines[1:] if line).startswith("# ")
    assert "**What you will learn**" in first
    for link in re.findall(r"\]\(([^)#]+)\)", markdown(name)):
        assert link.startswith("https://") or (ROOT / "notebooks" / link).exists(), link


def test_no_function_stands_in_two_notebooks():
    """But for what the steps share under the neighbour rule."""
    seen: dict[str, str] = {}
    for name in [name for name in MAIN if name not in STEPS[:-1]]:
        code = "\n".join(cell["source"] for cell in manage.code_cells(name).values())
        for body in re.findall(r"^def (\w+\(.*?\n(?:    .*\n|\n)+)", code + "\n", re.M):
            text = " ".join(body.split())
            if len(text) > 120:
                assert text not in seen, f"{name} and {seen[text]}: {text[:40]}"
                seen[text] = name


# --- The repository's name stands in one place ----------------------------------------------------


@notebooks
def test_the_set_up_cell_is_the_same_and_short(name):
    setup = next(iter(manage.code_cells(name).values()))
    first = next(iter(manage.code_cells(STEPS[0]).values()))
    assert setup["id"] == "setup" and len(setup["source"].splitlines()) <= 16
    if "/" not in name:
        assert setup["source"] == first["source"]
    repository, ref = manage.settings()
    assert f'REPOSITORY, REF = "{repository}", "{ref}"' in setup["source"]
    found = re.findall(r"github(?:\.com)?/([\w-]+/[\w.-]+/blob/\S+?)/notebooks", markdown(name))
    assert set(found) <= {f"{repository}/blob/{ref}"}


def test_a_fork_can_rename_every_file(tmp_path, monkeypatch):
    """And the fingerprints stay: nothing has to be executed again. (More in test_hostile.py.)"""
    texts = [ROOT / "pyproject.toml", *ROOT.glob("*.md"), *ROOT.glob("*.cff")]
    for path in [*texts, *(ROOT / f"notebooks/{name}.ipynb" for name in NAMES)]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    monkeypatch.setattr(manage, "ROOT", tmp_path)
    monkeypatch.setattr(manage, "NOTEBOOKS", tmp_path / "notebooks")
    old, prints = manage.settings()[0], [manage.fingerprint(manage.read(name)) for name in NAMES]
    manage.rename("someone/a-fork", "dev/x")
    assert not [path for path in tmp_path.rglob("*.*") if old in path.read_text()]
    assert [manage.fingerprint(manage.read(name)) for name in NAMES] == prints


# --- One change per step --------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), itertools.pairwise(STEPS))
def test_neighbours_differ_only_in_the_tagged_cells(before, after):
    """Tagged cells of the later step are left out on both sides, by their id.

    So is what only the earlier step shows (its own demonstrations, tagged there). Everything else
    must be the same, in the same order; and what did not change is folded.
    """
    old, new = manage.code_cells(before), manage.code_cells(after)
    tagged = {key for key, cell in new.items() if manage.is_change(cell)}
    own = {key for key, cell in old.items() if manage.is_change(cell) and key not in new}
    left = [(key, cell["source"]) for key, cell in old.items() if key not in tagged | own]
    right = [(key, cell["source"]) for key, cell in new.items() if key not in tagged]
    assert left == right
    assert tagged - {"identity"}, "a step must change something"
    for key, cell in new.items():
        if key in tagged & set(old):
            assert old[key]["source"] != cell["source"], f"{key} is tagged, but did not change"
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        assert folded or key in tagged or key == "parameters", f"{key} did not change: fold it"


@pytest.mark.parametrize(("before", "after"), itertools.pairwise(STEPS))
def test_the_diff_shown_is_the_diff(before, after):
    shown = re.findall(r"```diff\n.*?```", markdown(after), re.S)
    assert shown == [manage.change_diff(before, after)]


# --- Stored outputs and records -------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_step_shows_its_published_record(name):
    (record,) = records.load_records("steps", name)
    cells = manage.code_cells(name)
    result = f"{record['test_accuracy']:.2f} % ({record['test_correct']:,} correct)"
    assert result in manage.printed(cells["test"])
    assert f"results/steps/{name}-seed0.json" in manage.printed(cells["rules"])
    rows = [line.split() for line in manage.printed(cells["train"]).splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(1, record["epochs"] + 1))
    assert [row[4] for row in rows] == [f"{v:.2f}" for v in record["history"]["val_accuracy"]]
    images = [record[key] for key in ("train_images", "val_images", "test_images")]
    assert images == [55_000, 5_000, 10_000] and record["seed"] == 0 and record["epochs"] == 19


def test_results_hold_records_and_weights_only():
    files = [p for p in records.RESULTS.rglob("*") if p.is_file() and "scratch" not in p.parts]
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".csv", ".md"}
    for path in files:
        if path.suffix == ".json":
            records.load_record(path)


def test_images_are_those_that_a_notebook_writes():
    code = "".join(c["source"] for name in MAIN for c in manage.code_cells(name).values())
    for path in (ROOT / "images").iterdir():
        assert f'save_figure("{path.stem}"' in code, path.name
