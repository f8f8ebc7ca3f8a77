"""Colab and Kaggle as they really happen: an empty folder, a fresh environment, only the .ipynb.

`git` is redirected to a bare clone of this working tree (``url.<path>.insteadOf``). The kernel's
virtual environment is new and empty, but sees what Colab has preinstalled, in a folder of links to
the packages that run this test (torch again for each notebook would be gigabytes). What Colab lacks
lies, packed again, in a local registry: the set-up cell has to install it. With ``--full`` all
notebooks run so, each twice in the same folder.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
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
from manage import NOTEBOOKS, ROOT

# What the notebooks may rely on there, with all that it needs; anything else counts as absent.
# https://github.com/googlecolab/backend-info/blob/main/pip-freeze.gpu.txt of June 2026. Kaggle's
# image is built on Colab's and takes nothing of this away (Kaggle/docker-python, August 2026).
PREINSTALLED = {
    **{"torch": "2.11.0", "torchvision": "0.26.0", "torchsummary": "1.5.1", "safetensors": "0.7.0"},
    **{"numpy": "2.0.2", "scipy": "1.16.3", "scikit-learn": "1.6.1", "pandas": "2.2.2"},
    **{"matplotlib": "3.10.0", "pillow": "11.3.0", "tqdm": "4.67.3", "packaging": "26.2"},
    **{"ipykernel": "6.17.1", "ipython": "7.34.0", "nbformat": "5.10.4", "nbclient": "0.10.4"},
    **{"dask": "2026.1.1", "distributed": "2026.1.1", "jinja2": "3.1.6", "pip": "24.1.2"},
}
ABSENT = ["captum", "papermill", "nbval", "hypothesis", "parameters", "manage"]
NAMES = [name for name in manage.names() if "/" not in name]
ADDRESS = f"https://github.com/{manage.settings()[0]}"
# Imported, but named only by the package that needs them.
COME_WITH = {"numpy": "torchvision", "pillow": "torchvision", "ipython": "ipykernel"}
COME_WITH |= {"nbformat": "papermill", "nbclient": "papermill", "packaging": "pytest"}
COME_WITH |= {"distributed": "dask"}


def requirements(name: str) -> dict[str, Requirement]:
    """A requirements file (and those that it includes) by package."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("-r "):
            found |= requirements(text.removeprefix("-r "))
        elif text:
            found[canonicalize_name(Requirement(text).name)] = Requirement(text)
    return found


def git(*arguments: str | Path) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A bare clone of the working tree as it is, on the branch that the set-up cells name."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("origin")
    listed = git("-C", ROOT, "ls-files", "-co", "--exclude-standard").splitlines()
    for name in filter(lambda name: (ROOT / name).exists(), listed):
        (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "work" / name)
    git("init", "-q", "-b", manage.settings()[1], folder / "work")
    git("-C", folder / "work", "add", "-A")
    git("-C", folder / "work", "commit", "-qm", "snapshot")
    git("clone", "-q", "--bare", folder / "work", folder / "bare.git")
    return folder / "bare.git"


def with_dependencies(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The distributions of this environment that ``names`` need, by their canonical name."""
    found, todo = {}, [(name, "") for name in names]
    for name, extra in todo:  # grows on the way
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not needed here: of another platform, or nothing that a notebook uses
        for need in map(Requirement, found[name].requires or []):
            if not need.marker or need.marker.evaluate({"extra": extra}):
                pairs = [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
                todo += [pair for pair in pairs if pair not in todo]
    return found


def link(distribution: metadata.Distribution, folder: Path) -> None:
    """Make a distribution's top-level folders and files appear in ``folder``."""
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        if not (folder / top).exists():  # several may share one, such as nvidia/
            (folder / top).symlink_to(Path(distribution.locate_file(top)))


def pack(distribution: metadata.Distribution, folder: Path) -> None:
    """A wheel of a distribution in pure Python, made from its installed files."""
    name = f"{distribution.name.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in distribution.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                wheel.write(distribution.locate_file(file), file)


class Machine(NamedTuple):
    """A folder to work in, a fresh environment's Python, and what it sees preinstalled."""

    folder: Path
    python: Path
    preinstalled: set[str]

    def installed(self) -> set[str]:
        """What has been installed into the fresh environment itself."""
        own = self.python.parent.parent.glob("lib*/python*/site-packages/*.dist-info")
        return {canonicalize_name(path.name.split("-")[0]) for path in own}

    def run(self, name: str, cells: int | None = None) -> nbformat.NotebookNode:
        """Execute (the first cells of) a notebook; a last one tells which Python and torch ran."""
        path = shutil.copy(NOTEBOOKS / f"{name}.ipynb", self.folder)
        notebook = nbformat.read(path, as_version=4)
        probe = "import sys, torch; print(sys.executable, torch.__file__, sep='\\n')"
        notebook.cells = [*notebook.cells[:cells], nbformat.v4.new_code_cell(probe)]
        resources = {"metadata": {"path": str(self.folder)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        return notebook


@pytest.fixture(params=["Colab", "Kaggle"])
def machine(request, tmp_path, monkeypatch) -> Machine:
    """Colab's or Kaggle's machine; kernels started in this test believe that they are there."""
    visible = with_dependencies(PREINSTALLED)
    names = ("preinstalled", "registry", "working", "stub/google", "jupyter/kernels/python3")
    view, registry, folder, stub, kernel = (tmp_path / name for name in names)
    for path in (view, registry, folder, stub, kernel):
        path.mkdir(parents=True)
    for distribution in visible.values():
        link(distribution, view)
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "preinstalled.pth").write_text(f"{view}\n")
    python = tmp_path / "venv" / "bin" / "python"
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "test", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    if request.param == "Colab":
        (stub / "colab.py").touch()
    for name in requirements("requirements.txt").keys() - visible.keys():
        pack(metadata.distribution(name), registry)
    settings = {"JUPYTER_PATH": tmp_path / "jupyter", "PYTHONPATH": stub.parent, "SMOKE_TEST": 1}
    settings |= {"TQDM_DISABLE": 1, "DATASET": os.environ.get("DATASET", "mnist")}
    settings |= {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": registry, "GIT_TERMINAL_PROMPT": 0}
    if "MNIST_DIR" in os.environ:  # relative to this repository, which the kernel cannot see
        settings["MNIST_DIR"] = (ROOT / os.environ["MNIST_DIR"]).resolve()
    for key, value in (settings | {"GIT_CONFIG_COUNT": 1, "GIT_CONFIG_VALUE_0": ADDRESS}).items():
        monkeypatch.setenv(key, str(value))
    return Machine(folder, python, set(visible))


def redirect(monkeypatch, target: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{target}.insteadOf")


def test_requirements_would_replace_nothing_there():
    wanted = requirements("requirements.txt")
    if all("==" in str(need) for need in wanted.values()):
        pytest.skip("pinned to the oldest versions by that job of the CI")
    needs = [need for name, need in wanted.items() if name in PREINSTALLED]
    assert len(needs) > 8
    for name in wanted.keys() - PREINSTALLED.keys():  # nor would what is missing there
        needs += [need for need in map(Requirement, metadata.requires(name)) if not need.marker]
    assert [n for n in needs if PREINSTALLED.get(n.name, "0") not in n.specifier] == []


def imported(paths: list[Path], notebooks: Iterable[str]) -> set[str]:
    """The top-level modules that modules and notebooks import."""
    sources = [path.read_text(encoding="utf-8") for path in paths]
    sources += [cell["source"] for name in notebooks for cell in manage.code_cells(name).values()]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_each_import_is_named_by_a_requirement():
    modules = sorted(ROOT.glob("*.py"))
    tools = [path for part in (NOTEBOOKS, ROOT / "tests") for path in part.glob("*.py")]
    own = {path.stem for path in modules + tools} | sys.stdlib_module_names
    packages = metadata.packages_distributions()
    for file, found in {
        # records.py imports those two only to run a study
        "requirements.txt": imported(modules, manage.STEPS) - {"papermill", "distributed"},
        "requirements-dev.txt": imported(modules + tools, manage.names()),
    }.items():
        named = requirements(file).keys()
        for package in {canonicalize_name(packages[module][0]) for module in found - own} - named:
            assert COME_WITH.get(package) in named, f"{file} must name {package}"
            needs = map(Requirement, metadata.requires(COME_WITH[package]))
            assert package in {canonicalize_name(need.name) for need in needs}


@pytest.mark.parametrize("machine", ["Colab"], indirect=True)
def test_the_fresh_environment_sees_what_colab_has_and_no_more(machine):
    assert machine.preinstalled >= {"torch", "numpy", "ipykernel", "scikit-learn", "pip"}
    assert machine.installed() == set()
    code = "import importlib.util as u, sys; print(*filter(u.find_spec, sys.argv[1:]))"
    command = [machine.python, "-I", "-c", code, *ABSENT, "torch", "scipy"]
    assert subprocess.check_output(command, text=True) == "torch scipy\n"


RUNS = [("Kaggle", 1, NAMES[0]), *(("Colab", 2, name) for name in NAMES)]


@pytest.mark.full
@pytest.mark.parametrize(("machine", "times", "name"), RUNS, indirect=["machine"])
def test_run_all_from_nothing(machine, times, name, bare, monkeypatch):
    redirect(monkeypatch, bare)
    for _ in range(times):
        notebook = machine.run(name)
        counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        executable, torch_file = notebook.cells[-1].outputs[0].text.split()
        assert executable == str(machine.python) and f"{machine.folder.parent}/pre" in torch_file
        missing = requirements("requirements.txt").keys() - machine.preinstalled
        assert machine.installed() == missing, "what is missing, and nothing that is there"
    fetched = set(machine.folder.iterdir()) - {machine.folder / f"{name}.ipynb"}
    assert len(fetched) == times, "a new folder each time: nothing stale, half-done or foreign"
    for folder in fetched:
        assert git("-C", folder, "status", "--porcelain") == "", "as published"


@pytest.mark.full
@pytest.mark.parametrize("machine", ["Kaggle"], indirect=True)
def test_what_fails_gives_one_clear_sentence_and_can_be_repeated(machine, bare, monkeypatch):
    """First the internet is off, then pip finds no registry; then both are there."""
    redirect(monkeypatch, machine.folder / "nowhere")
    with pytest.raises(CellExecutionError) as no_clone:
        machine.run(NAMES[0])
    redirect(monkeypatch, bare)
    with monkeypatch.context() as patch, pytest.raises(CellExecutionError) as no_install:
        patch.setenv("PIP_FIND_LINKS", str(machine.folder))
        machine.run(NAMES[0])
    for caught, reason in ((no_clone, "nowhere"), (no_install, "captum")):
        assert caught.value.ename == "RuntimeError"
        assert caught.value.evalue.startswith(f"Could not fetch {ADDRESS} ")
        assert "Internet off?" in caught.value.evalue and reason in caught.value.evalue
    machine.run(NAMES[0], cells=2)
    assert machine.installed() == {"captum"}


@pytest.mark.full
@pytest.mark.parametrize("machine", ["Kaggle"], indirect=True)
def test_one_value_pins_a_commit(machine, bare, monkeypatch):
    redirect(monkeypatch, bare)
    commit = git("-C", bare, "rev-parse", "HEAD").strip()
    monkeypatch.chdir(machine.folder)
    setup = manage.code_cells(NAMES[0])["setup"]["source"]
    pinned = setup.replace(f', "{manage.settings()[1]}"', f', "{commit}"')
    code = f"{pinned}\nprint(os.getcwd())"
    found = subprocess.run([machine.python, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0 and pinned != setup, found.stderr
    assert git("-C", found.stdout.strip(), "rev-parse", "HEAD").strip() == commit
