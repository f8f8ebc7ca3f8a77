"""MNIST's four files: where they lie, how they are fetched and verified, what stands in for them.

``load()`` looks in ``MNIST_DIR``; else in the cache (``MNIST_CACHE``, by default ``data/``), which
it fills by a download; else, behind a warning, it takes scikit-learn's 1,797 digits.
"""

import hashlib
import itertools
import os
import struct
import time
import urllib.request
import warnings
import zlib
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from files import write_atomically

HERE = Path(__file__).resolve().parent
STAND_IN = "scikit-learn digits (stand-in)"
SHA256 = {  # of the four extracted files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
ATTEMPTS = 3
SILENCE = 20.0  # seconds without a byte before a mirror counts as silent
DEADLINE = 100.0  # seconds for one file from one mirror: it may drip
LIMIT = 64_000_000  # bytes of one file, packed or not: a body may be endless
ELSEWHERE = "Set MNIST_DIR to a folder that holds MNIST/raw/ with the four extracted files."


class Digits(NamedTuple):
    """(images: uint8 ``[N, 28, 28]``, labels: int64 ``[N]``) twice, and the data set's name."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    name: str


class MirrorsUnreachable(Exception):
    """No mirror delivered MNIST. (A wrong checksum is a ``RuntimeError`` instead.)"""


def load() -> Digits:
    """MNIST, or its stand-in if no mirror answers (``DATASET=digits`` asks for the stand-in).

    Raises:
        FileNotFoundError, ValueError: if a file in MNIST_DIR is missing or damaged.
        RuntimeError: if a mirror delivers files with a wrong checksum.
        OSError: if the cache folder cannot be read or written.
    """
    choice = os.environ.get("DATASET", "mnist").lower()
    if choice not in ("mnist", "digits"):
        raise ValueError(f"DATASET must be 'mnist' or 'digits', got {choice!r}")
    if choice == "digits":
        return load_stand_in()
    if os.environ.get("MNIST_DIR"):
        return read_folder(_folder("MNIST_DIR"))
    try:
        return read_or_download(_folder("MNIST_CACHE"))
    except MirrorsUnreachable as error:
        line = f"{error}. NOT MNIST: going on with the {STAND_IN}. {ELSEWHERE}"
        warnings.warn(line, stacklevel=3)
        return load_stand_in()


def _folder(variable: str) -> Path:
    """The folder that an environment variable names, counted from the repository's root."""
    given = os.environ.get(variable) or "data"
    try:
        return HERE / Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{variable}={given} names no folder: {error}") from error


def _read_verified(root: Path, name: str) -> bytes:
    """The content of one file; what is parsed later is what was verified here."""
    path = root / "MNIST" / "raw" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not {SHA256[name][:12]}...")
    return content


def read_folder(root: Path) -> Digits:
    """The digits from a folder that somebody else fills."""
    try:
        return _parse([_read_verified(root, name) for name in SHA256])
    except (OSError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        hint = "MNIST_DIR must hold MNIST/raw/ with the four extracted files, as torchvision"
        raise kind(f"{error}. {hint} keeps them; unset MNIST_DIR to download them.") from error


def _parse(contents: list[bytes]) -> Digits:
    """The four IDX files (http://yann.lecun.com/exdb/mnist/): magic number, sizes, bytes."""
    images, labels, test_images, test_labels = (
        np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
        .reshape(struct.unpack_from(f">{content[3]}I", content, 4))
        .copy()
        for content in contents
    )
    return Digits((images, labels.astype(int)), (test_images, test_labels.astype(int)), "MNIST")


def read_or_download(cache: Path) -> Digits:
    """The digits from the cache; what is missing or damaged there is downloaded first."""
    contents = []
    try:
        for name in SHA256:
            try:
                contents.append(_read_verified(cache, name))
            except (FileNotFoundError, ValueError) as reason:
                contents.append(_download(name, reason))
                write_atomically(cache / "MNIST" / "raw" / name, contents[-1])
    except OSError as error:
        hint = "Set MNIST_CACHE to a folder with 60 MB of space that you may read and write."
        raise OSError(f"cannot keep MNIST in {cache}: {error}. {hint}") from error
    return _parse(contents)


def _download(name: str, reason: Exception) -> bytes:
    """One file from the first mirror that has it; ``reason`` says why the cache did not do."""
    from torchvision.datasets import MNIST  # knows the mirrors; slow to import, so only here

    damaged = False
    for attempt, mirror in itertools.product(range(ATTEMPTS), MNIST.mirrors):
        time.sleep(attempt)
        url, body = f"{mirror}{name}.gz", Future()
        # In a thread: a socket's time-out starts anew with each byte, and headers may drip, too.
        Thread(target=_fetch, args=(url, body), daemon=True).start()
        try:
            content = zlib.decompressobj(wbits=31).decompress(body.result(DEADLINE), LIMIT)
            if hashlib.sha256(content).hexdigest() == SHA256[name]:
                return content
            raise zlib.error("not the bytes of MNIST")
        except (OSError, HTTPException, ValueError, zlib.error) as error:
            damaged |= isinstance(error, zlib.error)  # not gzip: a page to sign in, for one
            text = "".join(c if c.isprintable() else "?" for c in str(error) or "too slow")[:200]
    if damaged:  # even once: what arrived was not MNIST, and the stand-in must not cover that up
        told = f"MNIST arrived with a wrong checksum: {name}.gz; last answer: {text}. {ELSEWHERE}"
        raise RuntimeError(told)
    text += f" (and in the cache, {reason})" if isinstance(reason, ValueError) else ""
    raise MirrorsUnreachable(f"no MNIST mirror answered in {ATTEMPTS} tries: {url}: {text}")


def _fetch(url: str, result: Future) -> None:
    """Put the body behind an address into ``result``, or why it did not come."""
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer:
            body = answer.read(LIMIT)
        if not len(body) == int(answer.headers.get("Content-Length", len(body))) < LIMIT:
            raise ConnectionError(f"cut off after {len(body):,} bytes")
        result.set_result(body)
    except Exception as error:
        result.set_exception(error)


def load_stand_in() -> Digits:
    """The 1,797 digits of sklearn.datasets.load_digits, 8 x 8, doubled to 16 x 16, padded to 28."""
    from sklearn.datasets import load_digits  # needed only here: not worth its time elsewhere

    raw = load_digits()
    images = np.kron(raw.images * (255 / 16), np.ones((1, 2, 2))).round().astype(np.uint8)
    images, labels = np.pad(images, ((0, 0), (6, 6), (6, 6))), raw.target.astype(int)
    test, train = np.split(np.random.default_rng(0).permutation(len(images)), [360])
    return Digits((images[train], labels[train]), (images[test], labels[test]), STAND_IN)
