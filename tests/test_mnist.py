"""Where MNIST comes from, on good days and bad: a local server plays the mirror."""

import gzip
import hashlib
import multiprocessing
import os
import socketserver
import threading
import tracemalloc
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

import mnist
import utils

# The first request loads certificates: on a busy machine that takes longer than our deadlines.
urllib.request.install_opener(urllib.request.build_opener())
NAMES = list(mnist.SHA256)
LABELS, OTHERS = NAMES[1], [NAMES[0], *NAMES[2:]]


def draw(name: str) -> np.ndarray:
    """The content of a small file: 600 images or labels to train on, 30 to test on."""
    shape = (600 if "train" in name else 30, *((28, 28) if "images" in name else ()))
    values = np.random.default_rng(len(shape)).integers(0, 10, 9_999, np.uint8)
    return np.resize(values, shape)  # repeated: packs well


def idx(array: np.ndarray) -> bytes:
    """As a file (http://yann.lecun.com/exdb/mnist/): magic number, sizes, bytes."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


FILES = {name: idx(draw(name)) for name in NAMES}
PACKED = {f"{name}.gz": gzip.compress(content, 1, mtime=0) for name, content in FILES.items()}
BOMB = gzip.compress(bytes(50_000_000))


def sha256(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def http(body: bytes, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length or len(body), body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n%b\r\n%x\r\n%b"
ABSENT = {  # a mirror's answers, piece by piece: as good as none
    "404": lambda body: [b"HTTP/1.1 404 Not Found\r\n\r\n"],
    "503": lambda body: [b"HTTP/1.1 503 \x1b[2Jbusy\r\n\r\n"],
    "silent": lambda body: [b""] * 200,
    "hung up": lambda body: [],
    "cut": lambda body: [http(body[:-100], len(body))],
    "cut chunk": lambda body: [CHUNKED % (body[:2], len(body), body[2:])],
    "drip": lambda body: [http(b"", 999), *[b"-"] * 200],
    "dripping head": lambda body: [b"HTTP/1.1 200 OK\r\n", *[b"-"] * 200],
    "garbage": lambda body: [b"\x1b[31mHT\x07\x00\x9b\r\n\r\n"],
    "endless": lambda body: [http(b"", 10**12), *[BOMB * 20] * 200],
}
WRONG = {  # an answer, but not MNIST
    "flipped bits": lambda body: [http(body[:-8] + bytes(8))],
    "truncated": lambda body: [http(body[:-100])],
    "empty": lambda body: [http(b"")],
    "page": lambda body: [http(b"<html>\x1b[2JPlease sign in</html>")],
    "bomb": lambda body: [http(BOMB)],
    "portal": lambda body: [b"HTTP/1.1 302 Found\r\nLocation: /sign-in\r\n\r\n"],
}
ANSWERS = ABSENT | WRONG | {"good": lambda body: [http(body)]}
ANSWERS["chunked"] = lambda body: [CHUNKED % (body[:2], len(body) - 2, body[2:]), b"\r\n0\r\n\r\n"]


class Mirror(socketserver.StreamRequestHandler):
    """Answers as ``server.plan(name)`` says, a name in ``ANSWERS``; waits after each piece."""

    def handle(self):
        request, *_ = iter(self.rfile.readline, b"\r\n")
        self.server.requests.append(name := request.split()[1].decode().split("/")[-1])
        plan = self.server.plan(name) if name in PACKED else "good"
        for piece in ANSWERS[plan](PACKED.get(name, b"<html>")):
            self.wfile.write(piece)
            if self.server.over.wait(0.03):
                break


@pytest.fixture
def mirror(monkeypatch):
    """One mirror, two quick attempts; nobody may set the whole process's time-out or hoard."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mirror) as server:
        server.requests, server.over, server.daemon_threads = [], threading.Event(), True
        server.plan, server.handle_error = lambda name: "good", lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        settings = {"ATTEMPTS": 2, "LIMIT": 600_000, "SILENCE": 0.25, "DEADLINE": 0.5}
        address = "http://{}:{}/".format(*server.server_address)
        monkeypatch.setattr(MNIST, "mirrors", [address])
        for key, value in settings.items():
            monkeypatch.setattr(mnist, key, value)
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.delattr("socket.setdefaulttimeout")
        monkeypatch.setenv("no_proxy", "*")
        tracemalloc.start()
        yield server
        server.over.set()
        server.shutdown()
        assert tracemalloc.get_traced_memory()[1] < 25e6, "an endless body, or a bomb"
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Small files' checksums in place of MNIST's, and an empty cache."""
    monkeypatch.setattr(mnist, "SHA256", sha256(FILES))
    for variable in ("SMOKE_TEST", "DATASET", "MNIST_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MNIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def layout(root: Path, files: dict[str, bytes]) -> Path:
    (root / "MNIST/raw").mkdir(parents=True)
    for name, content in files.items():
        (root / "MNIST/raw" / name).write_bytes(content)
    return root


def load_and_check() -> None:
    """What is loaded is the content of the files, as numbers; whole, and not the stand-in."""
    train, test, name = mnist.load()
    assert name == "MNIST" and train[1].dtype == np.int64
    assert all(map(np.array_equal, (*train, *test), map(draw, NAMES)))


def kept(cache: Path) -> list[str]:
    """The cache's files; each is whole."""
    found = {p.name: p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    assert found.items() <= FILES.items()
    return sorted(found, key=NAMES.index)


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="needs MNIST in MNIST_DIR")
def test_checksums_and_parsing_agree_with_the_real_files(monkeypatch):
    monkeypatch.undo()
    root = mnist.HERE / os.environ["MNIST_DIR"]
    assert sha256({n: (root / "MNIST/raw" / n).read_bytes() for n in NAMES}) == mnist.SHA256
    assert list(PACKED) == [name for name, _ in MNIST.resources]
    for ours, train in zip(mnist.load()[:2], (True, False), strict=True):
        theirs = MNIST(root, train=train)  # torchvision's own reader
        assert all(map(np.array_equal, ours, (theirs.data, theirs.targets)))


def test_the_stand_in_is_each_digit_once_doubled_and_framed(monkeypatch):
    monkeypatch.setenv("DATASET", "digits")
    train, test, name = mnist.load()
    assert (len(train[1]), len(test[1]), name) == (1_437, 360, mnist.STAND_IN)
    again = mnist.load_stand_in()
    assert np.array_equal(again.test[0], test[0]), "the same digits in each run"
    images, labels = map(np.concatenate, zip(train, test, strict=True))
    small, raw = images[:, 6:22:2, 6:22:2], load_digits()
    assert (images == np.pad(np.kron(small, np.ones((1, 2, 2))), ((0, 0), (6, 6), (6, 6)))).all()
    pairs = [(small, labels), ((raw.images * 255 / 16).round().astype(np.uint8), raw.target)]
    assert len({tuple(sorted(zip(map(bytes, i), j, strict=True))) for i, j in pairs}) == 1


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "empty"])
@pytest.mark.parametrize("name", NAMES)
def test_mnist_dir_names_the_bad_file(tmp_path, monkeypatch, name, damage):
    bad = {"truncated": FILES[name][:-1], "flipped": FILES[name][:-1] + b"!", "empty": b""}
    files = {n: c for n, c in (FILES | {name: bad.get(damage)}).items() if c is not None}
    monkeypatch.setenv("MNIST_DIR", str(layout(tmp_path, files)))
    error, word = (ValueError, "damaged") if damage in bad else (FileNotFoundError, "missing")
    with pytest.raises(error, match=rf"{name} is {word}.*MNIST_DIR"):
        utils.load_mnist()


CASES = [(1, bad, then) for bad in ABSENT | WRONG for then in ("good", bad)]
CASES += [(1, bad, then) for bad in WRONG for then in ("404", "garbage")]
CASES += [(2, bad, "good") for bad in ABSENT | WRONG] + [(1, "chunked", None)]
CASES += [(2, "page", "silent"), (2, "silent", "page"), (2, "404", "page"), (2, "page", "404")]


@pytest.mark.parametrize(("mirrors", "first", "second"), CASES)
def test_answers_of_a_mirror(mirror, cache, monkeypatch, mirrors, first, second):
    """Two tries: from one mirror, or from one each; wrong bytes never end in the stand-in."""
    layout(cache, {name: FILES[name] for name in OTHERS})
    monkeypatch.setattr(MNIST, "mirrors", MNIST.mirrors * mirrors)
    monkeypatch.setattr(mnist, "ATTEMPTS", 2 // mirrors)
    mirror.plan = lambda name: first if mirror.requests.count(name) == 1 else second
    good = second == "good" or first == "chunked"
    if good:
        load_and_check()
    elif {first, second} & WRONG.keys():
        with pytest.raises(RuntimeError, match=f"wrong checksum: {LABELS}") as error:
            utils.load_mnist()
        assert str(error.value).isprintable()
    else:
        with pytest.warns(UserWarning, match=f"no MNIST mirror .*{LABELS}.* NOT MNIST") as caught:
            assert utils.load_mnist().name == mnist.STAND_IN
        told = caught.pop(UserWarning)
        assert told.filename == __file__ and str(told.message).isprintable()
        assert ("timed out" in str(told.message)) == (first == "silent"), "before the deadline"
    assert mirror.requests.count(f"{LABELS}.gz") == 2 - (first == "chunked")
    assert kept(cache) == (NAMES if good else OTHERS)
    mirror.plan = lambda name: "good"  # the mirror is back: nothing must have poisoned the cache
    for _ in range(2):
        load_and_check()
        assert mirror.requests.count(f"{LABELS}.gz") <= 3, "once fetched is enough"


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_in_the_cache_is_named_or_fetched_again(mirror, cache, name):
    layout(cache, FILES | {name: FILES[name][:-20]})
    mirror.plan = lambda name: "404"
    with pytest.warns(UserWarning, match=rf"404.*{cache}/MNIST/raw/{name} is damaged.*NOT MNIST"):
        assert utils.load_mnist().name == mnist.STAND_IN
    mirror.plan = lambda name: "good"
    load_and_check()
    assert mirror.requests == [f"{name}.gz"] * 3 and kept(cache) == NAMES


def test_killed_between_files_only_the_other_two_are_fetched(mirror, cache):
    mirror.plan = lambda name: "silent" if name == f"{NAMES[2]}.gz" else "good"
    victim = multiprocessing.get_context("fork").Process(target=mnist.load)
    victim.start()
    while f"{NAMES[2]}.gz" not in mirror.requests and victim.is_alive():
        mirror.over.wait(0.01)
    victim.kill()
    victim.join()
    assert kept(cache) == NAMES[:2]
    mirror.plan, mirror.requests[:] = lambda name: "good", []
    load_and_check()
    assert mirror.requests == [f"{name}.gz" for name in NAMES[2:]]


@pytest.mark.parametrize("method", ["mkdir", "write_bytes", "replace", "read_bytes", "is_file"])
def test_a_cache_that_is_full_read_only_or_unreadable(mirror, cache, monkeypatch, method):
    def fail(path, content=b"", write=Path.write_bytes, **_):
        if method == "write_bytes":  # a full disk takes half of it
            write(path, content[:99])
        raise PermissionError("it says no")

    layout(cache, {NAMES[0]: FILES[NAMES[0]]})
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, fail)
        with pytest.raises(OSError, match=r"cannot keep MNIST in .*says no.*MNIST_CACHE"):
            utils.load_mnist()
    assert kept(cache) == NAMES[:1]


@pytest.mark.parametrize("before", [{}, dict.fromkeys(NAMES, b"half")], ids=["empty", "damaged"])
def test_two_notebooks_at_once(mirror, cache, before):
    layout(cache, before)
    with ThreadPoolExecutor(2) as pool:
        assert [d.name for d in pool.map(lambda _: mnist.load(), "12")] == ["MNIST"] * 2
    assert kept(cache) == NAMES
