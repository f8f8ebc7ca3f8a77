"""Where MNIST comes from, on good days and bad: a local server plays the mirror."""

import errno
import gzip
import hashlib
import http.server
import os
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

import utils

NAMES = list(utils.SHA256)


def idx(array: np.ndarray) -> bytes:
    """An IDX file: magic number, sizes, bytes (http://yann.lecun.com/exdb/mnist/)."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny(monkeypatch):
    """Four tiny files in MNIST's format, with their own checksums put in place of MNIST's."""
    random = np.random.default_rng(0)
    counts = {"train": 6_000, "t10k": 30}
    files = {}
    for name in NAMES:
        n = counts[name.split("-")[0]]
        shape = (n, 28, 28) if "images" in name else (n,)
        files[name] = idx(random.integers(0, 256 if "images" in name else 10, shape))
    monkeypatch.setattr(
        utils, "SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    )
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    resources = [(f"{n}.gz", hashlib.md5(packed[f"{n}.gz"]).hexdigest()) for n in NAMES]
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    monkeypatch.delenv("DATASET", raising=False)
    return files, packed


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.trouble(path)`` may return a bad answer."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        content = self.server.files[name]
        self.server.requests.append(name)
        trouble = self.server.trouble and self.server.trouble(self.path)
        (trouble or type(self).answer_well)(self, name, content)

    do_HEAD = do_GET

    def answer_well(self, name, content):
        self.answer(content)

    def answer(self, content, length=None, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tiny, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.files, server.trouble, server.requests = tiny[1], None, []
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(utils, "DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield server
        server.shutdown()
        socket.setdefaulttimeout(None)  # two threads of one process share it, two notebooks do not


def layout(root: Path, files: dict[str, bytes]) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return root


def use_cache(monkeypatch, cache: Path) -> None:
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("MNIST_CACHE", str(cache))


def assert_good(data: utils.Data) -> None:
    assert data.name == "MNIST"
    assert [len(s.labels) for s in (data.train, data.val, data.test)] == [1_000, 5_000, 30]


def assert_clean(cache: Path) -> None:
    """Nothing in the cache but files that verify."""
    assert {p.name for p in cache.iterdir()} <= {"MNIST"}
    if (cache / "MNIST").exists():
        utils.verify_files(cache)


# --- MNIST_DIR ------------------------------------------------------------------------------------


def test_mnist_dir_is_used(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_DIR", str(layout(tmp_path, tiny[0])))
    assert_good(utils.load_mnist())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "empty"])
def test_mnist_dir_names_the_bad_file(tiny, tmp_path, monkeypatch, name, damage):
    monkeypatch.setenv("MNIST_DIR", str(layout(tmp_path, tiny[0])))
    path = tmp_path / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes({"truncated": content[:-1], "flipped": content, "empty": b""}[damage])
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=rf"{name} is .*MNIST_DIR") as caught:
        utils.load_mnist()
    assert ("damaged" in str(caught.value)) == (damage != "missing")


def test_what_an_old_torchvision_left_is_not_read(tiny, tmp_path, monkeypatch):
    """Up to 2019 it kept pickled tensors beside the raw files, and today's still prefers them."""
    processed = layout(tmp_path, tiny[0]) / "MNIST" / "processed"
    processed.mkdir()
    other = (torch.zeros(9, 28, 28, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    for name in ("training.pt", "test.pt"):
        torch.save(other, processed / name)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path))
    assert_good(utils.load_mnist())


def test_mnist_dir_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.delenv("DATASET", raising=False)
    monkeypatch.setenv("MNIST_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        utils.load_mnist()


def test_a_choice_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("DATASET", "cifar")
    with pytest.raises(ValueError, match="DATASET must be 'mnist' or 'digits', got 'cifar'"):
        utils.load_mnist()


# --- Download: troubles that pass -----------------------------------------------------------------


def test_a_download_fills_the_cache_once(mirror, tmp_path, monkeypatch):
    use_cache(monkeypatch, tmp_path / "cache")
    assert_good(utils.load_mnist())
    assert_clean(tmp_path / "cache")
    asked = len(mirror.requests)
    assert_good(utils.load_mnist())
    assert len(mirror.requests) == asked


# Each answers one request in its own bad way.


def status(code):
    return lambda handler, name, content: handler.send_error(code)


def silent(handler, name, content):
    threading.Event().wait(1.5)  # longer than the time-out; time.sleep is patched away


def cut(handler, name, content):
    handler.answer(content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def flip(handler, name, content):
    handler.answer(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def truncated(handler, name, content):
    handler.answer(content[:-100])


def page(handler, name, content):
    handler.answer(b"<html>Please sign in</html>")


PASSING = {"404": status(404), "503": status(503), "cut": cut, "flipped bit": flip}
PASSING |= {"time-out": silent, "truncated": truncated, "HTML page": page}


@pytest.mark.parametrize("trouble", PASSING)
def test_a_trouble_that_passes_is_retried(mirror, tmp_path, monkeypatch, trouble):
    use_cache(monkeypatch, tmp_path / "cache")
    labels = f"{NAMES[1]}.gz"

    def once(path):  # torchvision asks twice: first only whether it is redirected
        hit = path.endswith(labels) and mirror.requests.count(labels) == 2
        return PASSING[trouble] if hit else None

    mirror.trouble = once
    assert_good(utils.load_mnist())
    assert mirror.requests.count(labels) > 2, "the download itself was hit, and asked for again"
    assert_clean(tmp_path / "cache")


@pytest.mark.parametrize("trouble", ["404", "503", "time-out"])
def test_an_unreachable_mirror_is_answered_with_the_stand_in(
    mirror, tmp_path, monkeypatch, trouble
):
    use_cache(monkeypatch, tmp_path / "cache")
    mirror.trouble = lambda _: PASSING[trouble]
    with pytest.warns(UserWarning, match="NOT MNIST"):
        data = utils.load_mnist()
    assert data.name == utils.DIGITS_NAME
    assert_clean(tmp_path / "cache")
    mirror.trouble = None  # the mirror is back: nothing must have poisoned the cache
    assert_good(utils.load_mnist())


@pytest.mark.parametrize("trouble", ["flipped bit", "truncated", "HTML page"])
def test_a_wrong_checksum_is_never_answered_with_the_stand_in(
    mirror, tmp_path, monkeypatch, trouble
):
    use_cache(monkeypatch, tmp_path / "cache")
    mirror.trouble = lambda _: PASSING[trouble]
    with pytest.raises(RuntimeError, match="wrong checksum"):
        utils.load_mnist()
    assert_clean(tmp_path / "cache")
    mirror.trouble = None
    assert_good(utils.load_mnist())


@pytest.mark.parametrize("silence", ["404", "503", "time-out"])
def test_not_even_if_the_mirror_is_gone_at_the_last_try(mirror, tmp_path, monkeypatch, silence):
    use_cache(monkeypatch, tmp_path / "cache")
    mirror.trouble = lambda _: page if len(mirror.requests) <= 2 else PASSING[silence]
    with pytest.raises(RuntimeError, match="wrong checksum"):
        utils.load_mnist()
    assert_clean(tmp_path / "cache")


@pytest.mark.parametrize("other", ["404", "time-out"])
@pytest.mark.parametrize("first", ["page", "good"])
def test_two_mirrors_of_which_one_is_silent(mirror, tmp_path, monkeypatch, first, other):
    use_cache(monkeypatch, tmp_path / "cache")
    mirrors = [f"{MNIST.mirrors[0]}{name}/" for name in ("silent", first)]
    monkeypatch.setattr(MNIST, "mirrors", mirrors)
    answers = {"silent": PASSING[other], "page": page, "good": None}
    mirror.trouble = lambda path: answers[path.split("/")[1]]
    if first == "good":
        assert_good(utils.load_mnist())
    else:
        with pytest.raises(RuntimeError, match="wrong checksum"):
            utils.load_mnist()
    assert_clean(tmp_path / "cache")


# --- Cache: what earlier runs may have left -------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_half_extracted_file_in_the_cache_is_not_trusted(
    mirror, tiny, tmp_path, monkeypatch, name
):
    cache = layout(tmp_path / "cache", tiny[0])
    path = cache / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-20])
    use_cache(monkeypatch, cache)
    assert_good(utils.load_mnist())
    assert_clean(cache)


def test_a_killed_download_is_not_trusted(mirror, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    layout(cache / "download-killed", {NAMES[0]: b"half"})
    use_cache(monkeypatch, cache)
    assert_good(utils.load_mnist())
    utils.verify_files(cache)


def test_a_cache_that_cannot_be_written(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    use_cache(monkeypatch, tmp_path / "file" / "cache")
    with pytest.raises(OSError, match="MNIST_CACHE"):
        utils.load_mnist()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_cache(mirror, tmp_path, monkeypatch, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    use_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(OSError, match=r"cannot keep MNIST in .*MNIST_CACHE"):
        utils.load_mnist()


@pytest.mark.parametrize("before", ["empty", "damaged"])
def test_two_notebooks_at_once(mirror, tmp_path, monkeypatch, before):
    use_cache(monkeypatch, tmp_path / "cache")
    if before == "damaged":
        layout(tmp_path / "cache", dict.fromkeys(NAMES, b"half"))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(utils.download_mnist(tmp_path / "cache")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "cache"] * 2
    assert_clean(tmp_path / "cache")
