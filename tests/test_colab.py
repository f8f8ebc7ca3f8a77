"""Colab as it really happens: an empty folder, only the .ipynb, a stub google.colab, no checkout.

`git` is redirected to a bare clone of this working tree (``url.<path>.insteadOf``). One notebook
runs so by default, all of them with ``--full``; each twice in the same folder.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import manage
import utils

PATHS = sorted((utils.HERE / "notebooks").glob("*.ipynb"))
PARAMETERS = [
    pytest.param(path, marks=[pytest.mark.full] if path != PATHS[0] else [], id=path.stem)
    for path in PATHS
]


def git(*arguments: str | Path) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A bare clone of the working tree as it is, on the branch that the set-up cells name."""
    folder = tmp_path_factory.mktemp("origin")
    listed = git("-C", utils.HERE, "ls-files", "-co", "--exclude-standard").splitlines()
    for name in listed:
        if (utils.HERE / name).exists():
            (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(utils.HERE / name, folder / "work" / name)
    git("init", "-q", "-b", manage.settings()[1], folder / "work")
    git("-C", folder / "work", "add", "-A")
    git("-C", folder / "work", "commit", "-qm", "snapshot")
    git("clone", "-q", "--bare", folder / "work", folder / "bare.git")
    return folder / "bare.git"


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Path:
    """An empty folder whose kernels believe that they are in Colab."""
    stub = tmp_path / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub.parent / "__init__.py").touch()
    content = tmp_path / "content"
    content.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setenv("SMOKE_TEST", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("DATASET", os.environ.get("DATASET", "mnist"))
    if "MNIST_DIR" in os.environ:  # relative to this repository, which the kernel cannot see
        monkeypatch.setenv("MNIST_DIR", str((utils.HERE / os.environ["MNIST_DIR"]).resolve()))
    return content


def redirect(monkeypatch, target: str) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{target}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"https://github.com/{manage.settings()[0]}")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")


def run_all(path: Path, folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(shutil.copy(path, folder), as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


@pytest.mark.parametrize("path", PARAMETERS)
def test_run_all_twice_from_nothing(path, colab, bare, monkeypatch):
    redirect(monkeypatch, f"file://{bare}")
    for _ in range(2):
        notebook = run_all(path, colab)
        counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
    fetched = colab / manage.settings()[0].split("/")[1]
    assert sorted(p.name for p in colab.iterdir()) == sorted([path.name, fetched.name])
    assert (
        git("-C", fetched, "status", "--porcelain") == ""
    )  # a smoke run changes nothing published


def test_a_clone_that_fails_gives_one_clear_sentence(colab, tmp_path, monkeypatch):
    redirect(monkeypatch, f"file://{tmp_path}/nowhere.git")
    with pytest.raises(CellExecutionError) as caught:
        run_all(PATHS[0], colab)
    assert caught.value.ename == "RuntimeError"
    assert caught.value.evalue.startswith(
        f"Could not fetch https://github.com/{manage.settings()[0]}"
    )
