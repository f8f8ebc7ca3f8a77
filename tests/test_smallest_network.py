"""Notebook 09: a line builds what it says, the study keeps its protocol, the sentences are true."""

import contextlib
import io
import itertools
import math
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import manage
import records
import utils
from claims import claim

CELLS = manage.code_cells("09_smallest_network")
SIX = {key: cell["source"] for key, cell in manage.code_cells("06_lr_schedule").items()}


def execute(*ids: str, **scope: object) -> dict:
    """The names that cells of the notebook leave behind, after its imports."""
    exec(CELLS["data"]["source"].split("utils.use_style()")[0], scope)
    scope = {"device": torch.device("cpu"), "quick": True} | scope
    for key in ids:
        exec(CELLS[key]["source"], scope)
    return scope


CODE = execute("parameters", "convolution", "network", "specs", "networks", "recipes", "step-6")
CODE = execute("train", "published", **CODE)
SPECS, RECIPES, network = (CODE[key] for key in ("SPECS", "RECIPES", "network"))
RUNS = {name: records.load_records("smallest", name) for name in SPECS}
RUNS["step 6"] = records.load_records("seeds", "06_lr_schedule")
SEARCH = {r["name"][9:]: r for r in records.load_records("search") if "smallest" in r["name"]}


@pytest.mark.parametrize(
    ("line", "parameters", "sees", "macs"),
    [
        ("16-P-16p-16-24-24-24", 19_066, 24, 1_429_296),  # step 6
        ("20-P-20", 180 + 3_600 + 2 * 40 + 210, 8, 180 * 26**2 + 3_600 * 11**2 + 200),
        ("8 - 12s", 72 + 16 + 72 + 96 + 24 + 130, 5, 72 * 26**2 + (72 + 96) * 24**2 + 120),
        ("8-12g2", 72 + 16 + 864 // 2 + 24 + 130, 5, 72 * 26**2 + 432 * 24**2 + 120),
        ("8-12k1", 72 + 16 + 96 + 24 + 130, 3, (72 + 96) * 26**2 + 120),
        ("8-8p-=", 72 + 16 + 576 + 16 + 0 + 16 + 90, 7, (72 + 2 * 576) * 26**2 + 80),
    ],
)
def test_parameters_sight_and_cost_by_hand(line, parameters, sees, macs):
    found = CODE["describe"](line)
    assert [found[key] for key in ("parameters", "sees", "MACs")] == [parameters, sees, macs]


@pytest.mark.parametrize(
    "line", "|P-8|=|8-=|8-12-=|8-P-P-8|8-x|8--8|8k3|8k1p|12-P-=|8,9".split("|")
)
def test_a_line_that_makes_no_network_is_told(line):
    with pytest.raises(ValueError, match=r"needs a block before it|cannot stand after"):
        network(line)


def test_a_shared_kernel_is_one_tensor_and_learns_from_every_pass():
    """Its gradient is the sum of those of an unrolled twin with equal weights."""
    shared, unrolled = network("6-6-=-P-=", 0.0), network("6-6-6-P-6", 0.0)
    assert shared[1][0] is shared[2][0] is shared[3][0]
    assert len({id(m) for m in shared.modules() if isinstance(m, nn.BatchNorm2d)}) == 4
    unrolled.load_state_dict(shared.state_dict())
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    for model in (shared, unrolled):
        F.cross_entropy(model(x), y).backward()
    summed = sum(unrolled[i][0].weight.grad for i in (1, 2, 3))
    assert torch.allclose(shared[1][0].weight.grad, summed, atol=1e-5)


def test_separable_kernels_see_one_channel_and_shuffled_groups_both():
    each, mix = CODE["convolution"](6, 10, "s", 1)
    assert (each.groups, each.padding, mix.kernel_size, mix.bias) == (6, (1, 1), (1, 1), None)
    x, layer = torch.rand(1, 4, 5, 5, requires_grad=True), CODE["convolution"](4, 8, "g2", 0)
    touched = [torch.autograd.grad(layer(x)[0, :n].sum(), x)[0][0].any(2).any(1) for n in (1, 4)]
    assert touched[0].tolist() == [True, True, False, False] and touched[1].all()


def test_the_line_of_step_6_is_the_network_of_step_6():
    exec(SIX["model"], six := {"nn": nn, "DROPOUT": 0.01})
    tables = [utils.layer_table(m) for m in (network(CODE["STEP_6"]), six["model"])]
    kept = [t[t["layer"] != "Dropout"].reset_index(drop=True) for t in tables]
    assert kept[0].equals(kept[1])


def test_the_large_recipe_trains_as_step_6_does(digits, monkeypatch):
    """Rates, decay and the first warped batch of the training are those of step 6's notebook."""
    six = {"torch": torch, "math": math, "F": F, "data": digits, "EPOCHS": 3, "PEAK_LR": 0.1}
    six |= {"DROPOUT": 0.01, "AUGMENT": 1.0}
    for key in ("random-affine", "hyperparameters", "optimizer", "schedule"):
        exec(SIX[key], six)
    recipe, caught, plans = {"spec": "4"} | CODE["COMMON"] | CODE["LARGE"], [], []
    assert six["hyperparameters"].items() <= recipe.items()
    monkeypatch.setattr(utils, "fit", lambda *given: caught.extend(given) or {})
    with pytest.raises(KeyboardInterrupt):  # no epoch was completed
        CODE["train"]("mine", 5, recipe, "mine")
    _, loader, _, optimizer, epochs, scheduler = caught
    theirs = six["make_optimizer"](network("4"))
    for one, rate in ((optimizer, scheduler), (theirs, six["make_scheduler"](theirs))):
        plans.append([])
        for _ in range(epochs * len(loader) - 1):
            plans[-1].append([{k: g[k] for k in g if k != "params"} for g in one.param_groups])
            one.step()
            rate.step()
    assert plans[0] == plans[1]
    generator = torch.Generator().manual_seed(5)
    expected = digits.loader("train", 128, generator=generator, augment=six["random_affine"])
    assert all(map(torch.equal, next(iter(loader)), next(iter(expected))))


def test_a_run_leaves_its_whole_record(digits):
    record = CODE["train"]("mine", 1, RECIPES["shared_4450"], "mine")
    assert (record["name"], record["seed"], record["parameters"]) == ("mine", 1, 4_450)
    assert record["hyperparameters"] == RECIPES["shared_4450"] and record["batch_size"] == 64
    assert record["test_images"] == 360 and record["val_images"] == len(digits.val)
    assert record["test_accuracy"] > 60 and record["clean_train_accuracy"] > 60
    assert "test_accuracy" not in record["history"], "the test set is looked at once"


def test_the_plan_takes_a_seed_of_each_first_and_only_records_of_its_recipes(monkeypatch):
    given = {"NETWORKS": ("shared_4450", "mixed_7690"), "MORE_SEEDS": {"shared_4450": 2}}
    given |= {"SEEDS": 1, "quick": False, "data": utils.Data(None, None, None, "MNIST", 0, 1)}
    scope = execute("plan", **CODE | given)
    assert scope["plan"] == [("shared_4450", 0), ("mixed_7690", 0), ("shared_4450", 1)]
    found = [{"name": n, "hyperparameters": RECIPES[n]} for n in SPECS]
    other = {"name": "mixed_7690", "hyperparameters": RECIPES["mixed_7690"] | {"augment": 0.5}}
    monkeypatch.setattr(records, "load_records", lambda study, dataset: [*found, other])
    assert scope["stored"]() == found


def test_the_frontier_is_what_no_smaller_network_equals():
    values = {"mixed_1594": [99.0, 99.2], "mixed_2922": [99.39, 99.41], "mixed_4354": [99.3, 99.4]}
    values |= {"shared_4450": [99.4, 99.4], "shared_4450_5x5": [99.4, 99.6], "mixed_7690": [99.5]}
    runs = [{"name": n, "test_accuracy": v} for n in reversed(values) for v in values[n]]
    scope = execute("results", "price", **CODE | {"runs": runs, "dataset": "made up"})
    table, rows = scope["table"], scope["rows"]
    assert list(table.index[table["frontier"]]) == ["mixed_1594", "mixed_2922", "shared_4450_5x5"]
    assert table["mean"]["mixed_2922"] == 99.4 and table[">= 99.4"]["mixed_2922"] == "1 of 2"
    assert rows[1][:4] == ["mixed_2922", "shared_4450_5x5", 1_528, pytest.approx(10)]
    assert rows[1][6] == pytest.approx(10 / 1.528)


def test_records_keep_the_protocol_and_the_search_never_saw_the_test_images():
    for name, recipe in RECIPES.items():
        for seed, r in enumerate(RUNS[name]):
            found = (r["seed"], r["hyperparameters"], r["epochs"], r["train_images"])
            assert found == (seed, recipe, 19, 55_000) and f"_{r['parameters']}" in name
            assert r["parameters"] == utils.count_parameters(network(SPECS[name]))
    for r in SEARCH.values():
        assert r["test_accuracy"] is None and "test_accuracy" not in r["history"]
        assert r["parameters"] == utils.count_parameters(network(r["hyperparameters"]["spec"]))
