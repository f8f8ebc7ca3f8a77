"""The notebooks as files: hygiene, the one-change rule, names, and numbers that match records."""

import hashlib
import inspect
import itertools
import json
import math
import re
import statistics
from operator import gt, lt
from pathlib import Path

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import manage
import utils

ROOT = utils.HERE
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STEPS = list(manage.STEPS)
notebooks = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
steps = pytest.mark.parametrize("name", STEPS)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def published(name: str) -> dict:
    return utils.load_record(utils.RESULTS / "steps" / f"{name}-seed0.json")


# --- Hygiene --------------------------------------------------------------------------------------


@notebooks
def test_a_notebook_is_valid_small_and_asks_for_a_t4(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 3_000_000
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code(path)) == 1


@notebooks
def test_outputs_come_from_one_clean_full_run(path):
    counts = [cell.execution_count for cell in code(path)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(path) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    for cell in code(path):  # a printed table stays in one piece
        kinds = [output.get("name", output.output_type) for output in cell.outputs]
        assert kinds.count("stdout") <= 1, cell.id
    text = json.dumps(outputs)
    assert not re.search(r"/(root|home|work|tmp|Users|content)/|[A-Z]:\\\\\\\\", text)
    assert "SMOKE TEST" not in text and utils.DIGITS_NAME not in text


@notebooks
def test_a_figure_is_followed_by_what_to_see_in_it(path):
    cells = read(path).cells
    for cell, after in itertools.pairwise(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            following = after if after.cell_type == "markdown" else cells[cells.index(after) + 1]
            assert "*What to see:*" in following.source, cell.id
    assert cells[-1].cell_type == "markdown"


@notebooks
def test_code_cells_are_short(path):
    for cell in code(path):
        limit = 40 if cell.id in ("setup", "model") else 25
        assert len(cell.source.splitlines()) <= limit, cell.id


@notebooks
def test_links_resolve_and_the_opening_is_the_same(path):
    first = read(path).cells[0].source
    assert first.startswith("[![Open in Colab](https://colab.research.google.com/assets/")
    assert f"]({manage.colab_url(path.stem)})" in first.splitlines()[0]
    assert re.search(r"^# Step \d+: ", first, re.M) and "**What you will learn**" in first
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert link.startswith("https://") or (path.parent / link).exists(), link


# --- The repository's name stands in one place ----------------------------------------------------


def test_badges_and_set_up_cells_agree_on_the_repository():
    repository, ref = manage.settings()
    for path in PATHS:
        setup = code(path)[0]
        assert setup.id == "setup"
        assert f'REPOSITORY, REF = "{repository}", "{ref}"' in setup.source
        found = set(
            re.findall(r"colab\.research\.google\.com/github/(.+?)/notebooks", str(read(path)))
        )
        assert found == {f"{repository}/blob/{ref}"}
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"colab\.research\.google\.com/github/(.+?)/notebooks", readme)
    assert set(found) == {f"{repository}/blob/{ref}"} and len(found) >= len(STEPS)


def test_a_fork_can_rename_everything(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", *PATHS]:
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text())
    old = manage.settings()[0]
    monkeypatch.setattr(manage, "ROOT", tmp_path)
    monkeypatch.setattr(manage, "NOTEBOOKS", tmp_path / "notebooks")
    manage.rename("someone/a-fork", "dev")
    assert manage.settings() == ("someone/a-fork", "dev")
    for path in tmp_path.rglob("*.*"):
        assert old not in path.read_text(), path
    setup = code(tmp_path / "notebooks" / PATHS[0].name)[0].source
    assert 'REPOSITORY, REF = "someone/a-fork", "dev"' in setup
    with pytest.raises(ValueError, match="expected OWNER/REPO"):
        manage.rename("nonsense", "main")


# --- One change per step --------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), itertools.pairwise(STEPS))
def test_neighbours_differ_only_in_the_tagged_cells(before, after):
    """Tagged cells of the later step are left out on both sides, by their id.

    So is what only the earlier step shows (its own demonstrations, tagged there). Everything else
    must be the same, in the same order.
    """
    old, new = manage.code_cells(before), manage.code_cells(after)
    tagged = {key for key, cell in new.items() if manage.is_change(cell)}
    own = {key for key, cell in old.items() if manage.is_change(cell) and key not in new}
    left = [(key, cell.source) for key, cell in old.items() if key not in tagged | own]
    right = [(key, cell.source) for key, cell in new.items() if key not in tagged]
    assert left == right
    assert tagged - {"identity"}, "a step must change something"
    for key in tagged & set(old):
        assert old[key].source != new[key].source, f"{key} is tagged, but did not change"


@pytest.mark.parametrize(("before", "after"), itertools.pairwise(STEPS))
def test_the_diff_shown_is_the_diff(before, after):
    cells = read(ROOT / f"notebooks/{after}.ipynb").cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = re.findall(r"```diff\n.*?```", text, re.S)
    assert shown == [manage.change_diff(before, after)]


# --- Numbers and records --------------------------------------------------------------------------


@steps
def test_the_notebook_shows_its_record(name):
    record = published(name)
    cells = manage.code_cells(name)
    printed = {key: "".join(o.get("text", "") for o in c.outputs) for key, c in cells.items()}
    result = f"{record['test_accuracy']:.2f} % ({record['test_correct']:,} correct)"
    assert result in printed["test"]
    assert f"results/steps/{name}-seed0.json" in printed["test"]
    assert f"{record['parameters']:,} parameters" in printed["count"]
    rows = [line.split() for line in printed["train"].splitlines()[1:]]
    history = record["history"]
    assert [int(row[0]) for row in rows] == list(range(1, record["epochs"] + 1))
    assert [row[4] for row in rows] == [f"{v:.2f}" for v in history["val_accuracy"]]
    assert f"SEED = {record['seed']} " in cells["parameters"].source


@steps
def test_a_published_record_keeps_the_protocol(name):
    record = published(name)
    assert (record["dataset"], record["smoke_test"]) == ("MNIST", False)
    images = (record["train_images"], record["val_images"], record["test_images"])
    assert images == (55_000, 5_000, 10_000)
    assert record["test_accuracy"] == pytest.approx(record["test_correct"] / 100)
    assert len(record["test_errors"]) == 10_000 - record["test_correct"]
    assert record["epochs"] <= 19
    assert all(len(values) == record["epochs"] for values in record["history"].values())
    assert math.isclose(record["seconds"], sum(record["history"]["seconds"]))
    weights = utils.RESULTS / "steps" / record["weights"]["file"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights"]["sha256"]


def test_the_steps_share_seed_epochs_and_batch_size():
    records = [published(name) for name in STEPS]
    assert len({(r["seed"], r["epochs"], r["batch_size"]) for r in records}) == 1
    assert [r["parameters"] < 20_000 for r in records] == [False] * 3 + [True] * 3


def test_step_6_meets_the_bar():
    assert published(STEPS[-1])["test_accuracy"] >= 99.5


def errors(record: dict) -> tuple[float, float]:
    """Percent wrong after the last epoch, in evaluation mode: of training, of validation images."""
    return 100 - record["clean_train_accuracy"], 100 - record["history"]["val_accuracy"][-1]


def test_what_the_prose_says_of_steps_1_to_4_holds():
    one, two, three, four = (published(name) for name in STEPS[:4])
    train, val = errors(one)
    assert 3.5 < val / train < 4.5  # "about four times as many errors"
    above = list(map(gt, one["history"]["train_loss"], one["history"]["val_loss"]))
    assert above[:3] == [True] * 3 and not any(above[3:])  # "in the first epochs"
    share = two["test_accuracy"] / 100  # "the binomial error ... is about 0.1 points here"
    assert 0.08 < 100 * math.sqrt(share * (1 - share) / two["test_images"]) < 0.12
    history = two["history"]  # "better than step 1 in every epoch, in loss and in accuracy"
    assert all(map(lt, history["val_loss"], one["history"]["val_loss"]))
    assert all(map(lt, one["history"]["val_accuracy"], history["val_accuracy"]))
    (train_2, val_2), (train_3, val_3) = errors(two), errors(three)
    assert train_3 < train_2 and val_3 < val_2
    assert val_3 - train_3 < val_2 - train_2 and val_3 / train_3 > val_2 / train_2
    train_4, val_4 = errors(four)
    assert 0 < train_4 - train_3 <= 0.05 and val_4 <= val_3  # a few of 10,000; no worse


def test_what_the_prose_says_of_steps_5_and_6_holds():
    (train_4, val_4), (train_5, val_5) = (errors(published(name)) for name in STEPS[3:5])
    assert abs((val_5 - train_5) - (val_4 - train_4)) < 0.05 and val_5 / train_5 < val_4 / train_4
    assert published(STEPS[4])["history"]["val_accuracy"][-1] < max(
        published(STEPS[4])["history"]["val_accuracy"]
    )
    six = published(STEPS[5])
    share, images = six["test_accuracy"] / 100, six["test_images"]
    binomial = 100 * math.sqrt(share * (1 - share) / images)
    assert 0.055 < binomial < 0.065 and six["test_accuracy"] - 99.4 > 2 * binomial
    left_out = {}
    for record in utils.load_records("ablation"):
        left_out.setdefault(record["name"], []).append(record)
    constant, plain = left_out["constant_rate"], left_out["without_augmentation"]
    above = sum(record["test_accuracy"] >= 99.4 for record in constant)
    assert len(constant) == 5 and above == 4  # "most of them came out just above the line"
    full = utils.load_records("seeds")
    ordered = [
        statistics.mean(r["test_accuracy"] for r in runs) for runs in (constant, plain, full)
    ]
    assert ordered == sorted(ordered)
    gaps = [statistics.mean(errors(r)[1] - errors(r)[0] for r in runs) for runs in (full, plain)]
    assert gaps[1] > 1.3 * gaps[0]  # "clearly further apart"


def test_step_1_prints_the_loops_as_they_are():
    cell = next(c for c in code(ROOT / "notebooks" / "01_baseline.ipynb") if c.id == "loops")
    loops = (utils.train_epoch, utils.evaluate)
    assert cell.outputs[0].text == "".join(inspect.getsource(loop) + "\n" for loop in loops)


def test_no_half_written_files_among_the_results():
    files = [p for p in utils.RESULTS.rglob("*") if p.is_file() and "scratch" not in p.parts]
    assert {p.suffix for p in files} <= {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            record = utils.load_record(path)
            kept = path.parent.name == "superseded"  # given-up designs, earlier measurements
            which = path.stem.removeprefix(record["name"]).removesuffix(f"-seed{record['seed']}")
            assert which == "" or (kept and which in ("_3x3", "_5x5", "_first", "_second"))
            assert (path.parent.parent if kept else path.parent).name == record["study"]


def test_readme_agrees_with_the_records():
    text = (ROOT / "README.md").read_text()
    assert manage.render_readme(text) == text


def test_images_are_those_that_readme_or_notebooks_write():
    sources = "".join(cell.source for path in PATHS for cell in code(path))
    for path in (ROOT / "images").iterdir():
        assert f'save_figure("{path.stem}"' in sources, path.name
    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


# --- The augmentation of step 5, taken from its notebook ------------------------------------------


def affine(strength: float):
    scope = {"torch": torch, "AUGMENT": strength}
    exec(manage.code_cells("05_augmentation")["random-affine"].source, scope)
    return scope["random_affine"]


def pictures(images: int) -> torch.Tensor:
    return torch.rand(images, 1, 28, 28, generator=torch.Generator().manual_seed(images))


@given(images=st.integers(1, 20), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_zero_strength_is_the_identity(images, seed):
    x = pictures(images)
    found = affine(0.0)(x, torch.Generator().manual_seed(seed))
    assert torch.allclose(found, x, atol=1e-5)


@given(images=st.integers(1, 20), seed=st.integers(0, 2**31), strength=st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_warps_keep_shape_and_range_and_repeat(images, seed, strength):
    x = pictures(images)
    first = affine(strength)(x, torch.Generator().manual_seed(seed))
    assert first.shape == x.shape and first.dtype == x.dtype
    assert first.min() >= 0 and first.max() <= 1 + 1e-5
    assert torch.equal(first, affine(strength)(x, torch.Generator().manual_seed(seed)))


def test_each_image_gets_its_own_warp_without_gradient():
    x = pictures(1).expand(6, -1, -1, -1).clone().requires_grad_()
    found = affine(1.0)(x, torch.Generator().manual_seed(0))
    assert not found.requires_grad
    assert len({image.numpy().tobytes() for image in found}) == 6


def test_warps_stay_within_the_stated_range():
    """A centred dot moves by the shift alone: at most two pixels either way."""
    x = torch.zeros(500, 1, 28, 28)
    x[:, :, 13:15, 13:15] = 1
    found = affine(1.0)(x, torch.Generator().manual_seed(0))[:, 0]
    places = torch.arange(28) - 13.5
    mass = found.sum((1, 2))
    for axis in (1, 2):
        moved = (found.sum(axis) * places).sum(1) / mass
        assert 1.5 < moved.abs().max() < 2.6  # the shift is applied in warped coordinates
