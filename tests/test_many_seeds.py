"""The study of notebook 08: failures are reported, finished runs skipped, any cluster used."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import manage
import utils


def cells(*keys: str, **scope: object) -> dict:
    """Execute cells of notebook 08 by their id; return their names."""
    scope |= {"__name__": "__main__", "os": os, "utils": scope.get("utils", utils)}
    source = manage.code_cells("08_many_seeds")
    exec("from distributed import Client, as_completed\nfrom tqdm import tqdm", scope)
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


def check(failed: list[str], folder: Path) -> None:
    assert len(failed) == 1 and "seed 1 failed" in failed[0] and "seed one breaks" in failed[0]
    assert sorted(p.name for p in folder.glob("*.txt")) == ["s-0.txt", "s-2.txt"]


def test_a_failed_run_is_reported_and_does_not_stop_the_rest(toy):
    run_study = cells("run-one", "study")["run_study"]
    check(run_study([0, 1, 2], "s", notebook=toy), toy.parent)


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
        with scope["Client"](address, timeout="30s") as client:
            client.wait_for_workers(2, timeout=60)
        check(scope["run_study"]([0, 1, 2], "s", address, toy), toy.parent)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def test_an_interrupted_study_goes_on_where_it_stopped(monkeypatch, capsys):
    """Seeds that have a record are not run again."""
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    asked = []
    stored = [{"seed": seed, "dataset": "MNIST"} for seed in (0, 1, 2, 5)]
    fake = SimpleNamespace(load_records=lambda _: stored, is_smoke_test=lambda: False)
    run_study = lambda seeds, *_: asked.extend(seeds) or []  # noqa: E731
    names = {"SEEDS": 7, "STUDY": "s", "SCHEDULER": None, "run_study": run_study}
    cells("run", **names, utils=fake)
    assert asked == [3, 4, 6]
    assert "4 of 7 runs have a record; to run now: 3" in capsys.readouterr().out
