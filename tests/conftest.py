"""Options and fixtures of the tests; the notebooks' own settings are in notebooks/conftest.py."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
HOSTILE = {  # each case ends in a sentence of our own or in success
    "test_hostile.py": "of records, names, pictures and lines",
    "test_mnist.py": "of mirrors and files",
    "test_parameters.py": "of parameters",
}
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: more threads would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also trainings and browsers")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes minutes, needs --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        for item in items:
            browser = "chromium" in getattr(item, "fixturenames", ())
            if browser or "full" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: needs --full"))


@pytest.fixture(autouse=True)
def same_environment():
    """A dask cluster leaves settings behind that make the notebooks' kernels three times slower."""
    before = dict(os.environ)
    for name in ("SMOKE_TEST", "IPYTHONDIR"):  # for the kernels of notebooks/conftest.py alone
        os.environ.pop(name, None)
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the hostile cases, and the time that they took."""
    counted = {}
    for report in terminalreporter.getreports("passed"):
        file = Path(report.nodeid.split("::")[0]).name
        if file in HOSTILE:
            counted.setdefault(file, []).append(report.duration)
    if counted:
        cases = ", ".join(f"{len(counted[file])} {HOSTILE[file]}" for file in sorted(counted))
        seconds = sum(map(sum, counted.values()))
        number = sum(map(len, counted.values()))
        terminalreporter.write_line(f"hostile cases: {number} passed in {seconds:.0f} s ({cases})")
