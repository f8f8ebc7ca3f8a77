"""What only a GPU can show, in one command, planned for 25 minutes: ``python notebooks/gpu.py``.

python notebooks/gpu.py              all jobs
python notebooks/gpu.py JOB ...      some of them: speed, graph, seeds, walk

speed  notebook 11 there: its tricks, and the usual pipeline beside ours
graph  step 6 as one CUDA graph, in float32, float16 and bfloat16, beside the same loop without
seeds  thirty seeds of step 6 in full, by notebook 08
walk   the choice and the walk to a mean of 99.4 %, by notebook 10

Records go to results/gpu/, those of the walk to results/speed/. What has one is not run again, so
an interrupted command goes on where it stopped; a job that fails does not stop the others. It has
run on no GPU yet: tests hold its loop against step 6's, and run it on a second device.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import manage
import records
import utils

STUDY, STEP = "gpu", "06_lr_schedule"
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def step_6(**values: object) -> dict:
    """What step 6's cells define: network, warp, hyperparameters and schedule."""
    scope = {"torch": torch, "nn": nn, "F": F, "math": math, "DROPOUT": 0.01, "AUGMENT": 1.0}
    scope |= {"EPOCHS": 19, "PEAK_LR": 0.1} | values
    for key in ("model", "random-affine", "hyperparameters", "optimizer", "schedule"):
        exec(manage.code_cells(STEP)[key]["source"], scope)
    return scope


class Matrices:
    """Stands for ``torch.nn.functional`` where step 6's warp is asked for its matrices alone."""

    affine_grid = staticmethod(lambda matrices, *_, **__: matrices)
    grid_sample = staticmethod(lambda _, matrices, **__: matrices)


class Plan(NamedTuple):
    """All that a run draws or looks up, a row a step: so nothing waits for the CPU."""

    order: Tensor  # int64 [S, B]: which images
    matrices: Tensor  # float [S, B, 2, 3]: their warps
    rates: Tensor  # float [S]: learning rates


def draw_plan(data: utils.Data, epochs: int, seed: int) -> Plan:
    """The same draws as the loader's and step 6's warp's, from the same seed.

    But an epoch ends with its last full batch: a graph has one batch size.
    """
    scope, generator = step_6(data=data, EPOCHS=epochs, F=Matrices), utils.seed_everything(seed)
    size, order, matrices, rates = scope["hyperparameters"]["batch_size"], [], [], []
    for _ in range(epochs):
        ids = torch.randperm(len(data.train), generator=generator)
        for batch in ids.split(size):
            drawn = scope["random_affine"](torch.empty(len(batch), 1, 28, 28), generator)
            if len(batch) == size:
                order.append(batch)
                matrices.append(drawn)
    scheduler = scope["make_scheduler"](torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    for _ in order:
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    parts = torch.stack(order), torch.stack(matrices), torch.tensor(rates)
    return Plan(*(part.to(data.train.images.device) for part in parts))


def make_step(
    model: nn.Module, data: utils.Data, plan: Plan, hyperparameters: dict, dtype: torch.dtype | None
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """One training step of step 6 as a function without arguments that returns the loss.

    Each call goes one row further in ``plan``. Also returned: the tensors that it changes. SGD with
    Nesterov momentum is written out, because its rate must be read on the device.
    """
    weights = list(model.parameters())
    momenta, now = [torch.zeros_like(p) for p in weights], torch.zeros_like(plan.order[0, :1])
    momentum, decay = hyperparameters["momentum"], hyperparameters["weight_decay"]
    # In float16 small gradients would become zero (Micikevicius et al. 2018, arXiv:1710.03740).
    scale = 128.0 if dtype == torch.float16 else 1.0
    images, labels = data.train.images, data.train.labels

    def step() -> Tensor:
        ids, matrices, rate = (
            part.index_select(0, now)[0] for part in (plan.order, plan.matrices, plan.rates)
        )
        batch = images.index_select(0, ids).unsqueeze(1).float() / 255
        grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
        batch = data.normalize(F.grid_sample(batch, grid, align_corners=False))
        with torch.autocast(batch.device.type, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(batch), labels.index_select(0, ids))
        gradients = torch.autograd.grad(loss * scale, weights)
        with torch.no_grad():
            for weight, gradient, velocity in zip(weights, gradients, momenta, strict=True):
                gradient = gradient / scale + (decay * weight if weight.ndim > 1 else 0)
                velocity.mul_(momentum).add_(gradient)
                weight.sub_(rate * (gradient + momentum * velocity))
            now.add_(1)
        return loss.detach()

    return step, [*model.state_dict().values(), *momenta, now]


def captured(step: Callable[[], Tensor], state: list[Tensor]) -> Callable[[], None]:
    """The step as a CUDA graph: a call replays its kernels, and Python launches none of them.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html asks: some calls on another stream
    first. What they changed is put back.
    """
    before = [tensor.clone() for tensor in state]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
    return graph.replay


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def whole_run(name: str, seed: int, device: torch.device, epochs: int = 19) -> dict:
    """Step 6, all drawn beforehand; ``name`` says how: ``loop_float32``, ``graph_float16``."""
    way, precision = name.split("_")
    data = utils.load_mnist(device)
    scope = step_6(data=data, EPOCHS=epochs)
    plan = draw_plan(data, epochs, seed)
    utils.seed_everything(seed)
    model = scope["make_model"]().to(device, memory_format=torch.channels_last).train()
    own = scope["hyperparameters"] | {"precision": precision, "way": way, "drop_last": True}
    step, state = make_step(model, data, plan, own, PRECISIONS[precision])
    step = captured(step, state) if way == "graph" else step
    val, history = data.loader("val"), {"seconds": [], "val_loss": [], "val_accuracy": []}
    for _ in range(epochs):
        wait(device)
        start = time.perf_counter()
        for _ in range(len(plan.order) // epochs):
            step()
        wait(device)
        history["seconds"].append(time.perf_counter() - start)
        found = utils.evaluate(model, val)
        history["val_loss"].append(found.loss)
        history["val_accuracy"].append(found.accuracy)
        model.train()
    run = {"study": STUDY, "name": name, "seed": seed, "epochs": epochs, "hyperparameters": own}
    loaders = (data.loader("train", own["batch_size"]), val)
    test = utils.evaluate(model, data.loader("test"))
    return records.make_run(run, model, history, loaders, test)


# --- Jobs -----------------------------------------------------------------------------------------


def notebook(name: str, last: str, **values: object) -> None:
    """Run a notebook with these parameters, up to the cell whose id is ``last``."""
    print(f"notebook {name} with {values}", flush=True)
    copy = records.RESULTS / "scratch" / "copies" / f"gpu-{name}.ipynb"
    cut = manage.read(name)
    cut["cells"] = cut["cells"][: [cell["id"] for cell in cut["cells"]].index(last) + 1]
    copy.parent.mkdir(parents=True, exist_ok=True)
    manage.replace_text(copy, json.dumps(cut))
    records.run_notebook(copy, values, copy.with_suffix(".out.ipynb"))


def run_speed() -> None:
    """Notebook 11: what pays, and the ratio to the usual pipeline."""
    place = records.environment(utils.pick_device())["device"]
    name = "".join(letter if letter.isalnum() else "_" for letter in place.lower())[:50]
    tricks = ["dropout by gaps", "batches of 512", "fused optimizer", "torch.compile"]
    notebook("11_cost_of_a_step", "pipeline", STUDY=STUDY, SAVE=f"speed_{name}", TRICKS=tricks)


def run_graph() -> None:
    """Three seeds of each way and precision; where there are no CUDA graphs, of the loop alone."""
    device = utils.pick_device()
    ways = ("loop", "graph") if device.type == "cuda" else ("loop",)
    plan = [(f"{way}_{kind}", n) for n in range(3) for kind in PRECISIONS for way in ways]
    have = {(record["name"], record["seed"]) for record in records.load_records(STUDY)}
    epochs = 1 if utils.is_smoke_test() else 19
    run = lambda name, seed: records.save_record(whole_run(name, seed, device, epochs))  # noqa: E731
    failed = records.run_study(plan, run, have)
    utils.require(not failed, "\n".join(failed))


def run_seeds() -> None:
    """Thirty seeds of step 6, one after another."""
    notebook("08_many_seeds", "seeds", STUDY=STUDY, SEEDS=30, LEAVE_OUT=[], SCHEDULER=None)


def run_walk() -> None:
    """Notebook 10 on this device, up to the table of the walk: its seconds are a CPU's."""
    notebook("10_time_to_994", "points", KIND="cuda")


JOBS = {"speed": run_speed, "graph": run_graph, "seeds": run_seeds, "walk": run_walk}


def main() -> None:
    """Do the jobs that the command line names; say at the end which of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("jobs", nargs="*", choices=["all", *JOBS], default="all")
    jobs, failed = parser.parse_args().jobs, []
    device = utils.pick_device()
    if device.type == "cpu":
        sys.exit("No GPU here: PyTorch finds none. In Colab: Runtime, Change runtime type.")
    print(records.environment(device))
    for job in JOBS if "all" in jobs else jobs:
        start = time.perf_counter()
        try:
            JOBS[job]()
        except Exception:  # each job is worth having without the others
            failed.append(job)
            traceback.print_exc()
        print(f"{job}: {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main()
