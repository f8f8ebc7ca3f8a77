"""nbval: run every notebook as a smoke test, and leave progress bars out of the comparison."""

import os

import pytest

os.environ["SMOKE_TEST"] = "1"  # kernels inherit it
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: more threads would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
