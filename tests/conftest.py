"""Options and fixtures of the tests; the notebooks' own settings are in notebooks/conftest.py."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: more threads would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also train for real (needs MNIST)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: trains for real, needs --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            if "full" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="trains for real: needs --full"))


@pytest.fixture(autouse=True)
def same_environment():
    """A dask cluster leaves settings behind that make the notebooks' kernels three times slower."""
    before = dict(os.environ)
    os.environ.pop("SMOKE_TEST", None)  # set for the notebooks' kernels by their own conftest.py
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def digits(monkeypatch):
    """The stand-in data set: always at hand, a second to train on."""
    import utils

    monkeypatch.setenv("DATASET", "digits")
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    return utils.load_mnist()


def pytest_terminal_summary(terminalreporter) -> None:
    """Count the bad days that the data loader was put through."""
    cases = [r for r in terminalreporter.getreports("passed") if "test_mnist.py" in r.nodeid]
    if cases:
        terminalreporter.write_line(f"data on bad days: {len(cases)} cases passed")
