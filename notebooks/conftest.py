"""nbval: run every notebook as a smoke test, and leave progress bars out of the comparison.

The notebooks of this folder compute on a second device, as they would on a GPU: what mixes devices
fails. Solutions run on the CPU; with NOTEBOOKS_ON=cpu all of them do. (tests/second_device.py)
"""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["SMOKE_TEST"] = "1"  # kernels inherit it
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: more threads would only compete
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
STARTUP = f"""
def move():  # a function: a name that is left over would stand in for a forgotten import
    import os, sys

    os.environ.pop("IPYTHONDIR")  # the kernels that a notebook starts compute on the CPU
    if os.path.basename(os.getcwd()) == "notebooks":
        before = list(sys.path)
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import second_device
        import torch
        import utils

        utils.pick_device = lambda: torch.device("gpu")
        sys.path[:] = before


move()
del move
"""


def pytest_configure(config: pytest.Config) -> None:
    if not {"DATASET", "MNIST_DIR"} & set(os.environ):  # ask the mirrors once, not in each kernel
        sys.path.insert(0, str(ROOT))
        import mnist

        with contextlib.suppress(RuntimeError, OSError):  # each notebook says so itself
            if mnist.load().name != "MNIST":
                os.environ["DATASET"] = "digits"  # workers and kernels inherit it
    if os.environ.get("NOTEBOOKS_ON") != "cpu":
        folder = Path(tempfile.mkdtemp())  # what each kernel executes first
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / "profile_default" / "startup").mkdir(parents=True)
        (folder / "profile_default" / "startup" / "device.py").write_text(STARTUP)
        os.environ["IPYTHONDIR"] = str(folder)


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
