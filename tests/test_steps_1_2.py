"""Steps 1 and 2: what their cells compute is right, and what their prose says is true."""

import copy
import math
import re
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import manage
import records
import utils
from claims import claim

ONE, TWO = "01_baseline", "02_batch_norm"
KNOWN = {"torch": torch, "nn": nn, "F": F, "pd": pd, "utils": utils, "device": "cpu", "SEED": 0}


def run(name: str, *cells: str, **names: object) -> SimpleNamespace:
    """What these cells of a notebook define."""
    found = KNOWN | names
    for cell in cells:
        exec(manage.code_cells(name)[cell]["source"], found)
    return SimpleNamespace(**found)


def shown(name: str, cell: str) -> dict[str, list[float]]:
    """The rows of the table that a cell of the executed notebook shows."""
    outputs = manage.code_cells(name)[cell]["outputs"]
    text = "".join([o["data"]["text/plain"] for o in outputs if "data" in o][-1])
    rows = [re.match(r"(.+?)((?:\s+(?:-?[\d.]+|NaN))+)$", line) for line in text.splitlines()]
    return {row[1].strip(): [float(v) for v in row[2].split()] for row in rows if row}


def mean_over_runs(name: str, measure: Callable[[dict], float]) -> float:
    return statistics.mean(measure(run) for run in records.load_records("seeds", name))


# --- What the cells compute -----------------------------------------------------------------------


def test_the_ten_lines_are_what_fit_does(digits):
    found = run(ONE, "model", "hyperparameters", "optimizer", "loop", "loop-eval", data=digits)
    generator = utils.seed_everything(0)
    network = found.make_model()
    loader = digits.loader(digits.train[:6_400], 128, generator=generator)
    loss, _ = utils.train_epoch(network, loader, found.make_optimizer(network))
    assert found.total.item() / len(loader.split) == pytest.approx(loss)
    for own, theirs in zip(found.model.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert found.hits == utils.evaluate(network, digits.loader("val")).correct


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (5, 3, 4, 7), (64, 8, 1, 1)])
def test_batch_norm_from_scratch_is_pytorchs(shape):
    torch.manual_seed(0)
    batch_norm = run(TWO, "norm").batch_norm
    channels = shape[1]
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    averages = torch.zeros(channels), torch.ones(channels)
    for training in (True, True, False, True, False):
        x = 3 - 2 * torch.randn(shape)
        own = batch_norm(x, layer.weight, layer.bias, averages, training)
        torch.testing.assert_close(own, layer.train(training)(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(averages[0], layer.running_mean)
        torch.testing.assert_close(averages[1], layer.running_var)


@claim(TWO, "their variance is six times PyTorch's default")
def test_the_controls_are_step_1_and_he():
    found = run(TWO, "model", "starts")
    assert repr(found.without_norm()) == repr(run(ONE, "model").make_model())
    default, he = (
        [block[0] for block in make()[:6]] for make in (found.without_norm, found.he_start)
    )
    for before, after in zip(default[1:], he[1:], strict=True):
        assert (after.weight.var() / before.weight.var()).item() == pytest.approx(6, rel=0.15)
        assert not after.bias.any()


def test_a_short_run_trains_at_its_rate_and_calls_divergence_nan(digits):
    found = run(TWO, "model", "starts", "hyperparameters", "optimizer", data=digits)
    exec(manage.code_cells(TWO)["rates"]["source"].split("RATES = ")[0], vars(found))
    generator = utils.seed_everything(0)
    network = found.make_model()
    found.hyperparameters["learning_rate"] = 0.1
    optimizer = found.make_optimizer(network)
    utils.train_epoch(network, digits.loader("train", 128, generator=generator), optimizer)
    found.hyperparameters["learning_rate"] = 0.02
    losses, accuracy = found.short_run(found.make_model, 0.1)
    assert accuracy == utils.evaluate(network, digits.loader("val")).accuracy
    assert len(losses) == math.ceil(len(digits.train) / 128)
    assert math.isnan(found.short_run(found.without_norm, 1e20)[1])


def test_training_mode_is_measured_on_a_copy(digits):
    found = run(TWO, "model", data=digits)
    before = copy.deepcopy(found.model.eval().state_dict())
    exec(manage.code_cells(TWO)["modes"]["source"].split("by_class = ")[0], vars(found))
    images, labels = next(iter(digits.loader("val", len(digits.val))))
    hits = copy.deepcopy(found.model).train()(images).argmax(dim=1) == labels
    accuracy = found.accuracy_in_training_mode(digits.val, len(digits.val))
    assert accuracy == pytest.approx(100 * hits.double().mean().item())
    assert all(torch.equal(before[key], v) for key, v in found.model.state_dict().items())


# --- What the prose says --------------------------------------------------------------------------


@claim(ONE, "this first network breaks four of them", 'this network "misreads" twelve of those')
@claim(
    ONE, "has 24,706 parameters", "holds 6,010 of them", "the last nearly the whole digit: 24 of 28"
)
@claim(ONE, "the loss has hardly moved: a guess costs 2.303", "takes less than five minutes on one")
def test_the_baseline():
    assert manage.printed(manage.code_cells(ONE)["rules"]).count("FAIL") == 4
    (record,) = records.load_records("steps", ONE)
    assert len(set(record["test_errors"]) & set(records.LABEL_ERRORS)) == 12
    table = utils.layer_table(run(ONE, "model").model)
    assert (table["parameters"].sum(), table["parameters"].iloc[-1]) == (24_706, 6_010)
    fields = table.loc[table["layer"] == "Conv2d", "receptive field"]
    assert fields.tolist() == [3, 8, 12, 16, 20, 24]
    loss = float(manage.printed(manage.code_cells(ONE)["loop"]).split()[-1])
    assert loss == pytest.approx(math.log(10), abs=0.05)
    runs = records.load_records("seeds", ONE)
    assert all(run["threads"] == 1 and run["seconds"] < 300 for run in runs)


@claim(ONE, "more than six in ten mistakes lie in the first half", "so it is on average over all")
@claim(ONE, "0.02 was chosen against 0.05 on the validation images")
def test_the_baselines_images_and_rate():
    for found in records.load_records("seeds", ONE) + records.load_records("steps", ONE):
        errors = found["test_errors"]
        assert sum(place < 5_000 for place in errors) > 0.6 * len(errors)
    rates = {part: row[-1] for part, row in shown(ONE, "parts").items()}
    assert rates["validation"] > 2 * rates["training, up to 10,000"]
    wrong = mean_over_runs(ONE, lambda run: 100 - run["history"]["val_accuracy"][-1])
    assert wrong > 2 * mean_over_runs(ONE, lambda run: 100 - run["clean_train_accuracy"])
    runs = [run for run in records.load_records("search") if "tried on 01" in run["purpose"]]
    best = min(runs, key=lambda run: run["val_loss"])
    assert len(runs) == 2 and best["hyperparameters"]["learning_rate"] == 0.02
