"""The hostile days of records, weights, names, pictures and lines: each ends in a sentence of our
own or in success, and every remedy that is printed is tried as it is printed.

(Hostile mirrors and caches are in test_mnist.py, hostile parameters in test_parameters.py.)
"""

import ast
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_manage import put
from test_mnist import FILES, NAMES, PACKED, layout, sha256
from torch import nn

import files
import manage
import mnist
import parameters
import records
import soundness
import utils
from claims import run_cells

ROOT = records.HERE


def command(*words: object, cwd: Path) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def obey(sentence: str, path: Path) -> None:
    """Do what a remedy says, word for word, and from a folder that has nothing to do with it."""
    assert "\n" not in sentence and str(path) in sentence
    if "Move the folder away." in sentence:
        path.rename(path.with_name("away"))
    if restore := re.search(r"Restore it: (git .*)$", sentence):
        done = subprocess.run(restore[1], shell=True, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert "Delete it if it is there, and repeat the run that made it." in sentence
        path.unlink(missing_ok=True)


# --- Records --------------------------------------------------------------------------------------


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def a_record(**change: object) -> dict:
    """A sound record of two epochs on MNIST."""
    history = {key: [0.5, 0.25] for key in ("train_loss", "val_loss", "val_accuracy", "seconds")}
    record = {"study": "steps", "name": "toy", "seed": 0, "epochs": 2, "hyperparameters": {"lr": 1}}
    record |= {"parameters": 8, "dataset": "MNIST", "smoke_test": False, "train_images": 55_000}
    record |= {"val_images": 5_000, "test_images": 100, "test_accuracy": 98.0, "test_correct": 98}
    record |= {"test_errors": [3, 5], "batch_size": 128, "seconds": 0.75, "history": history}
    return record | records.environment("cpu") | change


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A checkout with one published record and its weights, in a folder with a name to quote."""
    root = tmp_path / "it's my $HOME"
    results = root / "notebooks" / "results"
    records.save_record(a_record(), small_network(), results)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "published"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command("git", *who, *words, cwd=root)
    monkeypatch.setattr(soundness, "HERE", root)
    return results


WRONG_TYPES = {str: [1], int: "1", float: "0.5", dict: [1], list: {"0": 1}, bool: "no"}
CHANGES: dict[str, dict] = {
    f"{key} is of another type": {key: WRONG_TYPES[kind]}
    for key, kind in (soundness.FIELDS | soundness.EXTRA).items()
}
CHANGES |= {f"{key} is null": {key: None} for key in soundness.FIELDS if key[:5] != "test_"}
CHANGES |= {
    "accuracy is NaN": {"test_accuracy": math.nan},
    "seconds are infinite": {"seconds": math.inf},
    "a loss is NaN": {"history": {"val_loss": [0.5, math.nan]}},
    "a hyperparameter is NaN": {"hyperparameters": {"lr": math.nan}},
    "accuracy contradicts": {"test_accuracy": 99.0},
    "accuracy is huge": {"test_accuracy": 10**400},
    "more correct than images": {"test_correct": 101, "test_accuracy": 101.0},
    "no images": {"test_images": 0},
    "images as text": {"test_images": "100"},
    "true is no number": {"epochs": True},
    "no epoch": {"epochs": 0, "history": {"val_loss": []}},
    "mistakes twice": {"test_errors": [3, 3]},
    "mistakes as text": {"test_errors": ["3", "5"]},
    "a mistake beyond the images": {"test_errors": [3, 100]},
    "a mistake too many": {"test_errors": [3, 5, 7]},
    "history too short": {"history": {"val_loss": [0.5]}},
    "history uneven": {"history": {"val_loss": [0.5, 0.2], "seconds": [1.0]}},
    "history empty": {"history": {}},
    "history of texts": {"history": {"val_loss": ["low", "lower"]}},
    "history of a number": {"history": {"val_loss": 2}},
    "another seed": {"seed": 1},
    "another name": {"name": "other"},
    "another study": {"study": "../steps"},
}
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "half": json.dumps(a_record()).encode()[:200],
    "byte-order mark": b"\xef\xbb\xbf" + json.dumps(a_record()).encode(),
    "UTF-16": json.dumps(a_record()).encode("utf-16"),
    "Latin-1": b'{"study": "\xe9"}',
    "zeros": bytes(300),
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "nesting": b"[" * 100_000,
    "an endless number": b'{"seed": ' + b"9" * 10_000 + b"}",
    "two documents": b"{} {}",
    "a web page": b"<html>404</html>",
    "a conflict": b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> main\n",
}
LACKS = [key for key in soundness.FIELDS if key != "test_errors"]


def damage(path: Path, what: str) -> None:
    if what in CHANGES:
        path.write_text(json.dumps(a_record() | CHANGES[what]))
    elif what in TEXTS:
        path.write_bytes(TEXTS[what])
    elif what in LACKS:
        path.write_text(json.dumps({k: v for k, v in a_record().items() if k != what}))
    else:
        path.unlink()
        path.mkdir()
        if what == "a full folder":
            (path / "file").write_text("x")


DAMAGES = [*CHANGES, *TEXTS, *LACKS, "an empty folder", "a full folder"]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_record_is_named_with_a_remedy_that_works(repository, what):
    path = repository / "steps" / "toy-seed0.json"
    good = records.load_record(path)
    damage(path, what)
    with pytest.raises(ValueError, match=r"toy-seed0\.json is not a record: ") as told:
        records.load_records("steps", results=repository)
    with pytest.raises(ValueError, match=r"toy-seed0\.json is not a record: "):
        records.table(repository)
    obey(str(told.value), path)
    assert records.load_records("steps", results=repository) == [good]


@pytest.mark.parametrize("copy", ["toy-seed1", "toy-seed0 (1)", "toy-seed00", "copy", ".toy-seed0"])
def test_a_second_file_for_one_seed_does_not_count_twice(repository, copy):
    path = repository / "steps" / "toy-seed0.json"
    other = path.with_name(f"{copy}.json")
    shutil.copy(path, other)
    with pytest.raises(ValueError, match=r"its place is steps/toy-seed0\.json") as told:
        records.load_records("steps", results=repository)
    obey(str(told.value), other)
    assert len(records.load_records("steps", results=repository)) == 1


WEIGHTS = {
    "missing": None,
    "empty": b"",
    "a byte less": slice(0, -1),
    "a byte more": b"more",
    "flipped": slice(None, None, -1),
    "a pickle": b"cos\nsystem\n(S'touch hacked'\ntR.",
    "a huge header": (2**62).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("what", [*WEIGHTS, "an empty folder", "a full folder"])
def test_damaged_weights_are_named_with_a_remedy_that_works(repository, what):
    record = records.load_record(repository / "steps" / "toy-seed0.json")
    path = repository / "steps" / "toy-seed0.safetensors"
    content, new = path.read_bytes(), WEIGHTS.get(what, "folder")
    if new is None:
        path.unlink()
    elif new == "folder":
        damage(path, what)
    else:
        path.write_bytes(
            content[new] if isinstance(new, slice) else content * (new == b"more") + new
        )
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"is missing|does not belong"
    ) as told:
        records.load_weights(small_network(), record, repository)
    obey(str(told.value), path)
    records.load_weights(small_network(), record, repository)
    assert not (repository / "hacked").exists()


@pytest.mark.parametrize("garbage", [b"", b"garbage", bytes(100)])
def test_forged_weights_are_no_network(repository, garbage):
    """Garbage whose hash somebody has put into the record."""
    path = repository / "steps" / "toy-seed0.safetensors"
    path.write_bytes(garbage)
    digest = hashlib.sha256(garbage).hexdigest()
    forged = a_record(weights={"file": path.name, "sha256": digest})
    with pytest.raises(ValueError, match="holds another network"):
        records.load_weights(small_network(), forged, repository)


def test_without_git_the_remedy_is_to_repeat_the_run(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    path = repository / "steps" / "toy-seed0.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a record") as told:
        records.load_record(path)
    obey(str(told.value), path)
    assert records.load_record(records.save_record(a_record(), results=repository))


# --- What is published ----------------------------------------------------------------------------

UNPUBLISHED = {  # a run that is not what is published
    "one epoch": {"epochs": 1, "history": {"seconds": [1.0]}},
    "stopped by hand": {"epochs": 9},
    "another rate": {"hyperparameters": {"lr": 2}},
    "the same once more": {"seconds": 9.0},
    "a smoke test": {"smoke_test": True},
    "another data set": {"dataset": mnist.STAND_IN},
    "another seed in steps": {"seed": 7},
    "another seed, another rate": {"seed": 7, "hyperparameters": {"lr": 2}, "study": "seeds"},
    "another seed, one epoch": {"seed": 7, "study": "seeds"}
    | {"epochs": 1, "history": {"seconds": [1.0]}},
    "a measurement once more": {"study": "inside", "rows": [{"draws": 1}]},
}


@pytest.mark.parametrize("what", UNPUBLISHED)
def test_what_is_published_stays(tmp_path, what):
    for study in ("steps", "seeds"):
        records.save_record(a_record(study=study), small_network(), tmp_path)
    records.save_record(a_record(study="inside", rows=[]), results=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    path = records.save_record(a_record(**UNPUBLISHED[what]), small_network(), tmp_path)
    assert path.is_relative_to(tmp_path / "scratch")
    assert before == {p: p.read_bytes() for p in before}
    assert records.load_weights(small_network(), records.load_record(path), tmp_path)
    assert len(records.table(tmp_path)) == 2


def test_a_new_seed_is_published_and_a_damaged_neighbour_loses_no_run(tmp_path):
    first = records.save_record(a_record(study="seeds"), results=tmp_path)
    second = records.save_record(a_record(study="seeds", seed=7), results=tmp_path)
    assert first.parent == second.parent == tmp_path / "seeds"
    first.write_text("{")
    third = records.save_record(a_record(study="seeds", seed=8), results=tmp_path)
    assert third == tmp_path / "scratch" / "seeds" / "toy-seed8.json" and third.exists()


def test_a_scratch_run_is_in_no_table(tmp_path):
    path = records.save_record(a_record(study="scratch"), results=tmp_path)
    assert records.save_record(a_record(study="scratch", seconds=1.0), results=tmp_path) == path
    assert records.table(tmp_path).empty


@pytest.mark.parametrize("key", ["study", "name"])
@pytest.mark.parametrize(
    "value", ["", "..", "../x", "a b", "a/b", "a\n", "a" * 300, "a\0b", None, 3.5]
)
def test_a_name_that_is_no_files_name_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{key} must be letters, digits, _ and -"):
        records.save_record(a_record(**{key: value}), results=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheduler", ["nonsense://x", "tcp://", "no colon"])
def test_a_cluster_that_is_not_there_is_named(scheduler, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    with pytest.raises(ValueError, match="SCHEDULER: no Dask cluster at "):
        records.run_study([("a", 0)], print, set(), scheduler)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(v, False) for v in ("", "0", "False", "false", "no", "OFF")]
    + [(v, True) for v in ("1", "True", "yes", "on")],
)
def test_a_smoke_test_is_what_it_says(monkeypatch, value, expected):
    monkeypatch.setenv("SMOKE_TEST", value)
    assert utils.is_smoke_test() is expected


@pytest.mark.parametrize("p", [math.nan, 1.0, 0.0])
def test_dropout_that_drops_all_or_nothing_does_not_pass(p):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.1))
    model[1].p = p  # nn.Dropout itself takes a NaN
    row = records.judge(a_record(), model).iloc[3]
    assert row["verdict"] == "FAIL"


# --- Names ----------------------------------------------------------------------------------------


@pytest.fixture
def small_checkout(tmp_path, monkeypatch) -> Path:
    """What `rename` rewrites, in a copy, with two of the notebooks."""
    (tmp_path / "notebooks").mkdir()
    paths = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff")
    for name in (*paths, "notebooks/01_baseline.ipynb", "notebooks/08_many_seeds.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(manage, "ROOT", tmp_path)
    monkeypatch.setattr(manage, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


NO_REPOSITORIES = [
    "",
    "a",
    "/",
    "a/",
    "/b",
    "../..",
    "a/..",
    "a/.",
    "../b",
    "a/b/c",
    "a b/c",
    "a/b\n",
]
NO_REPOSITORIES += [
    'a/b"',
    "a/b\\",
    "a/$(touch x)",
    "a/b;c",
    "ä/b",
    "https://github.com/a/b",
    "a/b?c",
]
NO_REFS = [
    "",
    "a b",
    'a"',
    "a'",
    "a\\",
    "a\n",
    "a\nimport os",
    "-x",
    "--upload-pack=x",
    "../x",
    "a..b",
]
NO_REFS += [
    "a//b",
    "/a",
    "a/",
    "a.",
    ".a",
    "a/.b",
    "a.lock",
    "$(touch x)",
    "a;b",
    "`x`",
    "ä",
    "a~1",
    "a:b",
]


@pytest.mark.parametrize(
    ("repository", "ref"), [(r, "main") for r in NO_REPOSITORIES] + [("a/b", r) for r in NO_REFS]
)
def test_a_name_that_is_none_changes_nothing(small_checkout, repository, ref):
    before = contents(small_checkout)
    with pytest.raises(ValueError, match=r"expected (OWNER/REPO|a branch or tag), got "):
        manage.rename(repository, ref)
    assert contents(small_checkout) == before


OLD = manage.settings()
NAMES_TO_TAKE = [("a/b", "main"), ("me/mnist.2_x-y", "v1.0"), ("OWNER/REPO", "feature/x_1")]
NAMES_TO_TAKE += [(f"{OLD[0]}-2", "main"), (f"{OLD[0]}.2", f"{OLD[1]}-2"), (OLD[0], "a" * 40)]
NAMES_TO_TAKE += [(OLD[0][1:], "main"), ("cdeotte/MNIST-CNN-99.75", "main"), ("1/1", "1"), OLD]


@pytest.mark.parametrize(("repository", "ref"), NAMES_TO_TAKE)
def test_a_name_is_taken_and_given_back(small_checkout, repository, ref):
    """Twice the same name changes nothing more, and the old name brings every byte back."""
    before = contents(small_checkout)
    manage.rename(repository, ref)
    after = contents(small_checkout)
    assert manage.settings() == (repository, ref)
    assert tomllib.loads(after["pyproject.toml"].decode())["tool"]["series"]["ref"] == ref
    for name in ("01_baseline", "08_many_seeds"):
        for cell in manage.code_cells(name).values():
            ast.parse(cell["source"])
        setup = manage.code_cells(name)["setup"]["source"]
        assert f'"{repository}", "{ref}"' in setup
        assert manage.badges(name).split(") ")[0] in manage.read(name)["cells"][0]["source"]
    (small_checkout / "pyproject.toml").write_bytes(before["pyproject.toml"])  # stopped before it
    manage.rename(repository, ref)
    assert contents(small_checkout) == after
    if repository != "cdeotte/MNIST-CNN-99.75":  # whose address stands in README
        manage.rename(*OLD)
        assert contents(small_checkout) == before


# --- Files ----------------------------------------------------------------------------------------


def test_what_killed_runs_leave_is_swept_in_time_and_ignored_by_git(tmp_path):
    old, fresh = tmp_path / ".new-old", tmp_path / ".new-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "half").write_text("x")
    past = time.time() - 2 * files.HOUR
    os.utime(old, (past, past))
    files.write_atomically(tmp_path / "a.txt", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new-fresh", "a.txt"]
    if (ROOT / ".git").exists():  # no copy without its history
        for place in (".new-x/a", "notebooks/.new-x/a", "notebooks/results/steps/.new-x/a"):
            command("git", "check-ignore", "-q", place, cwd=ROOT)


FOUR_AT_ONCE = """
import locale, os, sys
sys.path.insert(0, "notebooks")
import manage, records, report, scipy.stats
assert locale.getpreferredencoding(False).lower() != "utf-8"
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        try:
            manage.refresh()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.mark.full
def test_refresh_four_at_once_in_a_plain_ascii_locale(tmp_path):
    for name in ("notebooks", "pyproject.toml", "README.md"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("run", "scratch", "*.safetensors", ".*", "*.png")
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name, **{"ignore": ignore} if source.is_dir() else {})
    for source in ROOT.glob("*.py"):
        shutil.copy(source, tmp_path)
    lost = tmp_path / "notebooks" / "results" / "runs.csv"
    lost.write_text("lost")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR_AT_ONCE],
        cwd=tmp_path,
        env=os.environ | plain,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert lost.read_text().startswith("study,name,seed,")
    assert not list(tmp_path.rglob(".new-*"))
    for step in manage.STEPS:
        nbformat.read(tmp_path / "notebooks" / f"{step}.ipynb", as_version=4)
    again = contents(tmp_path / "notebooks")
    assert b"mean" in (tmp_path / "README.md").read_bytes() and again


def test_an_export_to_html_has_the_pictures_text():
    nbconvert = pytest.importorskip("nbconvert")
    body, _ = nbconvert.HTMLExporter().from_filename(str(manage.NOTEBOOKS / "01_baseline.ipynb"))
    pictures = [p for p in re.findall(r"<img[^>]*>", body) if "data:image/png" in p]
    alts = [re.search(r'alt="([^"]*)"', picture)[1] for picture in pictures]
    assert len(alts) >= 5 and all(len(alt) > 20 and " " in alt for alt in alts)


# --- MNIST's files --------------------------------------------------------------------------------


@pytest.fixture
def near(tmp_path, monkeypatch) -> Path:
    """Small files in place of MNIST's, a good folder of them, and a mirror that is a folder."""
    for variable in ("DATASET", "SMOKE_TEST", "MNIST_DIR", "MNIST_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "mirror").mkdir()
    for name, content in PACKED.items():
        (tmp_path / "mirror" / name).write_bytes(content)
    monkeypatch.setattr(
        "torchvision.datasets.MNIST.mirrors", [f"{(tmp_path / 'mirror').as_uri()}/"]
    )
    monkeypatch.setattr(mnist, "ATTEMPTS", 1)
    monkeypatch.setattr(mnist, "SHA256", sha256(FILES))
    monkeypatch.setattr(mnist, "HERE", tmp_path)  # the cache's usual place
    layout(tmp_path / "good", FILES)
    return tmp_path


def loop(path: Path) -> None:
    path.symlink_to(path)


def raw_is_a_file(path: Path) -> None:
    (path / "MNIST").mkdir(parents=True)
    (path / "MNIST" / "raw").write_text("x")


def a_name_is_a_folder(path: Path) -> None:
    layout(path, {n: FILES[n] for n in NAMES[1:]})
    (path / "MNIST/raw" / NAMES[0]).mkdir()


def a_name_is_a_pipe(path: Path) -> None:
    layout(path, {n: FILES[n] for n in NAMES[1:]})
    os.mkfifo(path / "MNIST/raw" / NAMES[0])


PLACES = {
    "nothing": lambda path: None,
    "an empty folder": Path.mkdir,
    "a file": lambda path: path.write_text("x"),
    "a loop": loop,
    "raw is a file": raw_is_a_file,
    "a name is a folder": a_name_is_a_folder,
    "a name is a pipe": a_name_is_a_pipe,
}


@pytest.mark.parametrize("what", [*PLACES, "a long name", "/proc", "below a file", "~nosuchuser"])
@pytest.mark.parametrize("variable", ["MNIST_DIR", "MNIST_CACHE"])
def test_a_place_without_mnist_is_named_with_a_remedy_that_works(near, monkeypatch, what, variable):
    place = near / "place"
    PLACES.get(what, lambda path: None)(place)
    odd = {"a long name": "x" * 300, "/proc": "/proc/x", "below a file": "/etc/passwd/x"}
    given = odd.get(what, what if what[0] == "~" else str(place))
    monkeypatch.setenv(variable, given)
    if variable == "MNIST_CACHE" and what in ("nothing", "an empty folder", "a name is a pipe"):
        assert mnist.load().name == "MNIST" and (place / "MNIST/raw" / NAMES[3]).is_file()
        return
    with pytest.raises((OSError, ValueError), match=variable) as told:
        mnist.load()
    assert "\n" not in str(told.value)
    if variable == "MNIST_DIR":
        assert "unset MNIST_DIR to download" in str(told.value) or what == "~nosuchuser"
        monkeypatch.delenv("MNIST_DIR")
    else:
        assert "Set MNIST_CACHE to a folder" in str(told.value) or what == "~nosuchuser"
        monkeypatch.setenv("MNIST_CACHE", str(near / "another place"))
    assert mnist.load().name == "MNIST"


@pytest.mark.parametrize("what", ["no mirror", "wrong bytes"])
def test_without_a_mirror_the_remedy_is_a_folder(near, monkeypatch, what):
    for path in (near / "mirror").iterdir():
        path.write_bytes(b"<html>sign in</html>") if what == "wrong bytes" else path.unlink()
    remedy = "Set MNIST_DIR to a folder that holds MNIST/raw/ with the four extracted files."
    if what == "wrong bytes":
        with pytest.raises(RuntimeError, match="wrong checksum") as told:
            utils.load_mnist(val_images=50)
        assert str(told.value).endswith(remedy)
    else:
        with pytest.warns(UserWarning, match="NOT MNIST") as caught:
            assert utils.load_mnist(val_images=50).name == mnist.STAND_IN
        assert str(caught[0].message).endswith(remedy)
    monkeypatch.setenv("MNIST_DIR", str(near / "good"))
    assert mnist.load().name == "MNIST"


@pytest.mark.parametrize("value", ["", "MNIST", "Digits", "cifar", "digits ", "mnist\n", "0", "ä"])
def test_a_data_set_is_one_of_two(near, monkeypatch, value):
    monkeypatch.setenv("DATASET", value)
    monkeypatch.setenv("MNIST_DIR", str(near / "good"))
    if value.lower() in ("mnist", "digits"):
        assert mnist.load().name == {"mnist": "MNIST", "digits": mnist.STAND_IN}[value.lower()]
    else:
        with pytest.raises(ValueError, match="DATASET must be 'mnist' or 'digits', got "):
            mnist.load()


NOBODY = """
import os, sys, mnist
os.setgid(65534), os.setuid(65534)
for variable in ("MNIST_DIR", "MNIST_CACHE"):
    os.environ |= {"MNIST_DIR": "", variable: sys.argv[1]}
    try:
        mnist.load()
    except (OSError, ValueError) as error:
        print(error)
"""


@pytest.mark.skipif("os.name != 'posix' or os.geteuid() != 0", reason="only root can become nobody")
def test_files_that_may_not_be_read_are_named(near):
    (near / "good").chmod(0o700)
    told = command(sys.executable, "-c", NOBODY, near / "good", cwd=ROOT).splitlines()
    for line, variable in zip(told, ("MNIST_DIR must hold", "Set MNIST_CACHE to"), strict=True):
        assert variable in line and "Permission denied" in line


# --- Pictures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> dict:
    """Notebook 15 up to ``prepare``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASET", "digits")
        return run_cells("15_your_own_digit", "to-mnist", "open", "shrink", "ink", "prepare")


def seven(paper: int = 235, ink: int = 30) -> np.ndarray:
    """A 7 on paper, float ``[300, 300]``."""
    picture = Image.new("L", (300, 300), paper)
    ImageDraw.Draw(picture).line([(100, 90), (190, 90), (130, 220)], fill=ink, width=14)
    return np.asarray(picture, dtype=float)


FORMATS = ["TIFF", "PPM", "PCX", "ICO", "TGA", "DDS", "SGI", "JPEG2000", "PDF", "EPS", "IM", "ICNS"]
FORMATS += ["SPIDER", "MSP", "XBM", "BLP"]
HEADS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    "PostScript behind a DOS header": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a program": b"#!/bin/sh\ntouch hacked\n",
    "ZIP": b"PK\x03\x04" + bytes(60),
    "GIF of nothing": b"GIF89a" + bytes(7),
    "BMP of 2**31 lines": b"BM" + bytes(12) + (40).to_bytes(4, "little") + b"\xff\xff\xff\x7f" * 2,
    "PNG without pixels": b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND",
    "JPEG of one marker": b"\xff\xd8\xff\xe0",
    "WEBP cut off": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
}


@pytest.mark.parametrize("what", [*FORMATS, *HEADS])
def test_what_is_not_of_five_formats_is_not_opened(own, tmp_path, monkeypatch, what):
    path = tmp_path / "my_digit.png"
    if what in HEADS:
        path.write_bytes(HEADS[what])
    else:
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(what, "RGB")
        file = io.BytesIO()  # not under its name: Pillow would take the ending for SPIDER's
        Image.fromarray(seven().astype(np.uint8)).convert(mode).save(file, what)
        path.write_bytes(file.getvalue())
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match=r"cannot be read as PNG, JPEG|too many pixels") as told:
        own["prepare"](path)
    assert "\n" not in str(told.value) and str(tmp_path) not in str(told.value)


def frame(width: int, margin: int = 0, tone: int = 10) -> np.ndarray:
    picture, ring = seven(), np.zeros((300, 300), dtype=bool)
    ring[margin : 300 - margin, margin : 300 - margin] = True
    inner = margin + width
    ring[inner : 300 - inner, inner : 300 - inner] = False
    picture[ring] = tone
    return picture


ROW, COLUMN = np.mgrid[:300, :300]
SCENES = {f"a scan's dark frame of {n}": lambda n=n: frame(n) for n in (2, 6, 20, 40)}
SCENES |= {f"a frame of {n} inside": lambda n=n: frame(n, margin=15) for n in (3, 8, 20)}
SCENES |= {
    "a strip at the top": lambda: np.where(ROW < 40, 10, seven()),
    "a strip at the left": lambda: np.where(COLUMN < 40, 10, seven()),
    "a hard shadow across a corner": lambda: np.where(ROW + COLUMN < 260, 0.4, 1) * seven(),
    "a shadow like a band": lambda: np.where(abs(ROW - COLUMN) < 20, 0.4, 1) * seven(),
    "ruled paper": lambda: np.where(ROW % 30 == 0, 120, seven()),
    "squared paper": lambda: np.where((ROW % 30 == 0) | (COLUMN % 30 == 0), 150, seven()),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (300, 300)),
    "a slope": lambda: COLUMN * 255 / 299,
}


@pytest.mark.parametrize("what", SCENES)
def test_a_shadow_or_a_frame_is_doubted(own, tmp_path, what):
    Image.fromarray(SCENES[what]().astype(np.uint8)).save(tmp_path / "a.png")
    assert re.search(
        "touches the border|along all four sides", own["prepare"](tmp_path / "a.png")["note"]
    )


def test_the_remedies_for_a_picture_work(own, tmp_path):
    path = tmp_path / "a.png"
    picture = Image.fromarray(frame(20, margin=15).astype(np.uint8))
    picture.save(path)
    assert own["prepare"](path)["note"].endswith("Crop the picture.")
    picture.crop((60, 60, 240, 260)).save(path)
    assert own["prepare"](path)["note"] == ""
    small = Image.fromarray(seven().astype(np.uint8)).resize((14, 14))
    small.save(path)
    with pytest.raises(ValueError, match=r"smaller than 8 pixels: take a larger picture of it\."):
        own["prepare"](path)
    Image.fromarray(seven().astype(np.uint8)).save(path)
    assert own["prepare"](path)["note"] == ""


# --- A network of one's own -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def language() -> dict:
    """Notebook 09's language of networks."""
    source = {key: cell["source"] for key, cell in manage.code_cells("09_smallest_network").items()}
    scope = {"parameters": parameters}
    exec(source["data"].split("parameters.check")[0], scope)
    for key in ("parameters", "convolution", "network", "specs", "networks"):
        exec(source[key], scope)
    return scope


REFUSED = {  # what is said: lines
    "256 channels": ["8-9999999", "8-" + "9" * 50, "9" * 5_000, "64-257s", "0", "8-0"],
    "too large": ["-".join(["1k1"] * 100_000), "1p" + "-1p" * 60],
    "does not fit": ["8-P-8-P-8-P-8-P-8", "8-8-P-" + "8-" * 9 + "8", "8" + "-8" * 30],
    "cannot stand": ["", "-", "8--8", "P", "8-P-P-P", "eight", "8;import os", "-8", "8.5"],
    "needs a block": ["=", "8-12-="],
}
REFUSED["cannot stand"] += ["1e9", "8k3", "8\n8"]
LINES = {line: sentence for sentence, lines in REFUSED.items() for line in lines}
LINES["٨-٨"] = None


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:20] or "empty")
def test_a_line_that_makes_no_network_is_refused_at_once(language, line):
    start = time.process_time()
    if LINES[line] is None:  # Arabic digits are digits
        assert language["describe"](line)["parameters"] == language["describe"]("8-8")["parameters"]
        return
    with pytest.raises(ValueError, match=LINES[line]):
        language["describe"](line)
    assert time.process_time() - start < 2


# --- Every remedy ---------------------------------------------------------------------------------

IMPERATIVE = (
    r"\b(Restore|Delete|Move|Set [A-Z]|[Uu]nset|Crop|take a larger|lower the|run this cell)"
)
IMPERATIVE = IMPERATIVE[:-1] + "|pip install)"
TRIED = {  # file: what its messages ask for, each tried above or in the test named
    "soundness.py": {"Restore", "Delete", "Move"},
    "mnist.py": {"Set M", "unset"},
    "utils.py": {"lower the"},  # below
    "parameters.py": {"pip install"},  # test_parameters.py
    "15_your_own_digit": {"take a larger", "Crop"},
    "07_reference_networks": {"run this cell"},  # test_records.py: a study goes on
}


def messages(source: str) -> set[str]:
    """The remedies in a program's texts; docstrings and what it runs itself do not count."""
    tree = ast.parse(source)
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {m for n in texts if id(n) not in docs for m in re.findall(IMPERATIVE, n.value)}


def test_no_remedy_is_untried():
    found = {path.name: messages(path.read_text()) for path in ROOT.glob("*.py")}
    found |= {path.name: messages(path.read_text()) for path in manage.NOTEBOOKS.glob("*.py")}
    for name in manage.names():
        cells = [c["source"] for key, c in manage.code_cells(name).items() if key != "setup"]
        found[name] = set().union(*map(messages, cells))
    assert {name: what for name, what in found.items() if what} == TRIED


def test_a_rate_that_is_too_high_is_lowered(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    loaders = digits.loader(digits.train[:200], 50), digits.loader(digits.val[:50])
    for rate in (1e38, 0.1):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        if rate > 1:
            with pytest.raises(FloatingPointError, match=r"not finite from epoch 1.*lower the"):
                utils.fit(model, *loaders, optimizer, 2)
        else:
            assert len(utils.fit(model, *loaders, optimizer, 2)["seconds"]) == 2


# --- What the project itself lets in --------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=str)
def test_workflows_may_little_and_take_actions_at_a_commit(path):
    text = path.read_text(encoding="utf-8")
    assert "\npermissions: {}" in text
    jobs = re.split(r"^  (?=\w+:$)", text.split("\njobs:\n")[1], flags=re.M)[1:]
    for job in jobs:
        (block,) = re.findall(r"^    permissions:\n((?:      \S.*\n)+)", job, re.M)
        allowed = [line.split("#")[0].strip() for line in block.splitlines()]
        deploys = ["pages: write", "id-token: write"]  # what GitHub Pages asks for
        assert allowed in (["contents: read"], ["contents: write"], deploys), job
    assert ("contents: write" in text) == ("git push" in text)
    for action in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_run_draws_its_figures_and_execute_alone_publishes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manage, "NOTEBOOKS", tmp_path)
    put(tmp_path, "import os", "print(os.environ['MPLBACKEND'], os.environ.get('PUBLISH'))")
    for act, publish in ((manage.run, "None"), (manage.execute, "1")):
        monkeypatch.setenv("MPLBACKEND", "agg")
        act("a")
        assert re.search(rf"inline\S* {publish}\n", capsys.readouterr().out)
