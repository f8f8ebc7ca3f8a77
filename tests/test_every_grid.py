"""Notebook 18: max pooling on every grid, what is measured of it; then the claims."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import manage
import records
import report
import utils
from claims import claim, prose, run_cells, says, shown

NAME = "18_every_grid"
with pytest.MonkeyPatch.context() as patch:  # the stand-in: nothing here needs MNIST
    patch.setenv("DATASET", "digits")
    SHOWN = run_cells(NAME, "grids", "convert", "measure")
EveryGrid, on_every_grid = SHOWN["EveryGrid"], SHOWN["on_every_grid"]


def trained(line: str) -> nn.Sequential:
    """A network whose batch norm has seen noise, and is no identity."""
    torch.manual_seed(0)
    model = SHOWN["nine"]["network"](line)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    for _ in range(20):
        model(torch.rand(8, 1, 28, 28))
    return model.eval()


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)])
def test_a_grid_begins_at_each_of_four_places(size):
    maps = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)) - 5
    found = EveryGrid()(maps).view(2, 2, 3, 2, size[0] // 2, size[1] // 2)
    assert torch.equal(found[0, 0], F.max_pool2d(maps, 2)), "the grid of the ordinary pool"
    for down in (0, 1):
        for right in (0, 1):
            for row in range(size[0] // 2):
                for column in range(size[1] // 2):
                    y, x = 2 * row + down, 2 * column + right
                    square = maps[:, :, y : y + 2, x : x + 2]
                    wanted = square.amax(dim=(2, 3))
                    assert torch.equal(found[down, right, :, :, row, column], wanted)


@pytest.mark.parametrize("line", ["8-8-=-P-12sp-12s-=-=", "6-6s-=-P-=-=", "4-P-4p-P-6", "4-6s"])
def test_it_is_the_network_without_strides(line):
    """Against strides of 1 and dilated kernels, called one after the other."""
    model, images = trained(line), torch.rand(4, 1, 28, 28)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = on_every_grid(model)
    maps, step = images, 1
    with torch.no_grad():
        for block in [m for m in model if isinstance(m, nn.Sequential)]:
            for layer in [m for m in block.modules() if not list(m.children())]:
                if isinstance(layer, nn.Conv2d):
                    far = layer.kernel_size[0] > 1
                    reach = {"padding": step * layer.padding[0], "dilation": step if far else 1}
                    maps = F.conv2d(maps, layer.weight, groups=layer.groups, **reach)
                elif isinstance(layer, nn.MaxPool2d):
                    size = maps.shape[-1] // step  # of the map on one grid
                    rim = step if size % 2 == 0 else 0
                    maps = F.pad(maps, (0, rim, 0, rim), value=-torch.inf)
                    maps = F.max_pool2d(maps, 2, stride=1, dilation=step)
                    step *= 2
                else:
                    maps = layer(maps)
        found, wanted = whole(images), model[-1](maps.mean(dim=(2, 3)))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (found - model(images)).abs().max() > 1e-3 or "P" not in line
    assert utils.count_parameters(whole) == utils.count_parameters(model)
    assert list(whole.state_dict()) == list(before), "a record's weights fit"
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the caller's network stays"
    assert not any(isinstance(m, EveryGrid) for m in model.modules())


@pytest.mark.parametrize("kind", [{"kernel_size": 3}, {"stride": 1}, {"padding": 1}])
def test_another_pool_is_refused(kind):
    pool = nn.MaxPool2d(**{"kernel_size": 2} | kind)
    with pytest.raises(ValueError, match="not a pool of 2 x 2 with a stride of 2: MaxPool2d"):
        on_every_grid(nn.Sequential(nn.Sequential(pool), nn.Flatten()))


def test_a_digit_moved_by_a_pixel_is_read_as_before():
    """Where a small network's reach does not touch the edge: exactly so, and not on one grid."""
    model, images = trained("4-P-4"), torch.zeros(1, 1, 28, 28)
    images[..., 11:17, 11:17] = torch.rand(6, 6)
    moves = [images.roll(by, dims=(2, 3)) for by in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 3))]
    with torch.no_grad():
        one, every = (torch.cat([m(x) for x in moves]) for m in (model, on_every_grid(model)))
    assert torch.allclose(every, every[:1].expand_as(every), atol=1e-5)
    assert (one - one[:1]).abs().max() > 1e-3


def test_a_measurement_reads_on_one_grid_and_on_every_grid(digits, monkeypatch):
    model = trained("4-P-6")
    some = {p: digits.loader(getattr(digits, p)[:200], 64) for p in ("val", "test")}
    monkeypatch.setitem(SHOWN, "parts", some)
    rows = SHOWN["measure"](SHOWN["HELD_OUT"][0], 7, model)
    glances = SHOWN["Glances"](on_every_grid(model), SHOWN["PLACES"][5])
    ways = {"one grid": model, "every grid": on_every_grid(model), "every grid, 5 glances": glances}
    assert [(r["part"], r["reading"]) for r in rows] == [
        *(("val", way) for way in ways),
        *(("test", way) for way in list(ways)[:2]),
    ]
    for row in rows:
        found = utils.evaluate(ways[row["reading"]], some[row["part"]])
        assert (row["right"], row["loss"]) == (found.correct, pytest.approx(found.loss))
        assert (row["seed"], row["images"]) == (7, len(some[row["part"]].split))
    rows = SHOWN["measure"]("one_2170", 0, model)
    assert {r["part"] for r in rows} == {"test"}, "it has learned from these validation images"


# --- The records, and what the text says about them -----------------------------------------------

STORED = {r["name"]: r for r in records.load_records("every_grid")}
TWINS = {"hard_2194": "again_2194", "taught_3700": "again_3700"}


def test_on_one_grid_it_is_each_runs_own_result():
    assert set(STORED) == set(SHOWN["WHERE"])
    for name, record in STORED.items():
        runs = {r["seed"]: r for r in records.load_records(SHOWN["WHERE"][name], name)}
        once = [r for r in record["rows"] if (r["part"], r["reading"]) == ("test", "one grid")]
        assert {r["seed"] for r in once} == set(runs), "none left out"
        for row in once:
            assert row["right"] == runs[row["seed"]]["test_correct"], (name, row["seed"])
        held_out = any(r["part"] == "val" for r in record["rows"])
        assert held_out == (name in SHOWN["HELD_OUT"])


def test_the_new_runs_have_the_old_recipe_and_other_seeds():
    for name, new in TWINS.items():
        old = {r["seed"]: r for r in records.load_records(SHOWN["WHERE"][name], name)}
        more = {r["seed"]: r for r in records.load_records("grids", new)}
        assert (set(old), set(more)) == (set(range(10)), set(range(10, 20)))
        for run in more.values():
            for key in ("hyperparameters", "train_images", "epochs", "parameters"):
                assert run[key] == old[0][key], (new, key)


FOUND = pd.DataFrame([{"name": r["name"]} | row for r in STORED.values() for row in r["rows"]])
FOUND["accuracy"] = 100 * FOUND["right"] / FOUND["images"]
TEST = FOUND.query("part == 'test'").pivot(
    index=["name", "seed"], columns="reading", values="accuracy"
)
VAL = FOUND.query("part == 'val'").groupby(["name", "reading"])["loss"].mean()
GLANCES = {r["name"]: pd.DataFrame(r["rows"]) for r in records.load_records("glances")}
SIX, TINY, SMALL, BOTH = "06_lr_schedule", "hard_2194", "unshared_2970", "step6_2922"
WON = (SIX, SMALL, TINY, BOTH)
STORED_SIZE = {
    name: records.load_records(SHOWN["WHERE"][name], name)[0]["parameters"] for name in STORED
}


def of(*names: str, reading: str = "every grid") -> dict:
    """Mean, interval, std, minimum over the runs of these names, read so."""
    return records.summary(TEST.loc[list(names)][reading].tolist())


def pairs(*names: str) -> dict:
    """The mean gain by every grid, and its interval, over the runs of these names."""
    rows = TEST.loc[list(names)]
    return records.summary((rows["every grid"] - rows["one grid"]).tolist())


def gain(*names: str, words: str = "{mean:+.3f} ({low:+.3f} to {high:+.3f})") -> str:
    """The same, in words."""
    return words.format(**pairs(*names))


def at_once(name: str) -> str:
    """The interval of a gain that holds for all names at once (Bonferroni)."""
    row, level = pairs(name), 1 - 0.05 / len(STORED)
    ends = stats.t.interval(level, row["n"] - 1, row["mean"], row["std"] / row["n"] ** 0.5)
    return "{:+.3f} to {:+.3f}".format(*ends)


def both_ways(name: str) -> str:
    """Both means of a name and its gain, in words."""
    one, every = of(name, reading="one grid")["mean"], of(name)["mean"]
    return f"{one:.3f} and {every:.3f} %, {gain(name)}"


def instead(name: str) -> str:
    """The same, in other words."""
    one, every = of(name, reading="one grid")["mean"], of(name)["mean"]
    return f"{every:.3f} instead of {one:.3f} %, {gain(name)}"


def apart(name: str) -> str:
    """The mean difference, in pairs, from the same networks with thirteen glances."""
    rows = GLANCES[name].query("part == 'test' and glances == 13").set_index("seed")
    differences = TEST.loc[name]["every grid"] - 100 * rows["right"] / rows["images"]
    return "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**records.summary(differences.tolist()))


def fall(name: str, reading: str) -> str:
    """By how many per cent the validation loss falls."""
    if reading == "13 glances":
        rows = GLANCES[name].query("part == 'val' and glances == 13")
        loss = rows["loss"].mean()
    else:
        loss = VAL[name, reading]
    return f"{100 * (1 - loss / VAL[name, 'one grid']):.1f}"


ROW, ONE = of(TINY, TWINS[TINY]), of(TINY, TWINS[TINY], reading="one grid")
T37 = ("taught_3700", TWINS["taught_3700"])
TAUGHT, ALONE = (of(*T37, reading=r) for r in ("every grid", "one grid"))
NEW, NEW_ONE = of(TWINS[TINY]), of(TWINS[TINY], reading="one grid")
ENDS = "(n = {n}, 95 % interval {low:.3f} to {high:.3f}, std {std:.3f}, min {min:.2f})"
LIKE = ("one_2170", "alone_3700", "taught_3700", "taught_8020")


@claim(
    NAME,
    f"a network of 2,194 parameters reads {ROW['mean']:.3f} % of MNIST's 10,000 test digits on "
    f"average instead of {ONE['mean']:.3f} %: "
    + gain(
        TINY, TWINS[TINY], words="{mean:+.3f} points ({low:+.3f} to {high:+.3f}), n = {n} seeds"
    ),
    "(95 % interval of that mean over seeds {low:.3f} to {high:.3f}, std {std:.3f}, min "
    "{min:.2f}. Ten of the runs were known before; the ten that were trained for this test "
    "gain ".format(**ROW)
    + f"{gain(TWINS[TINY])}.)",
    f"none is shown for `one_2170` ({gain('one_2170')}), and of steps 1 to 3, which have no global",
    f"**On every grid step 6 reads {instead(SIX)}, `unshared_2970` {instead(SMALL)}, `hard_2194` "
    f"{instead(TINY)}, `step6_2922` {instead(BOTH)}.**",
    "so that all fifteen hold together, the four gains are {}, {}, {} and {}.".format(
        *map(at_once, WON)
    ),
    f"on the test images step 6 ends {apart(SIX)} from them, in pairs.",
    "No gain is shown for {}, {}, {} and {}, though the last three means rise; nor for steps 4 "
    "and 5".format(*(f"`{name}` ({both_ways(name)})" for name in LIKE)),
    "**2,194 parameters: {mean:.3f} % on every grid ".format(**ROW)
    + ENDS.format(**ROW)
    + ", {mean:.3f} % on one ({low:.3f} to {high:.3f}); ".format(**ONE)
    + gain(TINY, TWINS[TINY])
    + ".** The ten new runs alone: {mean:.3f} % ({low:.3f} to {high:.3f}), ".format(**NEW)
    + f"{NEW_ONE['mean']:.3f} % on one grid, {gain(TWINS[TINY])} (for all fifteen names at once "
    f"{at_once(TWINS[TINY])}).",
    "3,700 parameters, with teachers: {mean:.3f} % on every grid (n = {n}, {low:.3f} to "
    "{high:.3f}), ".format(**TAUGHT)
    + f"{ALONE['mean']:.3f} % on one; {gain(*T37)}. The interval of the "
    f"mean lies above 99.5. The ten new runs alone: {of(T37[1])['mean']:.3f} %, {gain(T37[1])}.",
    "With teachers (step 16) 3,700 parameters read {mean:.3f} % (n = {n}, {low:.3f} to "
    "{high:.3f}), ".format(**TAUGHT)
    + f"{gain(*T37)}.",
    f"3,700 parameters read {TAUGHT['mean']:.3f} % on every grid (n = {TAUGHT['n']}), instead of "
    f"{ALONE['mean']:.3f} %.",
    "Two published single runs lie to the right of our 8,020, which has {mean:.3f} % (n = {n}, "
    "{low:.3f} to {high:.3f}; it had teachers".format(**of("taught_8020")),
    "our 3,700, with teachers too, have a mean of {mean:.3f} % (n = {n}, {low:.3f} to {high:.3f}). "
    "A single run and a mean do not order two designs, but none of these".format(**TAUGHT),
    f"- {ROW['mean']:.3f} instead of {ONE['mean']:.3f} % for 2,194 parameters (n = {ROW['n']}), "
    f"{of(SIX)['mean']:.3f} instead of {of(SIX, reading='one grid')['mean']:.3f} % for step 6 "
    "(n = 30): about as much as by thirteen glances, for 1.57 and 3.80 times the arithmetic.",
)
def test_what_every_grid_brings():
    assert len(STORED) == 15 and [pairs(name)["n"] for name in WON] == [30, 10, 10, 10]
    assert all(pairs(name)["low"] < 0 < pairs(name)["high"] for name in LIKE), "no gain shown"
    means = {name: (of(name, reading="one grid")["mean"], of(name)["mean"]) for name in STORED}
    assert all(means[name][1] > means[name][0] for name in LIKE[1:])
    for name in manage.STEPS[:3]:
        assert means[name][1] < means[name][0]
        assert "{:.3f} becomes {:.3f} %".format(*means[name]) in prose(NAME)
    below = [name for name in manage.STEPS[:3] if pairs(name)["high"] < 0]
    assert below == [manage.STEPS[0]], "only the first interval leaves out zero"
    falls = [means[name][0] - means[name][1] for name in manage.STEPS[3:] if name in means]
    assert max(falls) < 0.014, "from step 4 on, with GAP, no mean falls by more"
    assert all(pairs(name)["low"] < 0 < pairs(name)["high"] for name in manage.STEPS[3:5])
    assert at_once(manage.STEPS[0])[0] == "-" and "to +" in at_once(manage.STEPS[0])
    stroke = {
        name: abs(float(apart(name).split()[0])) for name in GLANCES if name not in manage.STEPS[:3]
    }
    assert stroke.pop(manage.STEPS[3]) > 0.05 and max(stroke.values()) < 0.0215
    published = {p: v for _, row in SHOWN["nine"]["PUBLISHED"].values() for p, v in row.items()}
    ours = {STORED_SIZE[name]: means[name][1] for name in STORED}
    ours |= {3_700: TAUGHT["mean"], 2_194: ROW["mean"]}
    for size, value in published.items():
        if 3_700 <= size <= 10_000:
            assert max(v for p, v in ours.items() if p <= size) > value, "none lies below"
    said = "to each published run from 3,700 to 10,000 parameters there is a mean of ours that is"
    says("09_smallest_network", said)
    assert TAUGHT["low"] > 99.5 and pairs(*T37)["low"] > 0
    helped = [GLANCES[name].query("part == 'test'") for name in manage.STEPS[:3]]
    helped = [rows.groupby("glances")["right"].mean() for rows in helped]
    assert all(right[13] > right[1] for right in helped)
    assert ROW["mean"] > 99.4 > ROW["low"] and NEW["mean"] > 99.4 > NEW["low"]
    assert "lie above 99.4; both intervals contain it." in prose(NAME)
    said = "in one look, with its pool on every grid, it does so, too, {mean:.3f} % in twenty runs"
    says("09_smallest_network", said.format(**ROW))
    said = (
        "(Read on every grid of their pools the two diamonds come to {:.3f} and {:.3f} %; with ten "
        "more runs the first is at {:.3f} %, and 3,762 no longer below it: [step 18]"
    )
    says("16_taught", said.format(*(means[k][1] for k in LIKE[2:]), TAUGHT["mean"]))
    said = "One of 3,700 gets below the first, {mean:.3f} % in twenty runs, once its pool is read"
    says("09_smallest_network", said.format(**TAUGHT))
    drawn = {2_194: ROW, 3_700: TAUGHT, 8_020: of("taught_8020")}  # in 09's figure
    for size, row in report.every_grid().items():
        assert row == pytest.approx(drawn[size])
    assert sorted(report.readings(BOTH)) == sorted(TEST.loc[BOTH]["every grid"])  # no validation
    assert TAUGHT["n"] == ROW["n"] == 20 and TAUGHT["mean"] > published[3_762] == 99.52
    said = "With 2,194 it is {mean:.3f} % (n = {n}, std {std:.3f}) once all is read that max"
    says("09_smallest_network", said.format(**ROW))


@claim(
    NAME,
    f"On every grid the loss falls by {fall(BOTH, 'every grid')} % for `step6_2922`, by "
    f"{fall(SMALL, 'every grid')} % for `unshared_2970`, by {fall(SIX, 'every grid')} % for step "
    f"6. Thirteen glances lower it by {fall(BOTH, '13 glances')}, {fall(SMALL, '13 glances')} and "
    f"{fall(SIX, '13 glances')} %.",
    f"five of them on every grid {fall(BOTH, 'every grid, 5 glances')} and "
    f"{fall(SMALL, 'every grid, 5 glances')} %, for step 6 {fall(SIX, 'every grid, 5 glances')} %.",
)
def test_the_validation_images_said_so_first():
    for name in (BOTH, SMALL, SIX):
        assert VAL[name, "every grid"] < VAL[name, "one grid"]


TRIED = pd.DataFrame(records.load_records("search", "every_grid")[0]["rows"])
LOSSES = TRIED.pivot(index="seed", columns="way", values="val_loss")
WAYS = ("one grid, to the end", "every grid to read", "in the last five passes", "in all passes")
LESS, MORE = (
    records.summary((LOSSES[a] - LOSSES[b]).dropna().tolist())
    for a, b in (WAYS[:2], (WAYS[3], WAYS[1]))
)


@claim(
    NAME,
    "the five runs that learned on one have a loss lower by {mean:.4f} on average ({low:+.4f} "
    "to {high:+.4f}).".format(**LESS),
    "in all passes, have a loss {mean:+.4f} ({low:+.4f} to {high:+.4f}) higher than the "
    "same seeds".format(**MORE),
)
def test_learning_on_every_grid_brings_nothing_more():
    assert set(LOSSES) == set(WAYS) and LESS["n"] == MORE["n"] == 5
    assert LOSSES[WAYS[2]].count() == 2 and MORE["high"] > 0
    assert (LOSSES[WAYS[2]] >= LOSSES[WAYS[1]]).sum() == 2, "no better either"


@claim(NAME, "1.57 times as many multiply-accumulates. Step 6 pools behind the first: 3.80 times.")
def test_the_price():
    work = {}
    for name in (TINY, SIX):
        layers = utils.layer_table(SHOWN["load"](name, 1).popitem()[1])
        place = layers.index[layers["layer"] == "MaxPool2d"][0]
        before, all_of_it = layers["MACs"][:place].sum(), layers["MACs"].sum()
        work[name] = 4 - 3 * before / all_of_it
        assert shown(NAME, "price")[name][-1] == pytest.approx(work[name], abs=0.005)
        if name == TINY:
            assert 0.75 < before / all_of_it < 0.85, "four fifths"
    assert work == pytest.approx({TINY: 1.571, SIX: 3.796}, abs=1e-3)


@claim(
    NAME,
    "On every grid 0.86 instead of 1.28 % of the digits are read differently somewhere within one "
    "pixel: a third of these changes is gone. Within two it is 2.66 instead of 2.80 %, hardly",
)
def test_moves_matter_less():
    rows = shown(NAME, "unsteady")
    assert [rows["one grid"], rows["every grid"]] == [[1.28, 2.80], [0.86, 2.66]]
    largest = shown(NAME, "stride")
    assert largest["no stride:"][0] < 1e-4, "the same network"
    assert largest["one grid:"][0] > 1, "another one"
