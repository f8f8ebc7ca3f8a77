"""records.py: what is kept of a run, what is published, the table, the rules, how studies go on.

(Damaged records and weights, and names that are none, are in test_hostile.py.)
"""

import itertools
import json
import math
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import nn

import mnist
import records
import utils
from test_utils import equal_weights, small_model, train

RUN = {"study": "steps", "name": "toy", "seed": 0, "epochs": 2}


@pytest.fixture(scope="module")
def trained():
    """A network, its history, its loaders and what it reads of the test images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASET", "digits")
        patch.delenv("SMOKE_TEST", raising=False)
        data = utils.load_mnist()
    model, history = train(data, epochs=2)
    loaders = (data.loader("train", 32, generator=torch.Generator()), data.loader("val"))
    return model, history, loaders, utils.evaluate(model, data.loader("test"))


@pytest.fixture
def record(trained) -> dict:
    model, history, loaders, test = trained
    return records.make_run(RUN | {"hyperparameters": {"lr": 0.2}}, model, history, loaders, test)


@pytest.fixture
def published(record, tmp_path) -> Path:
    """A results folder in which the run counts as one on MNIST."""
    records.save_record(record | {"dataset": "MNIST"}, results=tmp_path)
    return tmp_path


# --- What is kept ---------------------------------------------------------------------------------


def test_a_record_tells_the_run(record, trained):
    model, history, (train_loader, _), test = trained
    images, labels = train_loader.data.test.images, train_loader.data.test.labels
    with torch.no_grad():
        read = model.eval()(train_loader.data.normalize(images[:, None] / 255)).argmax(1)
    wrong = [i for i in range(360) if read[i] != labels[i]]
    assert record["test_errors"] == wrong
    assert (record["test_correct"], record["test_images"]) == (360 - len(wrong), 360)
    assert record["test_accuracy"] == pytest.approx(100 - 100 * len(wrong) / 360)
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    sizes = [record[key] for key in ("train_images", "val_images", "batch_size")]
    assert sizes == [1294, 143, 32]
    assert record["seconds"] == pytest.approx(math.fsum(history["seconds"]))
    assert record["history"] == history and record["dataset"] == mnist.STAND_IN
    assert record["device"].startswith("cpu: ") and record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__
    assert test.accuracy != history["val_accuracy"][-1]


def test_no_epoch_no_record_and_no_test_no_accuracy(trained):
    model, history, loaders, _ = trained
    run = RUN | {"hyperparameters": {}}
    with pytest.raises(ValueError, match="no epoch was completed"):
        records.make_run(run, model, {}, loaders, None)
    found = records.make_run(run, model, history, loaders, None)
    assert found["test_accuracy"] is None and found["test_errors"] is None


def test_a_record_and_its_weights_survive_the_disk(record, trained, tmp_path):
    path = records.save_record(record, trained[0], tmp_path)
    found = records.load_record(path)
    weights = path.with_suffix(".safetensors")
    assert found == record and path == tmp_path / "scratch" / "steps" / "toy-seed0.json"
    assert set(path.parent.iterdir()) == {path, weights}
    assert equal_weights(records.load_weights(small_model((8, 24)), found, tmp_path), trained[0])
    with pytest.raises(ValueError, match="holds another network"):
        records.load_weights(small_model((4, 7)), found, tmp_path)


# --- What is published ----------------------------------------------------------------------------


def test_only_complete_runs_on_mnist_of_the_same_recipe_replace_a_published_one(
    record, published, monkeypatch
):
    public = record | {"dataset": "MNIST", "seconds": 1.0}
    short = {"epochs": 1, "history": {k: v[:1] for k, v in record["history"].items()}}
    stopped = {"epochs": 3}
    for change in ({"smoke_test": True}, {"dataset": mnist.STAND_IN}, stopped, short):
        assert records.save_record(public | change, results=published).parts[-3] == "scratch"
    other = public | {"hyperparameters": {"lr": 0.3}}
    assert records.save_record(other, results=published).parts[-3] == "scratch"
    assert records.save_record(public, results=published).parts[-3] == "scratch"
    (old,) = records.load_records("steps", results=published)
    assert old["seconds"] == record["seconds"]
    monkeypatch.setenv("PUBLISH", "1")  # as manage.py execute does
    path = records.save_record(public, results=published)
    assert path == published / "steps" / "toy-seed0.json"
    assert records.load_record(path)["seconds"] == 1.0


def test_figures_are_published_from_mnist_in_full_only(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "IMAGES", tmp_path)
    figure, _ = plt.subplots()
    for smoke, dataset, publish in (
        ("0", mnist.STAND_IN, "1"),
        ("1", "MNIST", "1"),
        ("0", "MNIST", ""),
    ):
        monkeypatch.setenv("SMOKE_TEST", smoke)
        monkeypatch.setenv("PUBLISH", publish)
        records.save_figure("a", dataset, figure)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("PUBLISH", "1")
    records.save_figure("a", "MNIST", figure)
    plt.close("all")
    (path,) = tmp_path.iterdir()
    assert path.name == "a.png" and path.read_bytes().startswith(b"\x89PNG")


def test_a_kill_at_any_moment_leaves_whole_files(record, tmp_path):
    """Killed before each operation on a file, in turn: the record is the old one or the new one."""
    path = records.save_record(record, results=tmp_path)
    old, weights = records.load_record(path), path.with_suffix(".safetensors")
    for moment in itertools.count(1):
        if (child := os.fork()) == 0:
            events = iter(range(1, moment))  # opening, renaming and removing a file, for three
            sys.addaudithook(lambda *_, left=events: next(left, 0) or os._exit(9))
            try:
                records.save_record(record | {"seconds": 0.0}, nn.Linear(3, 3), tmp_path)
            finally:
                os._exit(0)
        killed, found = os.waitpid(child, 0)[1] != 0, records.load_record(path)
        assert found["seconds"] == 0.0 or (killed and found == old), moment
        assert not weights.exists() or load_file(weights)
        if not killed:
            break
    assert moment > 5


# --- What is found --------------------------------------------------------------------------------


def test_records_are_found_by_name_and_superseded_ones_are_not(record, tmp_path):
    public = record | {"dataset": "MNIST", "study": "seeds"}
    for change in ({"name": "b", "seed": 10}, {"name": "b", "seed": 9}, {"name": "a"}):
        records.save_record(public | change, results=tmp_path)
    old = {"name": "old", "status": "superseded", "reason": "a guess"}
    records.save_record(public | old, results=tmp_path)
    found = records.load_records("seeds", results=tmp_path)
    assert [(r["name"], r["seed"]) for r in found] == [("a", 0), ("b", 9), ("b", 10)]
    assert len(records.load_records("seeds", "b", results=tmp_path)) == 2
    table = records.table(tmp_path).set_index(["name", "seed"])
    assert table.loc[("old", 0), "reason"] == "a guess" and len(table) == 4
    assert (table["status"] == "superseded").sum() == 1


def test_the_table_of_all_runs_is_the_records():
    """runs.csv, row by row, from the JSON files themselves."""
    table = pd.read_csv(records.RESULTS / "runs.csv", keep_default_na=False, dtype=str)
    paths = [p for p in records.RESULTS.glob("*/*.json") if p.parent.name != "scratch"]
    paths = [p for p in paths if "rows" not in json.loads(p.read_text())]
    rows = {(r["study"], r["name"], r["seed"]): r for _, r in table.iterrows()}
    assert len(rows) == len(table) == len(paths)
    for path in paths:
        own = json.loads(path.read_text())
        row = rows[own["study"], own["name"], str(own["seed"])]
        same = ("parameters", "epochs", "train_images", "device", "threads", "dataset")
        assert [row[key] for key in same] == [str(own[key]) for key in same], path
        assert row["torch"] == own["versions"]["torch"]
        numbers = {k: v for k, v in own["hyperparameters"].items() if isinstance(v, float)}
        numbers |= {k: own[k] for k in ("seconds", "test_accuracy") if own[k] is not None}
        if "val_loss" in own["history"]:
            numbers["val_loss"] = own["history"]["val_loss"][-1]
        assert {key: float(row[key]) for key in numbers} == pytest.approx(numbers), path


def test_a_measurement_is_no_run(digits, tmp_path):
    rows = [{"what": "loader", "seconds": 1.5}]
    found = records.make_measurement("speed", "pairs", rows, digits.loader("val"))
    path = records.save_record(found, results=tmp_path)
    assert records.load_record(path)["rows"] == rows
    assert path.parent == tmp_path / "scratch" / "speed" and "epochs" not in found
    records.save_record(found | {"dataset": "MNIST"}, results=tmp_path)
    assert records.table(tmp_path).empty


# --- The rules, and statistics --------------------------------------------------------------------


def verdicts(record: dict, model: nn.Module) -> list[str]:
    return records.judge(record, model)["verdict"].tolist()


def test_the_five_rules_are_judged(record, trained):
    model = trained[0]
    good = record | {"dataset": "MNIST", "test_accuracy": 99.4, "parameters": 19_999}
    assert verdicts(good, model) == ["pass"] * 5
    assert verdicts(good | {"test_accuracy": 99.39}, model)[0] == "FAIL"
    assert verdicts(good | {"parameters": 20_000}, model)[1] == "FAIL"
    assert verdicts(good | {"epochs": 19}, model)[2] == "pass"
    assert verdicts(good | {"epochs": 20}, model)[2] == "FAIL"
    assert verdicts(record, model)[0] == "not judged: not MNIST"
    assert verdicts(good | {"smoke_test": True}, model)[0] == "not judged: smoke test"
    assert verdicts(good | {"epochs": 3}, model)[0] == "not judged: stopped early"
    parts = list(model)
    for rule, kind in ((3, nn.BatchNorm2d), (3, nn.Dropout), (4, nn.AdaptiveAvgPool2d)):
        rest = nn.Sequential(*[m for m in parts if not isinstance(m, kind)])
        assert verdicts(good, rest)[rule] == "FAIL", kind
    head = parts[:-2]  # GAP; then what stands for the FC layer
    assert verdicts(good, nn.Sequential(*head, nn.Conv2d(24, 10, 1)))[4] == "pass"
    for other in (nn.Conv2d(24, 12, 1), nn.Conv2d(24, 10, 3)):
        assert verdicts(good, nn.Sequential(*head, other))[4] == "FAIL"
    text = records.judge(good, nn.Sequential(*head, nn.Dropout2d(0.3))).iloc[3, 1]
    assert text == "batch norm, dropout 0.3"


def test_summary_and_difference_are_scipys():
    one, other = np.random.default_rng(0).normal(99, 0.1, (2, 7))
    row = records.summary(one.tolist())
    interval = stats.t.interval(0.95, 6, loc=one.mean(), scale=stats.sem(one))
    assert (row["low"], row["high"]) == pytest.approx(interval)
    found = (row["n"], row["mean"], row["std"], row["min"], row["max"])
    assert found == pytest.approx((7, one.mean(), one.std(ddof=1), one.min(), one.max()))
    few = 99 + 5 * (other[:3] - 99)  # fewer and wider: Welch's interval is not the pooled one
    gain, low, high = records.difference(one, few)
    parts = [values.var(ddof=1) / len(values) for values in (one, few)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 6 + parts[1] ** 2 / 2)  # Welch 1947
    half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
    expected = one.mean() - few.mean()
    assert (gain, low, high) == pytest.approx((expected, expected - half, expected + half))


# --- Studies --------------------------------------------------------------------------------------

PLAN = [("a", 0), ("a", 1), ("b", 0)]


def test_a_study_runs_what_has_no_record_and_survives_a_failure(monkeypatch, capsys):
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    done = []

    def run(name: str, seed: int) -> None:
        done.append((name, seed))
        if seed == 1:
            raise RuntimeError("lost")

    failed = records.run_study(PLAN, run, have={("b", 0), ("c", 5)})
    assert done == [("a", 0), ("a", 1)]
    assert len(failed) == 1 and "('a', 1) failed" in failed[0] and "lost" in failed[0]
    assert "1 of 3 runs have a record; to run now: 2" in capsys.readouterr().out


def test_a_smoke_test_runs_one_and_a_failure_there_is_an_error(monkeypatch):
    monkeypatch.setenv("SMOKE_TEST", "1")
    done = []
    records.run_study(PLAN, lambda *job: done.append(job), have=set(PLAN))
    assert done == [("a", 0)]
    with pytest.raises(ValueError, match="division by zero"):
        records.run_study(PLAN, lambda *_: 1 / 0, have=set())


def test_a_study_on_a_cluster_tries_a_failed_run_once_more(monkeypatch, tmp_path):
    monkeypatch.delenv("SMOKE_TEST", raising=False)

    def run(name: str, seed: int) -> None:
        marks = list(tmp_path.glob(f"{name}{seed}-*"))
        (tmp_path / f"{name}{seed}-{len(marks)}").touch()
        if name == "b" or (seed == 1 and not marks):
            raise RuntimeError("kernel died")

    failed = records.run_study(PLAN, run, set(), "local")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0-0", "a1-0", "a1-1", "b0-0", "b0-1"]
    assert len(failed) == 1 and "('b', 0) failed" in failed[0] and "kernel died" in failed[0]


def test_a_notebook_is_run_with_its_parameters(tmp_path):
    parameters = nbformat.v4.new_code_cell("SEED = 1", metadata={"tags": ["parameters"]})
    shown = "import os\nprint(SEED, os.environ['OMP_NUM_THREADS'], os.getcwd())"
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(shown)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "n.ipynb")
    copy = tmp_path / "x" / "c.ipynb"
    records.run_notebook(tmp_path / "n.ipynb", {"SEED": 4}, copy, tmp_path)
    (output,) = nbformat.read(copy, as_version=4).cells[-1].outputs
    assert output.text == f"4 1 {tmp_path}\n"
