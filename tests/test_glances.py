"""Notebook 17: what a glance is, what is measured of it; then the claims."""

from statistics import mean

import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import manage
import records
import utils
from claims import claim, prose, run_cells
from claims import shown as rows_of

NAME = "17_glances"
with pytest.MonkeyPatch.context() as patch:  # the stand-in: nothing here needs MNIST
    patch.setenv("DATASET", "digits")
    SHOWN = run_cells(NAME, "networks", "moved", "answers", "glances", "measure")
moved, Glances, PLACES = (SHOWN[key] for key in ("moved", "Glances", "PLACES"))


@pytest.mark.parametrize("right, down", [(0, 0), (1, 0), (-2, 0), (0, 1), (0, -2), (2, -1)])
def test_an_image_moves_and_its_edge_is_repeated(right, down):
    images = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    found = moved(images, right, down)
    for row in range(6):
        for column in range(8):
            source = images[..., min(max(row - down, 0), 5), min(max(column - right, 0), 7)]
            assert torch.equal(found[..., row, column], source)


def test_glances_are_the_mean_of_the_logits_and_add_no_parameter():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Softplus())
    images = torch.rand(5, 1, 6, 6)
    five = [network(moved(images, *by)) for by in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    found = Glances(network, PLACES[5])
    assert torch.allclose(found(images), sum(five) / 5, atol=1e-6)
    assert torch.equal(Glances(network, PLACES[1])(images), network(images))
    assert utils.count_parameters(found) == utils.count_parameters(network) == 370


def test_places_lie_evenly_around_the_middle():
    assert {n: len(set(places)) for n, places in PLACES.items()} == {n: n for n in PLACES}
    assert list(PLACES) == [1, 5, 9, 13, 25] and SHOWN["CHOSEN"] == 13
    for places in PLACES.values():
        assert (0, 0) in places and {(-x, -y) for x, y in places} == set(places)
        assert {(y, x) for x, y in places} == set(places)
    assert max(abs(x) + abs(y) for x, y in PLACES[13]) == 2


def test_a_measurement_counts_what_glances_mend_and_spoil(digits, monkeypatch):
    """Against a network with glances, evaluated as any other is."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    some = {p: digits.loader(getattr(digits, p)[:200], 64) for p in ("val", "test")}
    monkeypatch.setitem(SHOWN, "parts", some)
    rows = SHOWN["measure"](SHOWN["HELD_OUT"][0], 7, network)
    assert [r["glances"] for r in rows] == [1, 5, 9, 13, 25, 1, 13]
    for row in rows:
        plain = utils.evaluate(network, some[row["part"]])
        found = utils.evaluate(Glances(network, PLACES[row["glances"]]), some[row["part"]])
        once, now = ((e.logits.argmax(1) == e.labels) for e in (plain, found))
        assert (row["right"], row["seed"], row["images"]) == (found.correct, 7, len(once))
        assert row["loss"] == pytest.approx(found.loss, rel=1e-4)
        assert row["mended"] == (now & ~once).sum() and row["spoiled"] == (once & ~now).sum()
    assert sum(r["mended"] for r in rows) > 0 < sum(r["spoiled"] for r in rows)
    rows = SHOWN["measure"]("one_2170", 0, network)
    assert {r["part"] for r in rows} == {"test"}, "it has learned from these validation images"


# --- The records, and what the text says about them -----------------------------------------------

STORED = {r["name"]: r for r in records.load_records("glances")}


def test_the_first_glance_is_each_runs_own_result():
    assert set(STORED) == set(SHOWN["WHERE"])
    for name, record in STORED.items():
        runs = {r["seed"]: r for r in records.load_records(SHOWN["WHERE"][name], name)}
        once = [r for r in record["rows"] if (r["part"], r["glances"]) == ("test", 1)]
        assert {r["seed"] for r in once} == set(runs), "none left out"
        for row in once:
            assert row["right"] == runs[row["seed"]]["test_correct"], (name, row["seed"])
        held_out = any(r["part"] == "val" for r in record["rows"])
        assert held_out == (name in SHOWN["HELD_OUT"])
        if held_out:
            assert {runs[seed]["train_images"] for seed in runs} == {55_000}


FOUND = pd.DataFrame([{"name": r["name"]} | row for r in STORED.values() for row in r["rows"]])
FOUND["accuracy"] = 100 * FOUND["right"] / FOUND["images"]
TEST = FOUND.query("part == 'test'").pivot(
    index=["name", "seed"], columns="glances", values="accuracy"
)
GAIN = {
    name: records.summary((pairs[13] - pairs[1]).tolist())
    for name, pairs in TEST.groupby(level="name")
}
MEAN = TEST.groupby(level="name").mean()
SIX, TINY, SMALL, BOTH = "06_lr_schedule", "hard_2194", "unshared_2970", "step6_2922"
WON, NOT = (SIX, TINY, SMALL, BOTH), ("one_2170", "taught_3700")
VAL = FOUND.query("part == 'val'").groupby(["name", "glances"])["loss"].mean()


def gain(name: str, words: str = "{mean:+.3f} ({low:+.3f} to {high:+.3f})") -> str:
    """The mean gain of a network by thirteen glances, and its interval, in words."""
    return words.format(**GAIN[name])


def at_once(name: str) -> str:
    """The interval of a gain that holds for all names at once (Bonferroni)."""
    row, level = GAIN[name], 1 - 0.05 / len(GAIN)
    ends = stats.t.interval(level, row["n"] - 1, row["mean"], row["std"] / row["n"] ** 0.5)
    return "{:+.3f} to {:+.3f}".format(*ends)


def fall(name: str, glances: int) -> str:
    """By how many per cent the validation loss falls."""
    return f"{100 * (1 - VAL[name, glances] / VAL[name, 1]):.1f}"


POINTS = "{mean:+.3f} points ({low:+.3f} to {high:+.3f}), n = {n}"
MENDED = FOUND.query("part == 'test' and glances == 13").groupby("name").mean(True)


ROW = records.summary(TEST[13].loc[TINY].tolist())


@claim(
    NAME,
    f"raises step 6 from {MEAN[1][SIX]:.3f} to {MEAN[13][SIX]:.3f} % of MNIST's 10,000 test "
    f"digits on average: {gain(SIX, POINTS)} seeds.** A network of 2,194 parameters crosses 99.4 % "
    f"by it, {MEAN[13][TINY]:.3f} instead of {MEAN[1][TINY]:.3f} %: {gain(TINY, POINTS)}.",
    "none is shown ({:+.3f} and {:+.3f}).".format(*(GAIN[name]["mean"] for name in NOT)),
    *(
        f"{words}: {MEAN[1][name]:.3f} {between} {MEAN[13][name]:.3f} %{more}, {gain(name)}."
        for name, words, between, more in (
            (SIX, "**Step 6", "% once,", " with thirteen glances"),
            (TINY, "`hard_2194`", "and", ""),
            (SMALL, "`unshared_2970`", "and", ""),
            (BOTH, "`step6_2922`", "and", ""),
        )
    ),
    "the gains are {}, {}, {} and {}: shown for the first three, not".format(*map(at_once, WON)),
    "**With {mean:.3f} % (n = {n}, std {std:.3f}, min {min:.2f}) 2,194 parameters have a mean "
    "above 99.4.** Its 95 % interval is {low:.3f} to {high:.3f}: it contains 99.4".format(**ROW),
    "For " + " and ".join(f"`{n}` ({gain(n)})" for n in NOT) + " no gain in accuracy is shown.",
    f"{MEAN[1]['alone_3700']:.3f} and {MEAN[13]['alone_3700']:.3f} %, {gain('alone_3700')}.",
    f"for all three, by {fall(BOTH, 5)}, {fall(SMALL, 5)} and {fall(SIX, 5)} %, most of what",
    f"(their loss is {fall(BOTH, 13)} and {fall(SMALL, 13)} % lower than with one glance). For "
    f"step 6 it is {fall(SIX, 13)} % lower; 25 glances, {fall(SIX, 25)} %, would be a little",
    f"Their means fall from {GAIN['01_baseline']['mean']:+.3f} to "
    f"{GAIN['05_augmentation']['mean']:+.3f}.",
    f"Of step 6's {10_000 - 100 * MEAN[1][SIX]:.1f} mistakes thirteen glances mend "
    f"{MENDED['mended'][SIX]:.1f} and make {MENDED['spoiled'][SIX]:.1f} new ones.",
    f"adds {GAIN[SIX]['mean']:+.3f} points to step 6 (n = 30) and {GAIN[TINY]['mean']:+.3f} to "
    "2,194 parameters (n = 10), which cross",
)
def test_what_glances_bring():
    assert [GAIN[name]["n"] for name in WON] == [30, 10, 10, 10]
    assert all(GAIN[name]["low"] < 0 < GAIN[name]["high"] for name in NOT), "no gain is shown"
    assert [at_once(name)[0] for name in WON] == ["+", "+", "+", "-"]
    said = "with thirteen glances at each digit `hard_2194` reaches it, {mean:.3f} %: [step 17]"
    said = said.format(**ROW)
    assert said in prose("09_smallest_network")
    assert ROW["low"] < 99.4 < ROW["mean"] and MEAN[1][TINY] < 99.4
    assert ("`alone_3700`, the same network without teachers, gains:" in prose(NAME)) == (
        GAIN["alone_3700"]["low"] > 0
    )
    for name in (BOTH, SMALL):
        assert VAL[name].idxmin() == 13 and MEAN[1][name] < 99.4 < MEAN[13][name]
    assert VAL[SIX].idxmin() == 25
    assert all(GAIN[name]["n"] == 3 for name in manage.STEPS[:5])
    shown = [name for name in manage.STEPS[:5] if GAIN[name]["low"] > 0]
    assert shown == ["02_batch_norm"], "only that of step 2 leaves out zero"
    falling = [GAIN[name]["mean"] for name in manage.STEPS[:5]]
    assert falling == sorted(falling, reverse=True)
    rows = {name: records.summary(TEST[13].loc[name].tolist()) for name in (BOTH, SMALL)}
    assert all(row["low"] < 99.4 < row["mean"] for row in rows.values())
    best = mean(r["test_accuracy"] for r in records.load_records("best", "separable_96"))
    assert f"({best:.3f} %, n = 30, from all" in prose(NAME)
    assert abs(best - MEAN[13][SIX]) < 0.005, "Step 6 comes to where the best network stands"
    one = mean(r["test_accuracy"] for r in records.load_records("smallest", "mixed_2922"))
    line = SHOWN["nine"]["network"]("8-8-=-P-32sp-32s-=-=")
    macs = utils.layer_table(line)["MACs"].sum()
    said = f"reads {one:.3f} % with one look and {macs:,} multiply-accumulates."
    assert said in prose(NAME) and one > MEAN[13][SMALL] - 0.01
    unsteady = rows_of(NAME, "unsteady")
    assert [row[-2] for row in unsteady.values()] == pytest.approx([1.28, 0.66])
    said = "reads 1.3 % differently somewhere within one pixel, step 6 0.7 % (one run each)."
    assert said in prose(NAME)
    (best, *_) = records.load_records("best", "separable_96")
    best = SHOWN["nine"]["network"](best["hyperparameters"]["spec"])
    six = SHOWN["load"](SIX, 1).popitem()[1]
    work = [utils.layer_table(model)["MACs"].sum() for model in (six, best)]
    assert 4 < 13 * work[0] / work[1] < 5, "more than four times that one's arithmetic"
