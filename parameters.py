"""The door of every notebook: what is not installed, and what a parameter may be.

The set-up cell imports this module, which needs Python's own library alone: a package that is
missing ends there, in one sentence, and not in the middle of a notebook.
"""

import ast
import itertools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

# PyTorch's CPU threads (libgomp) spin while they wait for one another. Beside other work the one
# waited for may not be running, and a step takes several times as long (tests/busy.py measures it).
# It is read when torch is loaded, so it is set here.
SPINS = "10000"
os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "notebooks" / "results"

Rule = tuple[str, Callable[[object], bool]]  # what is expected, in words and as a test


def require_packages(file: Path = HERE / "requirements.txt") -> None:
    """Raise a ModuleNotFoundError that names each package of ``file`` that is not installed."""
    missing = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if name := re.match(r"[\w-]+", line):
            try:
                metadata.version(name[0])
            except metadata.PackageNotFoundError:
                missing.append(name[0])
    if missing:
        raise ModuleNotFoundError(
            f"Not installed: {', '.join(missing)}. In a terminal, in {file.parent}: "
            f"python -m pip install -r {file.name}"
        )


def whole(low: int, high: int) -> Rule:
    """A whole number; ``True`` and ``3.0`` are none."""
    text = f"a whole number from {low:,} to {high:,}"
    return text, lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Rule:
    """A finite number."""

    def good(value: object) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and low <= value <= high

    return f"a number from {low:g} to {high:g}", good


def is_name(value: object) -> bool:
    """Whether a text can name a folder or a file on every system, and cannot lead out of it."""
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_-]{1,60}", value))


def is_names(value: object) -> bool:
    """Whether it is a tuple or list of names; one text alone is none."""
    return isinstance(value, tuple | list) and all(map(is_name, value))


def is_scheduler(value: object) -> bool:
    """Whether ``records.run_study`` can run on it."""
    address = isinstance(value, str) and re.fullmatch(r"(tcp|tls)://[\w.-]+:\d{1,5}", value)
    return value in (None, "local") or bool(address)


NAME = ("letters, digits, _ and -, at most 60 of them", is_name)
NAMES = ('several names, such as ("one", "two")', is_names)
RULES: dict[str, Rule] = {
    "SEED": whole(0, 2**32 - 1),
    "EPOCHS": whole(1, 1_000),
    "DROPOUT": number(0, 0.9),
    "AUGMENT": number(0, 3),
    "PEAK_LR": number(1e-5, 10),
    "TEST_EVERY_EPOCH": ("True or False", lambda value: isinstance(value, bool)),
    "BAR": number(0, 100),
    "NAME": NAME,
    "STUDY": NAME,
    "ABLATION": NAME,
    "SAVE": (f"None, or {NAME[0]}", lambda value: value is None or is_name(value)),
    "SEEDS": whole(1, 10_000),
    "OUR_SEEDS": whole(0, 10_000),
    "ABLATION_SEEDS": whole(1, 10_000),
    "MORE_SEEDS": (
        'names and whole numbers, such as {"mixed_2922": 10}',
        lambda value: (
            isinstance(value, dict)
            and is_names(list(value))
            and all(type(n) is int and 1 <= n <= 10_000 for n in value.values())
        ),
    ),
    "NETWORKS": NAMES,
    "LEAVE_OUT": NAMES,
    "TRICKS": ("several texts in a tuple", lambda value: isinstance(value, tuple | list)),
    "SCHEDULER": ('None, "local", or an address such as "tcp://host:8786"', is_scheduler),
    "KIND": ('"cpu" or "cuda"', lambda value: value in ("cpu", "cuda")),
    "REPETITIONS": whole(2, 1_000),
    "DRAWS": whole(100, 1_000_000),
    "DAMAGED": whole(10, 10_000),
    "LOOK_AT": whole(0, 9_999),
    "MY_DIGIT": ("the name of a picture file", lambda value: isinstance(value, str) and value),
    "NETWORK": NAME,
}


def assigned(source: str) -> set[str]:
    """The names that a cell assigns."""
    nodes = ast.walk(ast.parse(source))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def unknown(history: Sequence[str]) -> list[str]:
    """What papermill injected although the notebook's own parameters do not name it.

    ``history`` is a kernel's ``In``: papermill's cell follows the one with the parameters.
    """
    found = set()
    for own, cell in itertools.pairwise(history):
        if cell.startswith("# Parameters\n"):
            found |= assigned(cell) - assigned(own) - {"NAME", "BAR"}
    return sorted(found)


def check(names: dict[str, object], **choices: Iterable) -> None:
    """Judge a notebook's parameters before anything runs; ``names`` are its ``globals()``.

    ``choices`` gives what a parameter's value, or each of its values, may be in this notebook.

    Raises:
        ValueError: with name, value and what is expected, if one of them cannot be used, or if a
            parameter was injected that does not exist.
        OSError: if the records could not be written: said now, not after the training.
    """
    if strange := unknown(names.get("In", ())):
        known = ", ".join(sorted(RULES.keys() & names.keys() - set(strange)))
        raise ValueError(f"{strange[0]} is no parameter of this notebook; it has {known}")
    for name, (expected, good) in RULES.items():
        if name in names and not good(names[name]):
            raise ValueError(f"{name} must be {expected}, got {names[name]!r}")
    for name, known in choices.items():
        value = names[name]
        for one in value if isinstance(value, tuple | list | dict) else [value]:
            if one not in known:
                expected = f"{known[0]} to {known[-1]}" if isinstance(known, range) else list(known)
                raise ValueError(f"{name}: {one!r} is none of {expected}")
    if "STUDY" in names:
        try:
            RESULTS.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=RESULTS):
                pass
        except OSError as error:
            raise OSError(f"records cannot be kept in {RESULTS}: {error}") from error


require_packages()
