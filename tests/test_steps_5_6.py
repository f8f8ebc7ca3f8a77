"""Steps 5 and 6: what their cells compute is right, and what their prose says is true."""

import collections
import itertools
import math
import re
import statistics
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import manage
import records
import utils
from claims import claim

FIVE, SIX = "05_augmentation", "06_lr_schedule"
KNOWN = {"torch": torch, "nn": nn, "F": F, "math": math, "pd": pd, "plt": plt}
KNOWN |= {"utils": utils, "records": records, "device": "cpu", "NAME": SIX, "PREVIOUS": FIVE}
KNOWN |= {"SEED": 0, "EPOCHS": 19, "PEAK_LR": 0.1, "DROPOUT": 0.01, "AUGMENT": 1.0}


def run(name: str, *cells: str, **names: object) -> SimpleNamespace:
    """What these cells of a notebook define."""
    found = KNOWN | names
    for cell in cells:
        exec(manage.code_cells(name)[cell]["source"], found)
    return SimpleNamespace(**found)


def shown(name: str, cell: str, row: str) -> list[float]:
    """The numbers of one row that a cell of the executed notebook shows."""
    outputs = manage.code_cells(name)[cell]["outputs"]
    texts = ["".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs]
    lines = [line for line in "\n".join(texts).splitlines() if line.startswith(row)]
    return [float(v) for line in lines for v in re.findall(r"-?\d+\.?\d*", line[len(row) :])]


def seeds(name: str, study: str = "seeds") -> list[dict]:
    return records.load_records(study, name)


def pictures(images: int) -> torch.Tensor:
    return torch.rand(images, 1, 28, 28, generator=torch.Generator().manual_seed(images))


@given(images=st.integers(1, 20), seed=st.integers(0, 2**31), strength=st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_warps_keep_shape_and_range_and_repeat(images, seed, strength):
    x, affine = pictures(images), run(FIVE, "random-affine", AUGMENT=strength).random_affine
    first = affine(x, torch.Generator().manual_seed(seed))
    assert first.shape == x.shape and first.dtype == x.dtype
    assert first.min() >= 0 and first.max() <= 1 + 1e-5
    assert torch.equal(first, affine(x, torch.Generator().manual_seed(seed)))
    affine = run(FIVE, "random-affine", AUGMENT=0.0).random_affine
    still = affine(x, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(still, x, atol=1e-4, rtol=0)


def test_random_affine_is_the_matrix_of_the_text_with_random_numbers():
    """Each image under its own draws: rotation, zoom, shear, shift, within the stated range."""
    x, warp = pictures(6).requires_grad_(), run(FIVE, "affine").warp
    found = run(FIVE, "random-affine").random_affine(x, torch.Generator().manual_seed(3))
    assert not found.requires_grad
    draws = 2 * torch.rand(5, 6, generator=torch.Generator().manual_seed(3)) - 1
    for i, (turn, zoom, shear, right, down) in enumerate(draws.T.tolist()):
        how = {"angle": 12 * turn, "zoom": 1 + 0.12 * zoom, "shear": 0.15 * shear}
        expected = warp(x[i : i + 1].detach(), **how, right=-2 * right, down=-2 * down)
        torch.testing.assert_close(found[i : i + 1], expected, atol=1e-4, rtol=0)


def test_a_warp_does_what_its_names_say():
    x, warp = pictures(2), run(FIVE, "affine").warp
    torch.testing.assert_close(warp(x, angle=90), torch.rot90(x, 1, (2, 3)), atol=1e-4, rtol=0)
    moved = warp(x, right=3, down=-2)  # to the right, and up
    expected = F.pad(x[:, :, 2:, :-3], (3, 0, 0, 2))  # what comes from outside is black
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    dot = F.pad(torch.ones(1, 1, 4, 4), (12, 12, 12, 12))
    assert 3.5 < warp(dot, zoom=2).sum() / dot.sum() < 4.5
    bar = F.one_hot(torch.full((1, 1, 28), 14), 28).float()
    places = (warp(bar, shear=0.5)[0, 0] * torch.arange(28)).sum(1)
    assert (places.diff()[3:-3] < 0).all()  # the bar leans, one way


def test_the_curve_over_a_damage_counts_every_image_once(digits):
    found = run(FIVE, "affine", "bear", data=digits)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for _, _, ways in found.damages.values():
        value = found.accuracy_by_level(network, [0], ways)
        assert value == [pytest.approx(utils.evaluate(network, digits.loader("val")).accuracy)]


@claim(FIVE, "the gap narrows, and the interval of the change lies below zero")
@claim(FIVE, "the best and the worst of the last five epochs lie about 0.3 points apart")
@claim(FIVE, "The training loss (dashed) now lies above the validation loss in most epochs")
def test_what_step_5_says_of_its_curves_holds():
    gaps = {}
    for name in ("04_gap_fc", FIVE):
        late = [record["history"]["val_accuracy"][-5:] for record in seeds(name)]
        assert 0.2 < statistics.mean(max(v) - min(v) for v in late) < 0.4
        clean = [record["clean_train_accuracy"] for record in seeds(name)]
        gaps[name] = [a - b[-1] for a, b in zip(clean, late, strict=True)]
    assert records.difference(gaps[FIVE], gaps["04_gap_fc"])[2] < 0
    (record,) = records.load_records("steps", FIVE)
    history = zip(record["history"]["train_loss"], record["history"]["val_loss"], strict=True)
    assert sum(train > val for train, val in history) > 10


@claim(FIVE, "rotated by 40 degrees, this step's network reads 82 % of the validation images")
@claim(FIVE, "step 4's 69 %", "82 % against 69 % at 40 degrees, 89 % against 79 % at 6 pixels")
@claim(FIVE, "With no warp at all, this run of step 5 is not ahead")
def test_what_step_5_says_of_rotation_and_shift_is_what_it_measured():
    four, five = (shown(FIVE, "bear-plot", name) for name in ("04_gap_fc", FIVE))
    assert [round(v[i]) for i in (4, 7 + 6) for v in (five, four)] == [82, 69, 89, 79]
    assert five[0] <= four[0]


def test_the_controls_ran_under_the_plans_that_are_shown():
    data = SimpleNamespace(name="MNIST", train=utils.Split(torch.empty(0), torch.empty(55_000)))
    rates = run(SIX, "hyperparameters", "schedule", "plans", data=data).rates
    assert len(rates) == 19 * 430 and rates["one cycle"].idxmax() == pytest.approx(3.8, abs=0.01)
    falling = [0.05 * (1 + math.cos(math.pi * epoch / 19)) for epoch in range(19)]
    assert rates["cosine"].iloc[::430].tolist() == pytest.approx(falling)
    for record in [*records.load_records("schedule"), *seeds(SIX)]:
        plan = rates[{SIX: "one cycle"}.get(record["name"], record["name"].replace("_", " "))]
        assert record["history"]["learning_rate"] == pytest.approx(plan.iloc[::430].tolist())


def test_the_chart_shows_every_run_and_its_mean():
    counts = {"one": [84, 60, 72], "two": [40, 44]}
    runs = {k: [{"test_images": 100, "test_correct": 100 - n} for n in counts[k]] for k in counts}
    (axis,) = run(SIX, "control-dots").plot_runs(runs, "a title").axes
    plt.close("all")
    dots = [line.get_ydata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert dots == list(counts.values())
    assert [text.get_text() for text in axis.texts] == ["72\n99.28 %", "42\n99.58 %"]


@claim(SIX, "one at a falling rate helps more in all three: the loss ends lower each time")
@claim(SIX, "Two of the twelve, no. 1901 and no. 947, are on the list")
def test_what_step_6_says_of_one_more_epoch_and_of_the_twelve_digits_holds():
    stay, fall = (shown(SIX, "one-more", f"rate {how}, order")[1::3] for how in ("stays", "falls"))
    assert shown(SIX, "one-more", "before")[0] > max(stay) and min(stay) > max(fall)
    wrong = collections.Counter(i for r in records.load_records("steps") for i in r["test_errors"])
    assert shown(SIX, "readings", "misread") == [len(wrong), sum(n == 6 for n in wrong.values())]
    twelve = [i for k in range(6, 0, -1) for i in sorted(i for i in wrong if wrong[i] == k)[:2]]
    assert set(twelve) & set(records.LABEL_ERRORS) == {947, 1901}


@claim(SIX, "a constant 0.1 ends behind step 5's constant 0.02")
@claim(SIX, "Every plan that comes down ends far ahead of both, and close to one-cycle")
@claim(SIX, "step 5 lies at it, and every run of step 6 is across")
@claim(SIX, "The runs of the first four steps overlap")
def test_what_step_6_says_of_the_plans_and_the_steps_holds():
    found = {k: seeds(k, "schedule") for k in ("constant", "step_drop", "cosine")}
    found |= {k: seeds(k) for k in manage.STEPS}
    wrong = {k: [10_000 - r["test_correct"] for r in v] for k, v in found.items()}
    mean = {k: statistics.mean(v) for k, v in wrong.items()}
    assert mean["constant"] > mean[FIVE] > mean[SIX] + 10
    assert max(mean["step_drop"], mean["cosine"]) < min(mean[SIX] + 8, mean[FIVE] - 8)
    assert max(wrong[SIX]) < 60 and abs(mean[FIVE] - 60) < 6
    for before, after in itertools.pairwise(manage.STEPS[:4]):
        assert mean[before] > 60 < mean[after] and max(wrong[after]) > min(wrong[before])
