"""Colab as it really happens: an empty folder, a fresh environment, only the .ipynb, no checkout.

`git` is redirected to a bare clone of this working tree (``url.<path>.insteadOf``). The kernel's
virtual environment is new and empty, but sees what Colab has preinstalled, in a folder of links to
the packages that run this test (torch again for each notebook would be gigabytes). What Colab lacks
is out of reach, so that the set-up cell has to install it. One notebook runs so by default, all of
them with ``--full``; each twice in the same folder.
"""

import ast
import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import manage
import utils

# What the notebooks may rely on there, with all that it needs; anything else counts as absent.
# https://github.com/googlecolab/backend-info/blob/main/pip-freeze.gpu.txt of June 2026
PREINSTALLED = {
    **{"torch": "2.11.0", "torchvision": "0.26.0", "torchsummary": "1.5.1", "safetensors": "0.7.0"},
    **{"numpy": "2.0.2", "scipy": "1.16.3", "scikit-learn": "1.6.1", "pandas": "2.2.2"},
    **{"matplotlib": "3.10.0", "pillow": "11.3.0", "tqdm": "4.67.3", "pytest": "8.4.2"},
    **{"ipykernel": "6.17.1", "nbformat": "5.10.4", "nbclient": "0.10.4", "ruff": "0.15.15"},
    **{"dask": "2026.1.1", "distributed": "2026.1.1", "pip": "24.1.2"},
}
ABSENT = ["papermill", "nbval", "hypothesis", "utils", "manage"]
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
    if not (utils.HERE / ".git").exists():
        pytest.skip("not a git checkout")
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


def with_dependencies(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The distributions of this environment that ``names`` need, by their canonical name."""
    found: dict[str, metadata.Distribution] = {}
    todo, seen = [Requirement(name) for name in names], set()
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), ("", *sorted(wanted.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not needed here: of another platform, or nothing that a notebook uses
        for need in map(Requirement, found[name].requires or []):
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras):
                todo.append(need)
    return found


def link(distribution: metadata.Distribution, folder: Path) -> None:
    """Make a distribution's top-level folders and files appear in ``folder``."""
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        if not (folder / top).exists():  # several may share one, such as nvidia/
            (folder / top).symlink_to(Path(distribution.locate_file(top)))


class Colab(NamedTuple):
    """An empty folder to work in, a fresh environment's Python, and what it sees preinstalled."""

    folder: Path
    python: Path
    preinstalled: set[str]

    def installed(self) -> set[str]:
        """What has been installed into the fresh environment itself."""
        own = self.python.parent.parent.glob("lib*/python*/site-packages/*.dist-info")
        return {canonicalize_name(path.name.split("-")[0]) for path in own}

    def finds(self, module: str) -> bool:
        """Whether the environment's own Python could import a module."""
        code = f"import importlib.util as u, sys; sys.exit(not u.find_spec({module!r}))"
        return subprocess.run([self.python, "-I", "-c", code]).returncode == 0


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Colab:
    """Colab's machine; kernels started in this test are its, and believe that they are there."""
    visible = with_dependencies(PREINSTALLED)
    view = tmp_path / "preinstalled"
    view.mkdir()
    for distribution in visible.values():
        link(distribution, view)
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "preinstalled.pth").write_text(f"{view}\n")
    python = environment / "bin" / "python"
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    stub = tmp_path / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub.parent / "__init__.py").touch()
    folder = tmp_path / "content"
    folder.mkdir()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setenv("SMOKE_TEST", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("DATASET", os.environ.get("DATASET", "mnist"))
    if "MNIST_DIR" in os.environ:  # relative to this repository, which the kernel cannot see
        monkeypatch.setenv("MNIST_DIR", str((utils.HERE / os.environ["MNIST_DIR"]).resolve()))
    return Colab(folder, python, set(visible))


def redirect(monkeypatch, target: str) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{target}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"https://github.com/{manage.settings()[0]}")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")


def run_all(path: Path, colab: Colab) -> nbformat.NotebookNode:
    """Execute a copy of a notebook; a last cell tells which Python and which torch ran it."""
    notebook = nbformat.read(shutil.copy(path, colab.folder), as_version=4)
    probe = "import sys, torch; print(sys.executable, torch.__file__, sep='\\n')"
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    resources = {"metadata": {"path": str(colab.folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return notebook


def asked_for(path: Path) -> set[str]:
    """The distributions that a notebook's set-up cell knows how to install."""
    (setup,) = [c for c in nbformat.read(path, as_version=4).cells if c.get("id") == "setup"]
    for node in ast.walk(ast.parse(setup.source)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "needed":
            values = ast.literal_eval(node.value).values()
            return {canonicalize_name(Requirement(value).name) for value in values}
    raise AssertionError(f"{path.name}: the set-up cell names nothing that it needs")


def need_registry(colab: Colab) -> None:
    """Skip where pip has no registry to install from: not this repository's fault."""
    pip = [colab.python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    done = subprocess.run([*pip, "--quiet", "pip"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip reaches no package registry: {done.stderr.strip().splitlines()[-1]}")


def test_requirements_would_replace_nothing_there():
    lines = (utils.HERE / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(text) for line in lines if (text := line.split("#")[0].strip())]
    shared = [need for need in wanted if need.name in PREINSTALLED]
    if all(str(need.specifier).startswith("==") for need in wanted):
        pytest.skip("pinned to the oldest versions by that job of the CI")
    assert len(shared) > 8
    assert [str(need) for need in shared if PREINSTALLED[need.name] not in need.specifier] == []


def test_the_fresh_environment_sees_what_colab_has_and_no_more(colab):
    assert colab.preinstalled >= {"torch", "numpy", "ipykernel", "scikit-learn", "pip"}
    assert colab.installed() == set()
    assert colab.finds("torch") and colab.finds("distributed") and colab.finds("scipy")
    assert not [module for module in ABSENT if colab.finds(module)]
    assert not {canonicalize_name(name) for name in ABSENT} & colab.preinstalled


@pytest.mark.parametrize("path", PARAMETERS)
def test_run_all_twice_from_nothing(path, colab, bare, monkeypatch):
    redirect(monkeypatch, f"file://{bare}")
    missing = asked_for(path) - colab.preinstalled
    if missing:
        need_registry(colab)
    for _ in range(2):
        notebook = run_all(path, colab)
        counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        executable, torch_file = notebook.cells[-1].outputs[0].text.split()
        assert executable == str(colab.python)
        assert torch_file.startswith(str(colab.folder.parent / "preinstalled"))
        assert missing <= colab.installed(), "the set-up cell installs what is missing"
        assert not colab.installed() & colab.preinstalled, "and leaves alone what is there"
        assert missing or not colab.installed()
    fetched = colab.folder / manage.settings()[0].split("/")[1]
    assert sorted(p.name for p in colab.folder.iterdir()) == sorted([path.name, fetched.name])
    changed = git("-C", fetched, "status", "--porcelain")
    assert changed == "", "a smoke run changes nothing published"


def test_a_clone_that_fails_gives_one_clear_sentence(colab, tmp_path, monkeypatch):
    redirect(monkeypatch, f"file://{tmp_path}/nowhere.git")
    with pytest.raises(CellExecutionError) as caught:
        run_all(PATHS[0], colab)
    assert caught.value.ename == "RuntimeError"
    assert caught.value.evalue.startswith(
        f"Could not fetch https://github.com/{manage.settings()[0]}"
    )


def test_an_installation_that_fails_gives_one_clear_sentence(colab, bare, monkeypatch):
    """Not even torchsummary is there, and pip finds no registry."""
    redirect(monkeypatch, f"file://{bare}")
    for path in (colab.folder.parent / "preinstalled").glob("torchsummary*"):
        path.unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(colab.folder))
    with pytest.raises(CellExecutionError) as caught:
        run_all(PATHS[0], colab)
    assert caught.value.ename == "RuntimeError"
    assert caught.value.evalue.startswith("Could not install torchsummary: ")
