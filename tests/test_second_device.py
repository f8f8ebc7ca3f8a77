"""The loops on a second device: nothing mixes with the CPU, few waits; every notebook runs there.

No GPU is needed: ``second_device.py`` says what this can see. In a process of their own, because
the device stays registered.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import manage

HERE = Path(__file__).parent
MOVE = f"""
sys.path.insert(0, {str(HERE)!r})
import second_device
import torch
import utils

utils.pick_device = lambda: torch.device("gpu")
"""
LOOPS = """
import json, torch, utils
torch.manual_seed(0)
device = utils.pick_device()
data = utils.load_mnist(device)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train = data.loader("train", 64, generator=utils.seed_everything(0), augment=lambda x, g: x)
val, counts = data.loader("val"), []
for _ in range(2):
    before = second_device.reads()
    utils.train_epoch(model, train, optimizer)
    counts.append(second_device.reads() - before)
before = second_device.reads()
accuracy = utils.evaluate(model, val).accuracy
counts.append(second_device.reads() - before)
print(json.dumps({"reads": counts, "accuracy": accuracy, "device": str(data.train.images.device)}))
"""


def test_a_training_epoch_waits_for_the_device_once(monkeypatch):
    monkeypatch.setenv("DATASET", "digits")
    code = f"import sys; sys.path.insert(0, {str(manage.ROOT)!r})\n{MOVE}{LOOPS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"] == "gpu:0" and found["accuracy"] > 60
    assert found["reads"][:2] == [1, 1], "loss and hits together, at the end of an epoch"
    assert found["reads"][2] <= 3, "all finite? the loss; the number correct"


def test_the_second_device_refuses_to_mix():
    code = f"import sys\n{MOVE.split('import utils')[0]}\n"
    code += "x = torch.ones(3).to('gpu'); print((x + 1).sum().item()); x + torch.ones(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "6.0\n" and "expected all tensors on the same device" in done.stderr


@pytest.mark.full
def test_the_gpu_commands_own_loop_runs_there_and_never_waits(monkeypatch):
    monkeypatch.setenv("SMOKE_TEST", "1")
    code = f"import sys; sys.path[:0] = [{str(manage.ROOT)!r}, {str(manage.NOTEBOOKS)!r}]\n{MOVE}"
    code += """
import gpu
device, counts = utils.pick_device(), []
make_step = gpu.make_step
def counted(*arguments):
    step, state = make_step(*arguments)
    def call():
        before = second_device.reads()
        loss = step()
        counts.append(second_device.reads() - before)
        return loss
    return call, state
gpu.make_step = counted
record = gpu.whole_run("loop_float32", 0, device, 2)
assert len(record["history"]["val_accuracy"]) == 2 and record["study"] == "gpu", record
print(sum(counts), len(counts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 12", "no step reads a number from the device"


@pytest.mark.parametrize(
    ("folder", "where"),
    [("notebooks", "gpu"), pytest.param("notebooks/solutions", "cpu", marks=pytest.mark.full)],
)
def test_the_smoke_tests_of_the_notebooks_run_there(folder, where):
    """What their kernels execute first moves them, and leaves no name behind."""
    code = "import os, subprocess, sys, conftest; conftest.pytest_configure(None); "
    code += "subprocess.run([sys.executable, '-m', 'IPython', '-c', sys.argv[1]], cwd=sys.argv[2])"
    inside = (
        f"import sys; sys.path.append({str(manage.ROOT)!r}); names = [*globals()]; import utils; "
    )
    inside += "print(utils.pick_device(), {'torch', 'utils', 'os', 'move'} & {*names})"
    command = [sys.executable, "-c", code, inside, manage.ROOT / folder]
    done = subprocess.run(command, cwd=manage.NOTEBOOKS, capture_output=True, text=True)
    assert done.stdout.split() == [where, "set()"], done.stderr
