"""Make the page's data and the networks for others from the published records.

python site/build.py          data.js of the page, and site/models/: weights, ONNX, model cards
python site/build.py --time   first measure how long an image takes in onnxruntime (own record)

Nothing is trained. The test digits are read once: their share that the page doubts is told there.
"""

import argparse
import base64
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import junk
import numpy as np
import onnxruntime
import torch
from hub import MODELS, DigitReader, cells
from torch import Tensor, nn

import manage
import records
import utils

# name of the folder: the published run, its study of many seeds, its line in 09, what it is
NETWORKS = {
    "step-6": {
        "run": "steps/06_lr_schedule-seed0",
        "seeds": ("seeds", "06_lr_schedule"),
        "line": "16-P-16p-16-24-24-24",
        "title": "step 6 of the series",
        "fixed": True,  # the seed was fixed beforehand
    },
    "smallest": {
        "run": "networks/mixed_2922-seed0",
        "seeds": ("smallest", "mixed_2922"),
        "line": "8-8-=-P-32sp-32s-=-=",
        "title": "the smallest with a mean of 99.4 %",
        "fixed": True,
    },
    "separable-96": {
        "run": "best/separable_96-seed2",
        "seeds": ("best", "separable_96"),
        "line": "16-16-16-P-96sp-96s-=-=",
        "title": "the highest mean of notebook 12",
        "fixed": False,  # the first run at the median
    },
}
ON_THE_PAGE = ("step-6", "smallest")
ACCEPTED = 2  # how many times as bad as to believe junk it is to doubt a digit


# --- What the page needs --------------------------------------------------------------------------


def load(name: str, data: utils.Data) -> tuple[DigitReader, dict]:
    """A published network behind its normalisation, in eval mode, and its record."""
    record = records.load_record(records.RESULTS / f"{NETWORKS[name]['run']}.json")
    reader = DigitReader(NETWORKS[name]["line"], data.mean, data.std)
    weights = nn.Sequential(*(m for m in reader.network if not isinstance(m, nn.Dropout)))
    # The steps have no dropout before the last layer: its number is another.
    if record["study"] == "steps":
        records.load_weights(weights, record)
    else:
        records.load_weights(reader.network, record)
    parameters = utils.count_parameters(reader)
    utils.require(parameters == record["parameters"], f"{name} has {parameters:,} parameters")
    return reader.eval(), record


def pack(network: nn.Sequential) -> dict:
    """A network as the page runs it: its blocks, its head, and all numbers as base64 (float32).

    Batch norm is folded into a scale and a shift a channel. They stay behind the max pool: a
    negative scale cannot pass it. A shared kernel is kept once. Raises a ValueError for a layer
    that the page does not know.
    """
    numbers, places = [], {}

    def put(tensor: Tensor) -> int:
        key = tensor.data_ptr()
        if key not in places:
            places[key] = sum(len(part) for part in numbers)
            numbers.append(tensor.detach().flatten().float().numpy())
        return places[key]

    blocks, kept = [], []
    for layer in network:
        parts = [m for m in layer.modules() if not isinstance(m, nn.Sequential | nn.Dropout)]
        kinds = [type(part) for part in parts]
        convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]
        if not convolutions:
            continue
        order = [nn.Conv2d] * len(convolutions) + [nn.MaxPool2d] * (nn.MaxPool2d in kinds)
        utils.require(kinds == [*order, nn.BatchNorm2d, nn.ReLU], f"unknown block: {kinds}")
        norm = parts[-2]
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        kept += [scale, shift]  # alive until the end: an address names one tensor
        layers = [
            {"outputs": c.out_channels, "kernel": c.kernel_size[0], "padding": c.padding[0]}
            | {"groups": c.groups, "offset": put(c.weight)}
            for c in convolutions
        ]
        block = {"convolutions": layers, "pool": nn.MaxPool2d in kinds}
        blocks.append(block | {"scale": put(scale), "shift": put(shift)})
    head = {"weight": put(network[-1].weight), "bias": put(network[-1].bias)}
    weights = base64.b64encode(np.concatenate(numbers).astype("<f4").tobytes()).decode()
    return {"blocks": blocks, "head": head, "weights": weights}


@torch.no_grad()
def logits_of(reader: nn.Module, images: Tensor) -> Tensor:
    """Logits ``[N, 10]`` of uint8 images ``[N, 28, 28]``."""
    return torch.cat([reader(part[:, None].float() / 255) for part in images.split(500)])


def choose_threshold(reader: nn.Module, data: utils.Data) -> dict:
    """The evidence below which the page doubts, and how often it errs (percent).

    Evidence is the largest logit. The threshold is chosen on validation images against letters and
    scribbles; the rates told are those of the test digits, of letters in other fonts, and of other
    scribbles.
    """
    to_mnist = cells("15_your_own_digit", "to-mnist")["to_mnist"]
    chosen_on = [junk.letters("DejaVu*.ttf", to_mnist), junk.scribbles(400, 0, to_mnist)]
    told_on = {"letters": junk.letters("STIXGeneral*.ttf", to_mnist)}
    told_on |= {"scribbles": junk.scribbles(400, 1, to_mnist)}

    def evidence(images: Tensor) -> Tensor:
        return logits_of(reader, images).max(dim=1).values.double()

    digits, others = evidence(data.val.images), [evidence(images) for images in chosen_on]

    def cost(threshold: float) -> float:
        passed = [(one >= threshold).double().mean().item() for one in others]
        return ACCEPTED * (digits < threshold).double().mean().item() + statistics.mean(passed)

    grid = np.arange(0, digits.max().item(), 0.05).round(2).tolist()
    threshold = min(grid, key=cost)
    found = {"threshold": threshold, "counts": {"digits": len(data.test)}}
    found["doubted"] = {
        "validation": 100 * (digits < threshold).double().mean().item(),
        "test": 100 * (evidence(data.test.images) < threshold).double().mean().item(),
    }
    found["believed"] = {}
    for name, images in told_on.items():
        found["believed"][name] = 100 * (evidence(images) >= threshold).double().mean().item()
        found["counts"][name] = len(images)
    return found


def gallery(reader: nn.Module, data: utils.Data) -> dict:
    """The test digits that this network misreads, those first that most runs misread, too."""
    read, labels = logits_of(reader, data.test.images).argmax(dim=1), data.test.labels
    runs = records.load_records("seeds", "06_lr_schedule")
    shared = {i: sum(i in run["test_errors"] for run in runs) for i in range(len(labels))}
    wrong = (read != labels).nonzero().flatten().tolist()
    wrong = sorted(wrong, key=lambda i: (-shared[i], i))
    digits = [
        {"index": i, "label": labels[i].item(), "read": read[i].item(), "runs": shared[i]}
        | {"doubtful": i in records.LABEL_ERRORS}
        for i in wrong
    ]
    pixels = base64.b64encode(data.test.images[wrong].numpy().tobytes()).decode()
    return {"digits": digits, "runs": len(runs), "pixels": pixels}


def about(name: str, record: dict, data: utils.Data) -> dict:
    """What the page and the model card say of a network, from its records."""
    runs = records.load_records(*NETWORKS[name]["seeds"])
    many = records.summary([run["test_accuracy"] for run in runs])
    found = {"name": name, "parameters": record["parameters"], "mean": data.mean, "std": data.std}
    found |= {"accuracy": record["test_accuracy"], "epochs": record["epochs"]}
    return found | {"runs": many["n"], "average": many["mean"], "spread": many["std"]}


def write_page_data(readers: dict[str, tuple[DigitReader, dict]], data: utils.Data) -> Path:
    """Write ``data.js``: the networks, the threshold and the gallery."""
    first, (reader, _) = "step-6", readers["step-6"]
    networks = [
        about(name, record, data) | pack(model.network)
        for name, (model, record) in readers.items()
        if name in ON_THE_PAGE
    ]
    content = {"networks": networks, "doubt": choose_threshold(reader, data) | {"network": first}}
    content["gallery"] = gallery(reader, data)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(content[key])}" for key in content)
    path = SITE / "data.js"
    note = "// Made from notebooks/results by `python site/build.py`: not to be edited.\n"
    manage.replace_text(path, f"{note}const DATA = {{\n{lines}\n}};\n")
    return path


# --- Networks for others --------------------------------------------------------------------------


def export(name: str, reader: DigitReader) -> Path:
    """Write weights, configuration and an ONNX file of a network; return its folder."""
    folder = MODELS / name
    reader.save_pretrained(folder)  # with config.json: what the class needs to be made again
    (folder / "model.safetensors").chmod(0o644)
    batch, options = torch.export.Dim("batch"), {"dynamo": True, "optimize": True}
    torch.onnx.export(
        reader,
        (torch.zeros(2, 1, 28, 28),),
        folder / "model.onnx",
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: batch}},
        external_data=False,
        verbose=False,
        **options,
    )
    return folder


def open_onnx(name: str) -> onnxruntime.InferenceSession:
    """The ONNX file of a network, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = str(MODELS / name / "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(name: str, reader: DigitReader, images: Tensor) -> float:
    """The largest difference between onnxruntime's and PyTorch's logits.

    Raises a ValueError if one digit is read differently or a logit differs by 0.001.
    """
    session, gap = open_onnx(name), 0.0
    for part in images.split(1_000):
        pixels = part[:, None].float() / 255
        found = torch.from_numpy(session.run(None, {"images": pixels.numpy()})[0])
        wanted = logits_of(reader, part)
        same = bool((found.argmax(dim=1) == wanted.argmax(dim=1)).all())
        utils.require(same, f"{name}: onnxruntime reads a digit differently")
        gap = max(gap, (found - wanted).abs().max().item())
    utils.require(gap < 1e-3, f"{name}: onnxruntime's logits differ by {gap}")
    return gap


def measure(data: utils.Data, rounds: int = 5) -> Path:
    """Time onnxruntime on one thread, the networks in turns; save the record."""
    sessions = {name: open_onnx(name) for name in NETWORKS}
    rows = []
    for number, batch, name in itertools.product(range(rounds), (1, 100), NETWORKS):
        pixels = data.test.images[:batch, None].float().numpy() / 255
        times = []
        for _ in range(1_000 // batch):
            start = time.perf_counter()
            sessions[name].run(None, {"images": pixels})
            times.append((time.perf_counter() - start) / batch)
        row = {"round": number, "network": name, "batch": batch}
        row |= {"microseconds": 1e6 * statistics.median(times)}
        rows.append(row | {"onnxruntime": onnxruntime.__version__})
    os.environ["PUBLISH"] = "1"  # in the place of the measurement that is published
    measured = records.make_measurement("networks", "onnx", rows, data.loader("test"))
    return records.save_record(measured)


def tell_timing(name: str) -> str:
    """What an image takes, as a sentence."""
    measured = records.load_record(records.RESULTS / "networks" / "onnx-seed0.json")
    times = {1: [], 100: []}
    for row in measured["rows"]:
        if row["network"] == name:
            times[row["batch"]].append(row["microseconds"])
    one, many = (
        f"{statistics.median(found):.0f} microseconds ({min(found):.0f} to {max(found):.0f})"
        for found in times.values()
    )
    device = measured["device"].removeprefix("cpu: ")
    return (
        f"On one thread of an {device} onnxruntime takes {one} for one image, and {many} for each "
        f"of a hundred at a time (median and range of {len(times[1])} rounds)."
    )


def tell_choice(name: str, run: dict) -> str:
    """Why this run is the published one, as a sentence."""
    if NETWORKS[name]["fixed"]:
        return f"It was not picked: seed {run['seed']} was fixed beforehand."
    runs = [r["test_accuracy"] for r in records.load_records(*NETWORKS[name]["seeds"])]
    better, worse = (sum(sign * r > sign * run["test_accuracy"] for r in runs) for sign in (1, -1))
    return (
        f"It was picked at the median of the {len(runs)}: {better} are better, {worse} worse. "
        "Earlier test results had a say in trying this network (notebook 12)."
    )


def write_card(name: str, record: dict, data: utils.Data, gap: float) -> None:
    """Write a network's README.md as the Hugging Face Hub reads it, from records alone."""
    import onnx

    folder = MODELS / name
    repository, ref = manage.settings()
    opset = onnx.load(folder / "model.onnx").opset_import[0].version
    sizes = {f"{kind}_bytes": (folder / f"model.{end}").stat().st_size
             for kind, end in (("weights", "safetensors"), ("onnx", "onnx"))}  # fmt: skip
    values = about(name, record, data) | sizes | NETWORKS[name] | {"timing": tell_timing(name)}
    values |= {
        "gap": gap,
        "opset": opset,
        "seed": record["seed"],
        "picked": tell_choice(name, record),
    }
    values |= {"wrong": record["test_images"] - record["test_correct"], "device": record["device"]}
    more = f", {record['val_images']:,} more to choose with" if record["val_images"] else ""
    values |= {"train_images": record["train_images"], "more": more}
    values |= {"repository": repository, "ref": ref, "torch": record["versions"]["torch"]}
    card = (SITE / "model_card.md").read_text(encoding="utf-8")
    manage.replace_text(folder / "README.md", card.format(**values))


def main() -> None:
    """Read the command line and build; print what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--time", action="store_true", help="measure onnxruntime, too")
    timed = parser.parse_args().time
    torch.set_num_threads(1)
    data = utils.load_mnist()
    utils.require(data.name == "MNIST" and not utils.is_smoke_test(), "this needs all of MNIST")
    readers = {name: load(name, data) for name in NETWORKS}
    gaps = {}
    for name, (reader, _) in readers.items():
        export(name, reader)
        gaps[name] = compare(name, reader, data.test.images)
        print(f"{name}: onnxruntime differs by at most {gaps[name]:.1e} on the test digits")
    if timed:
        print(measure(data))
    for name, (_, record) in readers.items():
        write_card(name, record, data, gaps[name])
    path = write_page_data(readers, data)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
