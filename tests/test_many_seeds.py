"""The study of notebook 08: failures are reported, finished runs skipped, any cluster used."""

import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
from operator import gt, sub
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from scipy import stats

import manage
import utils

IMPORTS = """
import difflib, os, statistics
import nbformat
from distributed import Client, as_completed
from scipy import stats
from tqdm import tqdm
"""


def cells(*keys: str, **scope: object) -> dict:
    """Execute cells of notebook 08 by their id; return their names."""
    scope |= {"__name__": "__main__", "utils": scope.get("utils", utils)}
    source = manage.code_cells("08_many_seeds")
    exec(IMPORTS, scope)
    for key in keys:
        exec(source[key].source, scope)
    return scope


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A notebook with step 6's parameters that writes a file, or breaks for seed 1."""
    monkeypatch.setattr(utils, "RESULTS", tmp_path / "results")
    parameters = "SEED, STUDY, TEST_EVERY_EPOCH = 0, '', False"
    work = "assert SEED != 1, 'seed one breaks'\nopen(f'{STUDY}-{SEED}.txt', 'w').close()"
    notebook = new_notebook(
        cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(work)],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def jobs(toy: Path) -> list[tuple[Path, dict]]:
    return [(toy, {"SEED": seed, "STUDY": "s"}) for seed in (0, 1, 2)]


def check(failed: list[str], folder: Path) -> None:
    assert len(failed) == 1 and "seed 1 failed" in failed[0] and "seed one breaks" in failed[0]
    assert sorted(p.name for p in folder.glob("*.txt")) == ["s-0.txt", "s-2.txt"]


def test_a_failed_run_is_reported_and_does_not_stop_the_rest(toy):
    run_study = cells("run-one", "study")["run_study"]
    check(run_study(jobs(toy), cwd=toy.parent), toy.parent)


def test_the_study_runs_on_a_cluster_started_by_hand(toy):
    """The two commands that the notebook shows, with two workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    dask = [sys.executable, "-m", "dask"]
    address, quiet = f"tcp://127.0.0.1:{port}", {"stderr": subprocess.DEVNULL}
    commands = [
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"],
        [*dask, "worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"],
    ]
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        scope = cells("run-one", "study")
        with scope["Client"](address, timeout="120s") as client:
            client.wait_for_workers(2, timeout=180)
        check(scope["run_study"](jobs(toy), address, toy.parent), toy.parent)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize(("deaths", "failures"), [(1, 0), (2, 1)])
def test_a_kernel_that_dies_at_its_start_gets_a_second_try(
    toy, tmp_path, monkeypatch, deaths, failures
):
    """Two kernels that start at the same moment can draw the same port."""
    tries = tmp_path / "tries"
    script = f"echo x >> {tries}; test $(wc -l < {tries}) -gt {deaths} || exit 1; exec "
    kernel = f"{sys.executable} -m ipykernel_launcher -f {{connection_file}}"
    spec = {"argv": ["sh", "-c", script + kernel], "display_name": "weak", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    run_notebook = cells("run-one")["run_notebook"]
    text = run_notebook(toy, {"SEED": 0, "STUDY": "s"}, tmp_path / "copies", tmp_path)
    assert bool(text) == bool(failures) and (not text or "seed 0 failed" in text)
    assert (tmp_path / "s-0.txt").exists() != bool(failures)
    assert len(tries.read_text().splitlines()) == 2


def test_an_interrupted_study_goes_on_where_it_stopped(monkeypatch, capsys):
    """Seeds that have a record are not run again."""
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    asked = []
    stored = [{"seed": seed, "dataset": "MNIST", "name": ""} for seed in (0, 1, 2, 5)]
    fake = SimpleNamespace(load_records=lambda _: stored, is_smoke_test=lambda: False)
    run_study = lambda jobs, *_: asked.extend(v["SEED"] for _, v in jobs) or []  # noqa: E731
    names = {"SEEDS": 7, "STUDY": "s", "SCHEDULER": None, "STEP_6": None, "run_study": run_study}
    cells("run", **names, utils=fake)
    assert asked == [3, 4, 6]
    assert "4 of 7 runs have a record; to run now: 3" in capsys.readouterr().out


def variants() -> dict:
    """The cells that make the ablation's variants, executed."""
    return cells("study", "variants", "make-variant")


def test_a_variant_differs_from_its_step_in_the_edited_cell_only(tmp_path):
    scope = variants()
    for name, (source, _, edits) in scope["VARIANTS"].items():
        path, diff = scope["make_variant"](name, tmp_path)
        made = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
        step = nbformat.read(manage.NOTEBOOKS / f"{source}.ipynb", as_version=4).cells
        differ = [cell.id for cell in step if made[cell.id] != cell.source]
        assert differ == (["model"] if edits else []) and bool(diff) == bool(edits)


def test_an_edit_that_finds_nothing_stops_the_ablation(tmp_path):
    scope = variants()
    scope["VARIANTS"]["nothing"] = ("06_lr_schedule", {}, [("not in the cell", "")])
    with pytest.raises(ValueError, match="once in the network cell"):
        scope["make_variant"]("nothing", tmp_path)


def test_variants_lack_what_their_names_say(tmp_path):
    """The network of each variant, built: its layers and its parameters."""
    from torch import nn

    scope, networks = variants(), {}
    for name, (_, values, _) in scope["VARIANTS"].items():
        notebook = nbformat.read(scope["make_variant"](name, tmp_path)[0], as_version=4)
        source = next(cell.source for cell in notebook.cells if cell.id == "model")
        names = {"nn": nn, "DROPOUT": 0.01} | values
        exec(source, names)
        networks[name] = names["model"]
    has = {n: {type(m) for m in network.modules()} for n, network in networks.items()}
    assert all((nn.BatchNorm2d in has[n]) == (n != "without_batch_norm") for n in has)
    assert all((nn.AdaptiveAvgPool2d in has[n]) == (n != "flatten_head") for n in has)
    rates = {m.p for m in networks["without_dropout"].modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.0}
    assert utils.count_parameters(networks["flatten_head"]) == 24_826
    for name in ("without_dropout", "without_augmentation", "constant_rate"):
        assert utils.count_parameters(networks[name]) == 19_066


def test_the_ablation_runs_only_what_has_no_record(monkeypatch, capsys):
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    scope = cells("variants")
    stored = [{"name": name, "seed": 0} for name in scope["VARIANTS"]][1:]
    fake = SimpleNamespace(load_records=lambda _: stored, is_smoke_test=lambda: False)
    asked = []
    names = {
        "ABLATION_SEEDS": 2,
        "LEAVE_OUT": tuple(scope["VARIANTS"]),
        "ABLATION": "a",
        "SCHEDULER": None,
        "VARIANTS": scope["VARIANTS"],
        "notebooks": dict.fromkeys(scope["VARIANTS"], "path"),
        "run_study": lambda jobs, *_: asked.extend(values for _, values in jobs) or [],
    }
    cells("run-ablation", **names, utils=fake)
    first = next(iter(scope["VARIANTS"]))
    expected = [(first, 0)] + [(name, 1) for name in scope["VARIANTS"]]
    assert sorted((v["NAME"], v["SEED"]) for v in asked) == sorted(expected)
    assert all(values["STUDY"] == "a" and values["BAR"] == 0 for values in asked)
    assert [v["DROPOUT"] for v in asked if v["NAME"] == "without_dropout"] == [0.0]


@pytest.mark.parametrize("study", ["seeds", "ablation"])
def test_the_published_runs_are_comparable(study):
    """Same data, epochs, threads and libraries throughout: only what is varied differs."""
    records = utils.load_records(study)
    keys = ("train_images", "val_images", "test_images", "epochs", "batch_size", "threads")
    assert {tuple(r[key] for key in keys) for r in records} == {(55_000, 5_000, 10_000, 19, 128, 1)}
    assert len({r["versions"]["torch"] for r in records}) == 1
    seeds = {name: [] for name in {r["name"] for r in records}}
    for record in records:
        seeds[record["name"]].append(record["seed"])
        assert record["test_accuracy"] == record["test_correct"] / 100
    assert all(sorted(runs) == list(range(len(runs))) for runs in seeds.values())
    shown = cells("parameters")
    if study == "ablation":
        for name in shown["LEAVE_OUT"]:
            assert len(seeds[name]) >= shown["ABLATION_SEEDS"] >= 5
    else:
        assert len(records) == shown["SEEDS"]
        assert all(len(r["history"]["test_accuracy"]) == 19 for r in records)


def test_the_text_says_what_the_records_say():
    full, left_out = utils.load_records("seeds"), {}
    for record in utils.load_records("ablation"):
        left_out.setdefault(record["name"], []).append(record)
    accuracies = {n: [r["test_accuracy"] for r in group] for n, group in left_out.items()}
    last = [r["test_accuracy"] for r in full]
    constant = left_out["constant_rate"]
    spread = [  # of the validation accuracy, epoch by epoch, for the last five
        [statistics.stdev(r["history"]["val_accuracy"][e] for r in runs) for e in range(-5, 0)]
        for runs in (constant, full)
    ]
    assert sum(map(gt, *spread)) == 4, "the constant rate scatters more in most of them ..."
    assert statistics.stdev(accuracies["constant_rate"]) < statistics.stdev(last), "... but"

    loss = {n: statistics.mean(last) - statistics.mean(v) for n, v in accuracies.items()}
    assert 0.4 < loss["without_augmentation"] / loss["constant_rate"] < 0.6, "about half"
    assert 0.28 < loss["without_batch_norm"] / loss["constant_rate"] < 0.42, "about a third"

    def interval(a: str, against: list[float], level: float) -> tuple[float, float]:
        test = stats.ttest_ind(accuracies[a], against, equal_var=False)
        return tuple(test.confidence_interval(level))

    low, high = interval("without_batch_norm", accuracies["without_augmentation"], 0.95)
    assert low < 0 < high, "which of the two costs more, five runs cannot say"
    below = [n for n in loss if interval(n, last, 0.95)[1] < 0]
    assert sorted(below) == ["constant_rate", "without_augmentation", "without_batch_norm"]
    assert [n for n in below if interval(n, last, 0.99)[1] > 0] == ["without_batch_norm"]

    source = manage.code_cells("08_many_seeds")["labels"].source
    known = set(map(int, re.findall(r"\b\d{3,4}\b", source.partition("images =")[0])))
    wrong = [set(r["test_errors"]) for r in full]
    share = sum(len(w & known) for w in wrong) / sum(map(len, wrong))
    assert len(known) == 15
    assert 0.2 < share < 0.25, "more than a fifth"
    shared = statistics.mean(len(a & b) / len(a) for a, b in itertools.permutations(wrong, 2))
    assert 0.5 < shared < 0.65, "a little more than half"

    def errors(runs: list[dict]) -> tuple[float, float]:
        train = 100 - statistics.mean(r["clean_train_accuracy"] for r in runs)
        return train, 100 - statistics.mean(r["history"]["val_accuracy"][-1] for r in runs)

    train, val = zip(*(errors(left_out[n]) for n in left_out), strict=True)
    gaps = dict(zip(left_out, map(sub, val, train), strict=True))
    own = errors(full)[1] - errors(full)[0]
    assert gaps.pop("without_augmentation") > 1.5 * own
    assert all(abs(gap - own) < 0.05 for gap in gaps.values()), "only augmentation moves it much"
    for name in ("constant_rate", "without_batch_norm"):
        assert all(map(gt, errors(left_out[name]), errors(full))), "they lower both errors"
    assert all(
        abs(a - b) < 0.03
        for a, b in zip(errors(left_out["without_dropout"]), errors(full), strict=True)
    )


def test_of_the_search_only_what_was_tried_for_the_recipe_counts(monkeypatch, capsys):
    """Notebook 09's configurations are kept beside it, and are not step 6's."""
    stored = [{"seed": s, "dataset": "MNIST", "name": n} for s, n in enumerate(("a", "smallest-1"))]
    fake = SimpleNamespace(load_records=lambda _: stored, is_smoke_test=lambda: False)
    names = {
        "SEEDS": 2,
        "STUDY": "s",
        "SCHEDULER": None,
        "STEP_6": None,
        "run_study": lambda *_: [],
    }
    cells("run", **names, utils=fake)
    assert "among 1 tried" in capsys.readouterr().out
