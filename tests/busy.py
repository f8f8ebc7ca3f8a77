"""How much slower training becomes beside other work: ``python tests/busy.py [ROUNDS]``.

Step 6's loop in turns: on two threads with libgomp as it comes (a thread that waits spins for
milliseconds), with the limit that ``parameters.py`` sets, and on one thread; alone, beside a
process that only computes, and beside a second run on one thread. Each measurement is a new
process. The record is results/speed/busy_machine-seed0.json.
libgomp: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
"""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
import pandas as pd
import torch
import torch.nn.functional as F

import gpu
import parameters
import records
import utils

SETTINGS = {  # name: (threads, environment)
    "as it comes": (2, {}),
    "limited": (2, {"GOMP_SPINCOUNT": parameters.SPINS}),
    "one thread": (1, {}),
}
COMPANY = {  # what runs beside it: arguments of Python
    "nothing": [],
    "one busy process": ["-c", "while True: pass"],
    "a second run": [__file__, "--once", "1", "100000"],
}


def measure(threads: int, steps: int) -> float:
    """Milliseconds of a training step of step 6, 128 images, mean over ``steps``."""
    torch.set_num_threads(threads)
    data = utils.load_mnist()
    scope, generator = gpu.step_6(data=data), utils.seed_everything(0)
    model = scope["make_model"]().to(memory_format=torch.channels_last).train()
    optimizer = scope["make_optimizer"](model)
    loader = data.loader("train", 128, generator=generator, augment=scope["random_affine"])
    for number, (images, labels) in enumerate(
        itertools.chain.from_iterable(itertools.repeat(loader))
    ):
        if number == 5:  # memory has been found
            start = time.perf_counter()
        if number == steps + 5:
            break
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 1e3 * (time.perf_counter() - start) / steps


@contextlib.contextmanager
def beside(company: str) -> Iterator[None]:
    """With another process running, see ``COMPANY``."""
    if not COMPANY[company]:
        yield
        return
    with subprocess.Popen([sys.executable, *COMPANY[company]], stdout=subprocess.DEVNULL) as other:
        try:
            time.sleep(8 if company == "a second run" else 0)  # until it trains
            yield
        finally:
            other.kill()


def main(rounds: int, steps: int = 40) -> None:
    """Measure all settings in turns, print the medians, and keep the record."""
    rows, plain = [], {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    for number, company, name in itertools.product(range(rounds), COMPANY, SETTINGS):
        threads, environment = SETTINGS[name]
        if company == "a second run" and threads > 1:
            continue
        command = [sys.executable, __file__, "--once", str(threads), str(steps)]
        with beside(company):
            done = subprocess.run(command, env=plain | environment, stdout=-1, check=True)
        row = {"round": number, "name": name, "threads": threads, "beside": company}
        rows.append(row | {"ms a step": float(done.stdout.split()[-1])})
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).pivot_table("ms a step", "name", "beside", "median").round(1))
    record = records.make_measurement(
        "speed", "busy_machine", rows, utils.load_mnist().loader("val")
    )
    print(records.save_record(record | {"family": "busy"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(measure(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
