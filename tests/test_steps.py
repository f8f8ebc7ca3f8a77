"""What the six steps do when they run: mistakes made alike in all of them must not pass.

The shared cells are executed here on the stand-in, and what reaches the loops is looked at.
"""

import copy
import math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import manage
import records
import utils

STEPS = list(manage.STEPS)
steps = pytest.mark.parametrize("name", STEPS)
RECIPE = ("model", "random-affine", "augment", "hyperparameters", "optimizer", "schedule")


@pytest.fixture
def run_step(digits, monkeypatch, tmp_path):
    """Execute a step's shared cells up to ``last`` and return the names they made."""
    monkeypatch.setattr(utils, "load_mnist", lambda device: digits)
    monkeypatch.setattr(utils, "show", lambda alt: plt.close("all"))

    def run(name: str, last: str = "train", **values: object) -> dict:
        cells, scope = manage.code_cells(name), {"math": math}  # imported by a cell of their own
        for key in ("identity", "parameters", "imports", "data", *RECIPE, "train", "test", "rules"):
            if key in cells:
                exec(cells[key]["source"], scope)
            if key == "parameters":
                scope["PUBLISHED_EPOCHS"] = scope["EPOCHS"]
                scope.update({"EPOCHS": 1} | values)
            if key == last:
                break
        return scope

    return run


@pytest.fixture
def fits(monkeypatch) -> list[SimpleNamespace]:
    """What each call of ``utils.fit`` was given, and the network as it was then."""
    calls, real = [], utils.fit

    def fit(model, train, val, optimizer, epochs, scheduler=None, **watched):
        twin = copy.deepcopy(model.state_dict())
        given = {"model": twin, "train": train, "val": val, "optimizer": optimizer}
        given |= {"epochs": epochs, "scheduler": scheduler, "watched": watched}
        calls.append(SimpleNamespace(**given))
        return real(model, train, val, optimizer, epochs, scheduler, **watched)

    monkeypatch.setattr(utils, "fit", fit)
    return calls


@steps
def test_a_step_trains_as_it_says(run_step, fits, digits, name):
    scope = run_step(name)
    (call,) = fits
    later = STEPS.index(name)
    assert call.train.split is digits.train and call.val.split is digits.val
    assert call.train.batch_size == 128 and not call.watched
    assert call.val.generator is None and call.val.augment is None
    warped = call.train.augment is not None
    assert warped == (later >= 4)
    if warped:
        x, generator = torch.rand(4, 1, 28, 28), torch.Generator().manual_seed(0)
        assert (call.train.augment(x, generator) - x).abs().max() > 0.1
    assert (call.scheduler is not None) == (later >= 5)
    groups = call.optimizer.param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    model = scope["model"]
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert {(g["momentum"], g["nesterov"]) for g in groups} == {(0.9, True)}
    if later < 5:
        assert {g["lr"] for g in groups} == {0.02}
    kinds = [type(layer) for layer in model.modules()]
    found = [kinds.count(k) for k in (nn.BatchNorm2d, nn.Dropout, nn.AdaptiveAvgPool2d)]
    assert found == [6 * (later >= 1), 6 * (later >= 2), later >= 3]
    assert scope["PUBLISHED_EPOCHS"] == 19


@steps
def test_the_seed_decides_weights_order_and_warps(run_step, fits, name):
    run_step(name, SEED=3)
    torch.manual_seed(77)
    run_step(name, SEED=3)
    run_step(name, SEED=4)
    first, same, other = fits
    key = next(key for key, value in first.model.items() if value.ndim > 1)
    assert torch.equal(first.model[key], same.model[key])
    assert not torch.equal(first.model[key], other.model[key])
    draws = [torch.rand(3, generator=call.train.generator).tolist() for call in fits]
    assert draws[0] == draws[1] != draws[2]


@steps
def test_the_test_images_are_read_after_training_and_watched_only_if_asked(
    run_step, fits, digits, name
):
    scope = run_step(name, "test", TEST_EVERY_EPOCH=True)
    (call,) = fits
    assert {key: loader.split for key, loader in call.watched.items()} == {"test": digits.test}
    found = utils.evaluate(scope["model"], digits.loader("test"))
    record = scope["record"]
    assert record["test_accuracy"] == found.accuracy
    assert record["test_images"] == len(digits.test) and record["seed"] == scope["SEED"]
    clean = utils.evaluate(scope["model"], digits.loader(digits.train[:10_000]))
    assert record["clean_train_accuracy"] == clean.accuracy
    assert record["hyperparameters"]["batch_size"] == record["batch_size"] == 128


@steps
def test_a_run_below_its_bar_fails_before_anything_is_saved(run_step, monkeypatch, name):
    """The bar is judged as on MNIST; the stand-in is too hard for one epoch."""
    saved, judge = [], records.judge
    monkeypatch.setattr(records, "save_record", lambda *a, **k: saved.append(a))
    on_mnist = lambda record, model: judge(record | {"dataset": "MNIST"}, model)  # noqa: E731
    monkeypatch.setattr(records, "judge", on_mnist)
    with pytest.raises(AssertionError, match="is below"):
        run_step(name, "rules")
    assert not saved
    cells, scope = manage.code_cells(name), {}
    exec(cells["identity"]["source"], scope)
    (published,) = records.load_records("steps", name)
    assert 98 <= scope["BAR"] <= published["test_accuracy"]
    assert name != STEPS[-1] or scope["BAR"] == 99.4
    assert name == scope["NAME"]


def test_the_steps_parameters_are_their_records():
    for name in STEPS:
        scope: dict = {}
        exec(manage.code_cells(name)["parameters"]["source"], scope)
        (record,) = records.load_records("steps", name)
        assert (scope["SEED"], scope["EPOCHS"]) == (record["seed"], record["epochs"]) == (0, 19)
        own = record["hyperparameters"]
        assert scope.get("DROPOUT") == own.get("dropout")
        assert scope.get("AUGMENT") == own.get("augment")


def test_the_schedule_of_step_6_is_one_cycle():
    """Against the formula of the cosine cycle (Smith and Topin 2017, PyTorch's variant)."""
    cells, scope = manage.code_cells(STEPS[-1]), {}
    data = SimpleNamespace(train=SimpleNamespace(labels=range(55_000)))
    scope.update(torch=torch, math=math, data=data)
    for key in ("parameters", "hyperparameters", "schedule"):
        exec(cells[key]["source"], scope)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    scheduler, total = scope["make_scheduler"](optimizer), 19 * 430
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < total else None
    top = 0.2 * total - 1
    cosine = lambda a, b, share: b + (a - b) * (1 + math.cos(math.pi * share)) / 2  # noqa: E731
    for step in (0, 400, 1_600, 3_000, 8_000, total - 1):
        if step <= top:
            expected = cosine(0.004, 0.1, step / top)
        else:
            expected = cosine(0.1, 0.004 / 1_000, (step - top) / (total - 1 - top))
        assert rates[step] == pytest.approx(expected, rel=1e-4), step
