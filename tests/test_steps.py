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
import parameters
import records
import utils

STEPS = list(manage.STEPS)
steps = pytest.mark.parametrize("name", STEPS)
RECIPE = ("model", "random-affine", "augment", "hyperparameters", "optimizer", "schedule")


@pytest.fixture
def digits(digits):
    """Fewer of them: each step is trained several times here."""
    parts = digits.train[:768], digits.val, digits.test  # a warm-up needs six batches
    return utils.Data(*parts, digits.name, digits.mean, digits.std)


@pytest.fixture
def run_step(digits, monkeypatch, tmp_path):
    """Execute a step's shared cells up to ``last`` and return the names they made."""
    monkeypatch.setattr(utils, "load_mnist", lambda device: digits)
    monkeypatch.setattr(utils, "show", lambda alt: plt.close("all"))

    def run(name: str, last: str = "train", **values: object) -> dict:
        cells, scope = manage.code_cells(name), {"parameters": parameters, "math": math}
        for key in ("identity", "parameters", "imports", "data", *RECIPE, "train", "test", "rules"):
            if key in cells:
                exec(cells[key]["source"], scope)
            if key == "parameters":
                scope.update({"EPOCHS": 1} | values)
            if key == last:
                break
        return scope

    return run


@pytest.fixture
def fits(monkeypatch) -> list[SimpleNamespace]:
    """What each call of ``utils.fit`` was given, and the weights as they were then."""
    calls, real = [], utils.fit

    def fit(model, train, val, optimizer, epochs, scheduler=None, **watched):
        given = {"weights": copy.deepcopy(model.state_dict()), "train": train, "val": val}
        given |= {"optimizer": optimizer, "scheduler": scheduler, "watched": watched}
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
    assert (call.train.augment is not None) == (later >= 4)
    if later >= 4:
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


@steps
def test_the_seed_decides_weights_order_and_warps(run_step, fits, name):
    for seed in (3, 3, 4):
        torch.manual_seed(77)
        run_step(name, SEED=seed)
    first, same, other = (next(iter(call.weights.values())) for call in fits)
    assert torch.equal(first, same) and not torch.equal(first, other)
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


@steps
def test_what_a_step_asks_for_is_what_its_published_record_has(name):
    cells, scope = manage.code_cells(name), {}
    for key in ("identity", "parameters"):
        exec(cells[key]["source"], scope)
    (published,) = records.load_records("steps", name)
    assert 98 <= scope["BAR"] <= published["test_accuracy"] and name == scope["NAME"]
    assert name != STEPS[-1] or scope["BAR"] == 99.4
    assert (scope["SEED"], scope["EPOCHS"]) == (published["seed"], published["epochs"]) == (0, 19)
    chosen = [scope.get(key.upper()) for key in ("dropout", "augment")]
    assert chosen == [published["hyperparameters"].get(key) for key in ("dropout", "augment")]
