"""How much slower training becomes beside other work: ``python tests/busy.py [ROUNDS]``.

Step 6's loop on two threads, in turns: with libgomp as it comes (a thread that waits spins for
milliseconds), with the spin limit that ``parameters.py`` sets, without spinning, and on one thread;
alone and beside one busy process. Each round starts all anew. The record is results/speed/
busy_machine-seed0.json. libgomp: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
import parameters

SETTINGS = {  # name: (threads, environment)
    "as it comes": (2, {}),
    "limited": (2, {"GOMP_SPINCOUNT": parameters.SPINS}),
    "passive": (2, {"GOMP_SPINCOUNT": "0"}),
    "one thread": (1, {}),
}


def measure(threads: int, steps: int) -> float:
    """Milliseconds of a training step of step 6, 128 images, mean over ``steps``."""
    import torch
    import torch.nn.functional as F

    import gpu
    import utils

    torch.set_num_threads(threads)
    data = utils.load_mnist()
    scope, generator = gpu.step_6(data=data), utils.seed_everything(0)
    model = scope["make_model"]().to(memory_format=torch.channels_last).train()
    optimizer = scope["make_optimizer"](model)
    loader = data.loader("train", 128, generator=generator, augment=scope["random_affine"])
    for number, (images, labels) in enumerate(loader):
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
def busy(processes: int):
    """So many processes that do nothing but compute."""
    running = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()


def main(rounds: int, steps: int = 60) -> None:
    """Measure all settings in turns, print the medians, and keep the record."""
    import statistics

    import records
    import utils

    rows, plain = [], {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    for number in range(rounds):
        for beside in (0, 1):
            for name, (threads, environment) in SETTINGS.items():
                command = [sys.executable, __file__, "--once", str(threads), str(steps)]
                with busy(beside):
                    done = subprocess.run(
                        command, env=plain | environment, stdout=subprocess.PIPE, check=True
                    )
                row = {"round": number, "name": name, "threads": threads, "busy processes": beside}
                rows.append(row | {"ms a step": float(done.stdout.split()[-1])})
                print(rows[-1], flush=True)
    for beside in (0, 1):
        for name in SETTINGS:
            found = [
                r["ms a step"] for r in rows if (r["name"], r["busy processes"]) == (name, beside)
            ]
            print(f"{beside} busy, {name}: median {statistics.median(found):.1f} ms a step")
    data = utils.load_mnist()
    record = records.make_measurement("speed", "busy_machine", rows, data.loader("train"))
    print(records.save_record(record | {"family": "busy"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(measure(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
