"""How long whole runs take, recipe beside recipe, on one thread.

python tests/race.py pace [NAME ...]    by the pace of 60 batches, five rounds (7 minutes)
python tests/race.py pairs [NAME ...]   trained to the end, five rounds (10 minutes)

A NAME is a recipe of notebook 10, R1 to R5 (step 7), step6 or smallest (step 9). All take turns in
one process: what disturbs the machine disturbs all of them. No test image is read. Without a NAME
all that are published take part, and there is a record: in_turns-seed0.json or pairs-seed0.json, in
results/scratch/speed (with PUBLISH=1 in place of the published one).
"""

import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
import pandas as pd
import torch

import claims
import manage
import records
import utils

PUBLISHED = {
    "pace": [
        *("stride_b128_a25_m5_h30_k4", "stride_b128_a25_r20_h28_k5", "short_b128_a25_r20_k3"),
        *("short_b128_a50_k3", "short_b256_a100_k4", "short_b512_a100_k4"),
        *("step6_b128_a100_r10_f10_h28_k19", "step6", "smallest", "R1", "R2", "R3", "R4", "R5"),
    ],
    "pairs": [
        *("short_b128_a25_r20_k3", "stride_b128_a25_r20_h28_k5", "stride_b128_a25_m5_h30_k4"),
    ],
}
RUNS = ("trunks", "model", "names", "hard", "muon", "prepare", "train")


def load_builders(scope: dict) -> tuple[dict, dict]:
    """What builds the networks of steps 6, 7 and 9; and the code of step 7, with its recipes."""
    step_6 = {key: cell["source"] for key, cell in manage.code_cells("06_lr_schedule").items()}
    seven = {key: scope[key] for key in ("nn", "torch", "F", "math", "pd", "data", "device")}
    seven["STEP_6"] = step_6
    for key in (
        "block",
        "model-r1-r2",
        "model-r4-r5",
        "model-r3",
        "recipes",
        "optimizer",
        "augment",
    ):
        exec(manage.code_cells("07_reference_networks")[key]["source"], seven)
    nine = {"nn": scope["nn"], "re": scope["re"], "utils": utils}
    for key in ("convolution", "network", "specs"):
        exec(manage.code_cells("09_smallest_network")[key]["source"], nine)
    exec(step_6["model"], six := {"nn": scope["nn"], "DROPOUT": 0.01})
    build = {f"R{n}": seven[f"make_r{n}"] for n in (1, 2, 4, 5)} | {"R3": seven["R3"]}
    build["step6"] = six["make_model"]
    build["smallest"] = lambda: nine["network"](nine["SPECS"]["mixed_2922"])
    return build, seven


def make_ready(scope: dict, names: list[str], piece: int) -> dict[str, tuple]:
    """By name: a piece of training of so many batches, images to sort, batches of a whole run."""
    build, seven = load_builders(scope)
    data, parts = scope["data"], {}
    for name in names:
        own, looks = seven["RECIPES"].get(name, seven["RECIPES"]["ours"]), 0
        if name in build:
            own = own | ({"batch_size": 64} if name == "smallest" else {})
            images = 60_000 if name in seven["RECIPES"] else 55_000
            batches = own["epochs"] * math.ceil(images / own["batch_size"])
            warp = {"generator": utils.seed_everything(0)}
            warp["augment"] = seven["make_augment"](own["augment"])
            model = build[name]().to(memory_format=torch.channels_last)
            optimizer, _ = seven["make_sgd"](model, own, own["epochs"], 500)
        else:
            own, model, warp, optimizer, _, batches = scope["prepare"](name, 0)
            left = own["epochs"] - own.get("first", own["epochs"])
            looks = math.ceil(left / 7) if left else 0  # as often `train` sorts the images
        part = data.loader(data.train[: piece * own["batch_size"]], own["batch_size"], **warp)
        # of these looks the share that belongs to a piece; one image where there is none
        sorted_ = data.train[: max(1, round(looks * piece / batches * len(data.train)))]
        parts[name] = (model, part, optimizer), data.loader(sorted_, 250), batches
    return parts


def pace(scope: dict, names: list[str], rounds: int) -> list[dict]:
    """Seconds of a whole run by the pace of a piece; the first round does not count."""
    piece, rows = 2 if utils.is_smoke_test() else 60, []
    parts = make_ready(scope, names, piece)
    for number in range(rounds + 1):
        for name, (training, looks, batches) in parts.items():
            start = time.perf_counter()
            utils.train_epoch(*training)
            utils.evaluate(training[0], looks)
            spent = (time.perf_counter() - start) * batches / piece
            rows += [{"round": number, "name": name, "seconds": spent}] if number else []
    return rows


def pairs(scope: dict, names: list[str], rounds: int) -> list[dict]:
    """Seconds of whole runs; seeds from 900 on never see a test image."""
    rows = []
    for number in range(rounds):
        for name in names:
            run = scope["train"](name, 900 + number)
            rows.append({"round": number, "name": name, "seconds": run["seconds"]})
    return rows


def main(what: str, names: list[str]) -> None:
    """Measure, print the medians with their ranges, and keep the record of what is published."""
    torch.set_num_threads(1)
    utils.pick_device = lambda: torch.device("cpu")
    scope = claims.run_cells("10_time_to_994", *RUNS)
    own = names or PUBLISHED[what]
    rows = {"pace": pace, "pairs": pairs}[what](scope, own, 1 if utils.is_smoke_test() else 5)
    found = pd.DataFrame(rows).groupby("name", sort=False)["seconds"]
    print(found.agg(["median", "min", "max"]).round(1))
    if not names and not utils.is_smoke_test():
        name = {"pace": "in_turns", "pairs": "pairs"}[what]
        data = scope["data"]
        print(
            records.save_record(records.make_measurement("speed", name, rows, data.loader("train")))
        )


if __name__ == "__main__":
    if sys.argv[1:2] not in (["pace"], ["pairs"]):
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
