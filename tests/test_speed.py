"""Notebooks 10 and 11: sparse dropout, when a line is reached, pairs, counts; then the claims."""

import contextlib
import io
import itertools
import math
import re
import statistics
import time

import numpy as np
import pandas as pd
import pytest
import race
import torch
from scipy import stats
from torch import nn

import manage
import records
import utils
from claims import claim, run_cells, says

TIME, COST = "10_time_to_994", "11_cost_of_a_step"
BEST, OTHER = "short_b128_a25_r20", "short_b128_a50"
PLAIN = "stride_b128_a25_r20_h28"  # without Muon


def run(scope: dict, name: str, *keys: str) -> dict:
    """Execute further cells of a notebook; return all that is defined then."""
    with contextlib.redirect_stdout(io.StringIO()):
        for key in keys:
            exec(manage.code_cells(name)[key]["source"], scope)
    return scope


@pytest.fixture(scope="module")
def scopes():
    """Notebooks 11 and 10 on the CPU, on the stand-in, as a smoke test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASET", "digits")
        patch.setenv("SMOKE_TEST", "1")
        patch.setattr(utils, "pick_device", lambda: torch.device("cpu"))
        keys = ("network", "parts", "train-on", "profile", "profiled", "chosen-places")
        keys += ("sparse-dropout", "sparse-layer", "clock", "measured", "passes")
        found = {COST: run_cells(COST, *keys)}
        keys = ("reached", "trunks", "model", "names", "hard", "muon", "prepare")
        keys += ("train", "stored", "choice", "walk")
        yield found | {TIME: run_cells(TIME, *keys)}


cost = pytest.fixture(name="cost")(lambda scopes: scopes[COST])
walk = pytest.fixture(name="walk")(lambda scopes: scopes[TIME])


@pytest.mark.parametrize(("count", "share"), [(40, 0.3), (1_000, 0.01), (7, 0.9)])
def test_places_are_those_of_independent_draws(cost, count, share):
    """How many (binomial), where (all places alike), and neighbours together (share squared)."""
    torch.manual_seed(0)
    n, hits = 4_000, np.zeros((4_000, count), dtype=bool)
    for row in hits:
        places = cost["chosen_places"](count, share)
        assert places.diff().gt(0).all() and places.lt(count).all()
        row[places.numpy()] = True
    found = np.bincount(hits.sum(axis=1), minlength=count + 1)
    usual = (expected := n * stats.binom.pmf(range(count + 1), count, share)) > 5
    assert stats.chisquare(found[usual], expected[usual], sum_check=False).pvalue > 0.001
    assert abs(hits.mean(axis=0) - share).max() < 5 * math.sqrt(share * (1 - share) / n)
    both = (hits[:, 1:] & hits[:, :-1]).mean()
    assert both == pytest.approx(share**2, abs=5 * share / math.sqrt(n * (count - 1)))
    with pytest.MonkeyPatch.context() as patch:  # so many zeros that the first draws do not do
        patch.setattr(torch.Tensor, "geometric_", lambda self, share: self.fill_(1))
        assert torch.equal(cost["chosen_places"](count, share), torch.arange(count))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sparse_dropout_is_dropout_in_value_and_gradient(cost, layout):
    torch.manual_seed(0)
    images, weight = torch.rand(64, 8, 9, 9).to(memory_format=layout) + 1, torch.rand(64, 8, 9, 9)
    for kind in (nn.Dropout, cost["SparseDropout"]):  # the same is true of both
        x = images.clone().requires_grad_()
        y = kind(0.2).train()(x)
        (y * weight).sum().backward()
        kept = y != 0
        assert torch.allclose(y, kept * images / 0.8) and y.stride() == images.stride()
        assert torch.allclose(x.grad, kept * weight / 0.8)
        shares = 1 - kept.double().mean(dim=(0, 2, 3))  # the same in all channels
        assert (shares - 0.2).abs().max() < 5 * 0.4 / 72
        assert torch.equal(kind(0.5).eval()(x), x) and torch.equal(kind(0.0).train()(x), x)
        assert not kind(1.0).train()(x).any() and kind(0.5).train()(x.to("meta")).is_meta


def test_a_walk_spares_hopeless_seeds_and_stops_at_the_line(walk, monkeypatch):
    means, asked = {1: 99.0, 2: 99.39, 3: 99.41, 4: 99.47, 5: 99.6}, []

    def trained(jobs):
        asked.extend(jobs)
        return [
            {"test_accuracy": means[int(name[-1])] + 0.06 * (-1) ** seed} for name, seed in jobs
        ]

    monkeypatch.setitem(walk["walk"].__globals__, "trained", trained)
    steps = walk["walk"]("recipe")
    assert {k: len(found) for k, found in steps.items()} == {1: 3, 2: 20, 3: 20, 4: 20}
    assert set(asked) == {
        (f"recipe_k{k}", n) for k, found in steps.items() for n in range(len(found))
    }
    values = [99.3, 99.5] * 10  # std 0.1026, two standard errors 0.0459
    assert not walk["reached"]([v + 0.0458 for v in values]) and not walk["reached"]([99.9])
    assert walk["reached"]([v + 0.0460 for v in values])


def test_what_has_a_record_is_not_trained_again(walk, monkeypatch):
    scope, ran = walk["trained"].__globals__, []
    monkeypatch.setitem(scope, "have", {("a", 0): "old"})
    monkeypatch.setitem(
        scope, "run", lambda *job: (ran.append(job), scope["have"].update({job: job}))
    )
    assert walk["trained"]([("a", 0)]) == ["old"] and not ran
    monkeypatch.setitem(scope, "KIND", "cuda")
    with pytest.raises(ValueError, match="no cuda record of"):  # not trained on the wrong machine
        walk["trained"]([("a", 0), ("a", 1)])
    monkeypatch.setitem(scope, "KIND", "cpu")
    assert walk["trained"]([("a", 0), ("a", 1)]) == ["old", ("a", 1)] and ran == [("a", 1)]


def test_the_hard_images_are_those_with_the_highest_loss_and_some_others(walk):
    data, share = walk["data"], 0.25
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in data.loader("train")])
    losses = nn.functional.cross_entropy(logits, data.train.labels, reduction="none")
    part = walk["hardest"](model, share, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.cat([model(images) for images, _ in data.loader(part)])
    found = nn.functional.cross_entropy(found, part.labels, reduction="none")
    hard, easy = (round(part * share * len(data.train)) for part in (0.7, 0.3))
    assert len(part) == hard + easy
    torch.testing.assert_close(found[:hard], losses.sort(descending=True).values[:hard])
    assert found[hard:].max() <= found[:hard].min(), "the others are drawn from the easier ones"
    again = walk["hardest"](model, share, torch.Generator().manual_seed(1))
    assert torch.equal(part.images[:hard], again.images[:hard])
    assert not torch.equal(part.images[hard:], again.images[hard:])


def test_a_run_over_hard_images_counts_all_its_seconds_and_batches(walk, monkeypatch):
    ran, schedules, spent, scope = [], [], [], walk["train"].__globals__
    fit, hardest = utils.fit, scope["hardest"]

    def slow(*arguments):
        ran.append(time.perf_counter())
        time.sleep(0.3)
        return hardest(*arguments)

    def watched(model, train, *rest):
        ran.append(len(train.split))
        schedules.append(rest[-1])
        history = fit(model, train, *rest)
        spent.append(history["seconds"][0])
        return history

    monkeypatch.setitem(scope, "hardest", slow)
    monkeypatch.setattr(utils, "fit", watched)
    record = walk["train"]("stride_b128_a25_r20_h28_k5", 3)
    n = len(walk["data"].train)
    assert ran[0] == n and abs(ran[2] - 0.28 * n) <= 1, "once all of them, then the hard ones"
    seconds = record["history"]["seconds"]
    assert len(seconds) == 2 == record["epochs"] and seconds[0] == spent[0]
    assert seconds[1] - spent[1] > 0.3, "sorting is training time"
    rates = record["history"]["learning_rate"]
    assert rates[0] == pytest.approx(0.2 / 25) and rates[1] > rates[0]
    recipe, *_, batches = walk["prepare"]("stride_b128_a25_r20_h28_k5", 3)
    assert batches == math.ceil(n / 128) + math.ceil(0.28 * n / 128) and recipe["hard"] == 0.28
    one, two = schedules
    assert one is two and one.last_epoch == batches, "one cycle over all passes"


def test_many_passes_over_hard_images_sort_them_twice(walk, monkeypatch):
    ran, scope, smoke = [], walk["train"].__globals__, walk["prepare"]

    def prepare(name, seed):
        recipe, *rest = smoke(name, seed)
        return recipe | {"epochs": 11, "first": 2}, *rest  # a smoke test has two passes

    def fit(model, train, val, optimizer, epochs, scheduler):
        ran.append((len(train.split), epochs))
        return {"seconds": [0.0] * epochs, "val_loss": [1.0] * epochs}

    monkeypatch.setitem(scope, "prepare", prepare)
    monkeypatch.setattr(utils, "fit", fit)
    monkeypatch.setattr(records, "make_run", lambda run, *rest, **own: run)
    walk["train"]("step6_b128_a100_r10_f2_h28_k11", 100)
    n, part = len(walk["data"].train), ran[1][0]
    assert ran == [(n, 2), (part, 5), (part, 4)] and abs(part - 0.28 * n) <= 1
    recipe = walk["read_name"]("step6_b128_a100_r10_f10_h28_k19")
    assert (recipe["first"], recipe["hard"], recipe["epochs"]) == (10, 0.28, 19)
    assert "first" not in walk["read_name"]("short_b128_a50_k3")
    with pytest.raises(ValueError, match="is no recipe"):
        walk["read_name"]("short_b128_a50_f2_k3")  # all of its passes are over all images


def test_muon_steps_along_all_directions_of_a_kernel_and_is_sgd_for_the_rest(walk):
    torch.manual_seed(0)
    kernel, matrix = nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(10, 8))
    twin = nn.Parameter(matrix.detach().clone())
    groups = [{"params": [kernel], "scale": 0.5}, {"params": [matrix], "weight_decay": 0.1}]
    muon = walk["Muon"](groups, 0.1, momentum=0.9, nesterov=True)
    sgd = torch.optim.SGD([twin], 0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(3):
        before = kernel.detach().clone()
        strong = torch.linspace(1, 4, 8)[:, None, None, None]  # some directions more than others
        kernel.grad, matrix.grad = torch.randn(8, 4, 3, 3) * strong, torch.randn(10, 8)
        twin.grad, gradient = matrix.grad.clone(), kernel.grad
        muon.step()
        sgd.step()
        step = ((before - kernel.detach()) / 0.05).flatten(1)  # rate times scale
        assert torch.linalg.svdvals(step).sub(1).abs().max() < 0.5 and kernel.grad is None
        assert torch.equal(matrix, twin)
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert (u.T @ step @ v.T).diagonal().mean() > 0.4, "and it goes where the gradient goes"
    recipe, model, _, optimizer, *_ = walk["prepare"]("stride_b128_a25_m5_h30_k4", 0)
    assert (
        recipe["muon"] == 0.05 and [p.ndim for p in optimizer.param_groups[0]["params"]] == [4] * 5
    )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 3e-4, 0]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_the_race_times_whole_runs_of_all_kinds_of_recipes(walk):
    names = ["stride_b128_a25_m5_h30_k2", "R1", "smallest"]
    parts = race.make_ready(walk, names, piece=2)
    assert parts["R1"][2] == 20 * math.ceil(60_000 / parts["R1"][0][1].batch_size)
    assert parts["smallest"][2] == 19 * math.ceil(55_000 / 64)
    n, batches = len(walk["data"].train), parts[names[0]][2]
    assert len(parts[names[0]][1].split) == round(2 / batches * n), "sorting is counted"
    assert len(parts["R1"][1].split) == 1, "nothing to sort"
    rows = race.pace(walk, names, 1)
    assert [(row["round"], row["name"]) for row in rows] == [(1, n) for n in names]
    assert all(row["seconds"] > 0 for row in rows)
    rows = race.pairs(walk, names[:1], 2)
    assert [row["round"] for row in rows] == [0, 1] and all(row["seconds"] > 0 for row in rows)


def test_a_run_is_step_6s_with_the_other_dropout(walk):
    """Built by hand from step 6's cells: the same weights at the start, the same losses."""
    recipe = walk["read_name"]("late_b128_a25_r20_k3")
    assert list(recipe.values()) == ["late", 128, 0.25, 3, 0.2, 3e-4, 0.01]
    recipe = walk["read_name"]("step6_b128_a100_k3") | {"momentum": 0.9}
    step6 = walk | {"DROPOUT": 0.01, "AUGMENT": 1.0, "EPOCHS": 1, "hyperparameters": recipe}
    for key in ("model", "random-affine", "optimizer", "schedule"):
        exec(manage.code_cells("06_lr_schedule")[key]["source"], step6)
    warp = {"generator": utils.seed_everything(1), "augment": step6["random_affine"]}
    model = step6["make_model"]().to(memory_format=torch.channels_last)
    for block in model[:6]:
        block[-1] = walk["cheap"]["SparseDropout"](0.01)
    loaders, sgd = [walk["data"].loader("train", 128, **warp)], step6["make_optimizer"](model)
    loaders.append(walk["data"].loader("val"))
    expected = utils.fit(model, *loaders, sgd, 1, step6["make_scheduler"](sgd))
    found = walk["train"]("step6_b128_a100_k3", 1)["history"]
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert walk["train"]("step6_b128_a50_k3", 100)["test_errors"] is None  # a run of the choice


def test_two_take_turns_and_the_ratio_is_taken_pair_by_pair(cost):
    """A machine that becomes three times slower half-way must not change a ratio."""
    order, now = [], [0.0]

    def work(seconds: float) -> int:
        order.append(seconds)
        now[0] += seconds * (3 if len(order) > 4 else 1)
        return 12

    both = (lambda: work(2.0), lambda: work(1.0))
    pairs = cost["alternate"](*both, 3, lambda: now[0])
    assert order == [2.0, 1.0] * 4 and pairs == [[6, 12], [2, 4], [2, 4]]  # the first not counted
    assert cost["spread"](pairs) == (2, 2, 2) and cost["spread"]([[1, 3], [1, 1]]) == (2, 1, 3)


def test_a_change_pays_only_above_the_noise(cost):
    row = lambda name, *r: {"name": name, "images_per_second": [[10, v] for v in r]}  # noqa: E731
    same, late = row("the same again", 10, 9, 11), row("the same, at the end", 13, 13, 13)
    good, pays = row("a", 12, 13, 11.5), cost["pays"]
    assert pays(good, [same, good]) and not pays(good, [same, good, late])
    assert not any(pays(bad, [same, bad]) for bad in (row("a", 12, 9.9), row("a", 10.5), late))


def test_a_profile_is_the_whole_step(cost):
    table = cost["by_kind"](*cost["profiled"](*cost["parts"]()))
    assert table["share"].sum() == pytest.approx(1) and (table["share"] > 0).all()
    assert (table.loc[["convolution", "dropout", "batch norm"], "backward"] > 0).all()


# --- What the text says, made from what the notebooks' cells make of the records ------------------


def test_notebook_10_says_what_its_records_say(walk):
    scope = run(dict(walk), TIME, "choice-table")
    assert len(scope["means"]) == 30 and scope["low"] < 0 < scope["high"]
    assert {n[:6] for n in scope["winners"]} == {"short_"}
    run(scope, TIME, "points", "third", "seconds", "chart", "pairs", "sooner", "others")
    points, third, tried = (scope[k] for k in ("points", "third", "tried"))
    ratio, plain = (scope["ratios"]["pairs"][key] for key in (scope["HALF"], f"{PLAIN}_k5"))
    older, watch = (scope[key]["pairs_xeon"][scope["HALF"]] for key in ("ratios", "pairs"))
    half_the, sooner = scope["HALF"].rpartition("_k")[0], scope["SOONER"]
    keys = ((half_the, 4), (BEST, 3), (OTHER, 3), ("step6", 19), ("sooner", 19))
    half, best, other, step6, soon = (points.loc[key] for key in keys)
    won = points[points["reached"] == "yes"]
    found = {(BEST, 3), (OTHER, 3), (half_the, 4), (PLAIN, 5), ("step6", 19)}
    assert found < set(won.index) and len(won) == 7
    assert (won["n"] >= 20).all() and half["seconds"] == won["seconds"].min()
    low, high = records.difference(
        *([run["test_accuracy"] for run in scope["walks"][name][3]] for name in (BEST, OTHER))
    )[1:]
    assert low < 0 < high < 0.06, "the interval of the difference contains zero, if only just"
    assert ratio.median() <= 0.55 and len(ratio) == len(older) == 5
    assert 1.9 < watch.median() / scope["pairs"]["pairs"][scope["HALF"]].median() < 2.1
    assert scope["share"].median() <= 0.6 and scope["low"] < 0 < scope["high"] and soon["n"] == 10
    long = points.loc[[f"R{n}" for n in range(1, 6)], "seconds"] / half["seconds"]
    r1, r2, r3 = (scope["race"][f"R{n}"] for n in (1, 2, 3))
    every = [scope["race"][f"R{n}"]["of them reached 99.4"] for n in range(1, 6)]
    assert (
        every[1:3] == [5, 5]
        and every[4] == 0
        and r3["min"] == min(row["min"] for row in scope["race"].values() if row["min"] > 0)
    )
    assert [r1["runs"], *(r["of them reached 99.4"] for r in (r1, r2))] == [5, 3, 5]

    def loss(blocks, passes, what):
        rows = third.loc[[row for row in third.index if row == (blocks, passes, what)]]
        return rows["loss"].item()

    ran = {
        key: [run["test_accuracy"] for run in scope["walks"][name][k]]
        for key, (name, k) in {"half": (half_the, 4), "best": (BEST, 3), "sgd": (PLAIN, 5)}.items()
    }
    less, lesser, beside = (
        records.difference(ran[a], ran[b])
        for a, b in (("half", "best"), ("sgd", "best"), ("half", "sgd"))
    )
    assert less[1] < 0 < less[2] and lesser[2] < 0 and beside[1] < 0 < beside[2]
    means = points["mean"]
    four, second = (
        stats.t.interval(1 - 0.05 / 4, len(values) - 1, statistics.mean(values), stats.sem(values))
        for values in (ran["half"], ran["sgd"])
    )
    dearer = records.difference(
        [run["test_accuracy"] for run in records.load_records("seeds", "06_lr_schedule")],
        ran["half"],
    )
    ends = {
        key: records.difference([r["test_accuracy"] for r in scope["others"][key]], ran["half"])
        for key in ("R2", "R3", "R4")
    }
    assert all(low < 0 < high for _, low, high in ends.values())
    assert max(ends.values()) == ends["R2"] and max(means.loc[["R1", "R5"]]) < 99.4
    first_at = [scope["first_epoch"](run) for run in scope["others"]["R2"]]
    timed = scope["pairs"]["pairs"]
    whole, paces = timed[scope["HALF"]], scope["seconds"]["seconds"].reindex(list(timed))
    slower = timed.median() / paces
    wrong = pd.DataFrame(records.load_records("speed", "third_comparison")[0]["rows"])
    wrong = wrong.fillna("").groupby(["blocks", "passes", "what"])["val_wrong"].mean().sort_values()
    smooth = third["loss"].idxmax()
    assert smooth in wrong.index[:10] and "smoothing" in smooth[2] and third["runs"].max() == 14
    short, stride = "16k5P 16 24 24 32", "16k5s2 16 16 32 32"
    superseded, third_try = (
        [
            record
            for path in sorted(
                (records.RESULTS / "speed").glob(f"stride_b128_a25_{kind}_cpu-*.json")
            )
            if (record := records.load_record(path))["status"] == "superseded"
        ]
        for kind in ("m5_k2", "r20_h16_k7")
    )
    gone, third_try = ([r["test_accuracy"] for r in some] for some in (superseded, third_try))
    later = [r["history"]["val_loss"][-1] for r in superseded]
    walk_2 = [run["val_loss"] for run in scope["walks"][BEST][2]]
    walked = statistics.mean(walk_2)
    assert len(walk_2) == 20 and walked > scope["means"][f"{BEST}_k2"]
    first = statistics.mean(run["history"]["val_accuracy"][0] for run in scope["walks"][PLAIN][5])
    lowest = third.sort_values("loss")[:2]
    assert all("Muon" in row[2] and "hard" in row[2] for row in lowest.index)
    assert lowest["runs"].tolist() == [2, 4]
    muon = "Muon 0.05, momentum 0.8, 3 iterations, rate 0.1"
    fixed = f"{muon}, first block fixed: whitening"
    together = f"{muon}, hard ones (70% of a pass)"
    sentences = [
        f"**About {whole.median():.1f} seconds of training on one thread of a CPU ("
        f"{whole.min():.1f} to {whole.max():.1f} in five whole runs) are enough for "
        f"a mean of {half['mean']:.3f} %** "
        f"(last epoch; {half['n']} runs, two standard errors {half['2 errors']:.3f}, std "
        f"{half['std']:.3f}, min {half['min']:.2f}; {half['runs ≥ 99.4']} runs at 99.4 or above). "
        f"That is {ratio.median():.2f} times as long as our best",
        f"where a run takes {watch.median():.0f} seconds (torch 2.14.1 on both)",
        f"the interval of its mean is {four[0]:.3f} to {four[1]:.3f}: still above the line.",
        f"reaches down to {second[0]:.3f}, that of the fourth to {four[0]:.3f}.",
        f"The first row, `1 + 2 x 0.5` with {lowest['loss'].iloc[0]:.4f}, is not told apart from "
        "it: it has two runs, and reads a twentieth more images.",
        f"R2 took {r2['ratio to ours: median']:.0f} times as long as ours in the median "
        f"({r2['min']:.0f} to {r2['max']:.0f}), R3 {r3['ratio to ours: median']:.0f} times "
        f"({r3['min']:.0f} to {r3['max']:.0f}), and its luckiest run, at the line after five",
        "buys {:.3f} points ({:.3f} to {:.3f}) with it".format(*dearer),
        f"The mean keeps all five rules; four of the {half['n']} runs are below 99.4.",
        f"30 recipes and then {len(third)} configurations were compared on validation images",
        "Three epochs are enough with batches of 128. The recipes with larger batches, which",
        f"ends {99.4 - points['mean'][BEST, 2]:.3f} below the line with two",
        f"After its first pass *stride* reads {first:.1f} % of the validation digits",
        f"three epochs of *short* have {loss(short, '3', 'dropout in each block'):.4f}, two have "
        f"{loss(short, '2', 'dropout in each block'):.4f}. *stride* alone, with two epochs, has "
        f"{loss(stride, '2', ''):.4f}: worse than three of *short*",
        f"With Muon they have {loss(stride, '2', muon):.4f} ({statistics.mean(later):.4f} with the "
        "next twelve seeds: whether it makes up for the third epoch is not shown). Four passes "
        "over 25 % of the images, mostly the hardest, without Muon have "
        f"{loss(stride, '1 + 4 x 0.25', 'hard ones (70% of a pass)'):.4f}, too.",
        f"does not help ({loss('16k5P 16 16 32 32', '2', fixed):.4f}). Both together were frozen "
        f"as `1 + 3 x 0.3` ({loss(stride, '1 + 3 x 0.3', together):.4f}, "
        "four runs)",
        "Label smoothing stands last",
        f"by misread digits ({wrong[smooth]:.1f} of 5,000 a run, not in the table) it is among",
        f"the second comparison had {scope['means'][f'{BEST}_k2']:.4f} with the same four seeds",
        f"(two epochs of *short*) has validation losses of {walked:.4f} (twenty seeds) and "
        f"{loss(short, '2', 'dropout in each block'):.4f} (four).",
        f"(It had won there: the twenty runs of its walk have {walked:.4f}.)",
        f"two epochs with Muon had a loss of {loss(stride, '2', muon):.4f} with four seeds and "
        f"{statistics.mean(later):.4f} with the next twelve.",
        f"took {slower.min():.2f} to {slower.max():.2f} times as long as this pace says",
        f"Two epochs with Muon ended at {statistics.mean(gone):.3f} % ({len(gone)} runs)",
        f"Six passes over 16 % were at {statistics.mean(third_try):.3f} % after nine runs",
        f"need {long.min():.0f} to {long.max():.0f} times as many seconds as the star. R1 and R5 "
        "end below the line; of the other three no difference from the star is shown (R2, the "
        "highest: {:+.3f}, {:+.3f} to {:+.3f}).".format(*ends["R2"]),
        "The larger part of R2's ratio is epochs: "
        f"{min(first_at):.0f} to {max(first_at):.0f} against one and three short ones.",
        "Between the two nothing is shown: {:+.3f} ({:+.3f} to {:+.3f}) points.".format(*beside),
        f"takes {step6['seconds'] / half['seconds']:.0f} times as long and buys",
        f"{best['mean']:.3f} with {best['runs ≥ 99.4']} runs at the line or above it, against "
        f"{other['mean']:.3f} with {other['runs ≥ 99.4']}. That",
        f"the recipe takes {ratio.median():.2f} times as long as three plain epochs in the median, "
        f"and {ratio.min():.2f} to {ratio.max():.2f} times in a single round: half is missed, by a "
        f"little. On another machine, an Intel Xeon of 2.5 GHz, it takes twice the "
        f"seconds, {watch.median():.0f}, and "
        f"{older.median():.2f} times as long ({older.min():.2f} to {older.max():.2f}). Its mean is "
        "{:.3f} points lower (95 % interval {:+.3f} to {:+.3f})".format(-less[0], *less[1:]),
        f"pass more, it is {plain.median():.2f} times ({plain.min():.2f} to {plain.max():.2f}), "
        "and {:.3f} points lower ({:+.3f} to {:+.3f})".format(-lesser[0], *lesser[1:]),
        f"*two* plain ones miss the line by {99.4 - points['mean'][BEST, 2]:.3f}, and two and a",
        f"train step 6 in {scope['share'].median():.2f} of its time; ten runs do not tell",
        f"*Sooner* ends at {soon['mean']:.3f} % (n = {soon['n']}, std {soon['std']:.3f}, min "
        f"{soon['min']:.2f}), {scope['gap']:+.3f} points from step 6 (95 % interval "
        f"{scope['low']:+.3f} to {scope['high']:+.3f}), after {scope['share'].median():.2f} of its "
        f"time ({scope['share'].min():.2f} to {scope['share'].max():.2f} over five rounds)",
        f"({tried['mean']['step6_b128_a100_r10_f6_h28_k17']:.4f} and {tried['mean'][sooner]:.4f}, "
        f"two runs each)",
        f"*Short* stays behind ({tried['mean']['short_b128_a100_r10_k19']:.4f}, one run)",
        "Its 5,389 batches are 66 % of step 6's 8,170",
        f"R1 took {r1['min']:.0f}, {r1['ratio to ours: median']:.0f} and {r1['max']:.0f} times as "
        "long in three runs, and in the other two",
        f"*t* asks for {stats.t.ppf(0.975, 4):.1f} errors",
    ]
    says(TIME, *sentences)


@claim(
    TIME,
    "a polynomial in the matrix, applied three times, brings what is above a fiftieth of the "
    "matrix's norm to between 0.68 and 1.20 (weaker directions grow about forty times at most",
)
def test_what_muons_polynomial_does_to_a_direction(walk):
    code = manage.code_cells(TIME)["muon"]["source"]
    assert "3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x" in code
    assert "range(3)" in code
    length = np.geomspace(1e-4, 1, 10_000)
    found = length.copy()
    for _ in range(3):
        found = 3.4445 * found - 4.7750 * found**3 + 2.0315 * found**5
    above = found[length >= 1 / 50]
    assert (round(above.min(), 2), round(above.max(), 2)) == (0.68, 1.20)
    assert 39 < (found / length).max() < 42


def test_notebook_11_says_what_its_records_say(cost):
    scope = run(dict(cost), COST, "live", "live-table", "improvements")
    gaps, large = (scope["table"].loc[name] for name in ("dropout by gaps", "batches of 512"))
    wins, highest = (scope["found"].groupby("change")[key] for key in ("pays", "max"))
    assert wins.sum()[wins.sum() > 0].to_dict() == {"batches of 512": 1, "dropout by gaps": 3}
    assert highest.max()[["contiguous memory", "torch.compile"]].max() < 1
    trials = scope["measured"]("improvements")
    first = [r["first_seconds"] for t in trials for r in t["rows"] if r["name"] == "torch.compile"]
    (growth,), (pipeline,) = (scope["measured"](family) for family in ("growth", "pipeline"))
    spent = {(r["what"], r["x"]): statistics.median(r["seconds"]) for r in growth["rows"]}
    macs = {r["x"]: r["macs"] for r in growth["rows"] if r["what"] == "width"}
    micro = {n: 1e6 * spent["batch size", n] / n for n in (16, 128, 512, 1_024)}
    assert micro[1_024] > micro[512] and round(macs[1] / macs[0.25]) == 13
    assert spent["width", 0.25] / spent["width", 1] == pytest.approx(4 / 5, abs=0.02)
    by_images = [spent[key] for key in sorted(spent) if key[0] == "images"]
    assert [b / a for a, b in itertools.pairwise(by_images)] == pytest.approx([2] * 3, abs=0.06)
    says(COST, "*Images:* twice the images, twice the time.")
    ratios = [cost["spread"](r["images_per_second"])[0] for r in pipeline["rows"]]
    assert ratios == pytest.approx([2] * 3, abs=0.2)
    html = str(manage.code_cells(COST)["profile-table"]["outputs"])
    share = [int(percent) for percent in re.findall(r">(\d+)%<", html)]
    assert len(share) == 8 and share[0] > share[1] > max(share[2:])  # convolution, dropout, others
    layers = utils.layer_table(cost["parts"](dropout=cost["SparseDropout"])[1])
    counted = list(map(list, cost["count_step"](layers)))
    assert counted == scope["measured"]("limit")[0]["rows"][1]["layers"]
    floor = run(scope, COST, "floor-table")["table"]
    step6, late, short = (floor[name] for name in ("step6", "late", "short"))
    seen = str(manage.code_cells(COST)["pipeline"]["outputs"])
    *_, here, _, _ = map(float, re.findall(r">(\d\.\d\d)<", seen))
    names = ("dropout by gaps", "all that pay")  # which is gaps alone, again
    again = [[cost["spread"](r["images_per_second"])[0] for t in trials for r in t["rows"]
             if r["name"] == name] for name in names]  # fmt: skip
    (busy,) = records.load_records("speed", "busy_machine")
    busy = pd.DataFrame(busy["rows"])
    rounds = busy[busy["beside"] == "nothing"].pivot(
        index="round", columns="name", values="ms a step"
    )
    limit = rounds["limited"] / rounds["as it comes"]
    groups = busy.groupby(["name", "beside"])["ms a step"]

    def cell(*key: str) -> str:
        each = groups.get_group(key)
        return f"{each.median():.0f} ({each.min():.0f} to {each.max():.0f})"

    busy = busy.pivot_table("ms a step", "name", "beside", "median")
    alone, beside, second = (busy[k] for k in ("nothing", "one busy process", "a second run"))
    assert beside["limited"] <= 2.5 * alone["limited"] and limit.median() <= 1.05
    sentences = [
        f"two threads, no limit | {cell('as it comes', 'nothing')} | "
        f"{cell('as it comes', 'one busy process')} | |",
        f"two threads, limited | {cell('limited', 'nothing')} | "
        f"{cell('limited', 'one busy process')} | |",
        f"one thread | {cell('one thread', 'nothing')} | {cell('one thread', 'one busy process')} "
        f"| {cell('one thread', 'a second run')} |",
        f"in the same round {limit.median():.2f} times as long as without it ({limit.min():.2f} to "
        f"{limit.max():.2f})",
        f"(Median and range of {len(limit)} rounds",
        "Two such runs side by side train "
        f"{2 * alone['one thread'] / second['one thread']:.1f} times as many images as one, a "
        f"single run on two threads {alone['one thread'] / alone['limited']:.1f}",
        f"network and optimizer take {step6['measured, ms']:.0f} ms for 128 images on two",
        f"draws few random numbers, {min(map(min, again)):.2f} to {max(map(max, again)):.2f} times "
        "as many images per second.**",
        "trains half as many images per second as the loader of this series there.",
        f"both loops are the same, and the ratio is {here:.1f}; but",
        "(Three more measurements of it alone gave {:.2f}, {:.2f} and {:.2f}.)".format(*again[1]),
        f"{micro[128] / micro[512]:.1f} times as fast: a gain that depends on what else",
        "Second comes dropout",
        f"a part that takes {share[1]} %, as dropout does here, {100 / (100 - share[1]):.2f}.",
        f"with {gaps[1]:.2f}, {gaps[2]:.2f} and {gaps[3]:.2f}.",
        f"Batches of 512 pay in one of three measurements ({large[1]:.2f}, {large[2]:.2f} and "
        f"{large[3]:.2f})",
        f"after {min(first):.0f} to {max(first):.0f} seconds for a first epoch",
        f"divided by what was measured: {100 * step6['reached']:.0f} % for step 6.",
        f"`late` reaches {100 * late['reached']:.0f} %, perhaps because its large maps make long "
        f"loops, `short` {100 * short['reached']:.0f} %.",
        f"{micro[16]:.0f} µs per image in batches of 16, {micro[128]:.0f} in batches of 128, "
        f"{micro[512]:.0f} in batches of 512",
        "a thirteenth of the arithmetic and takes four fifths of the time",
        "about twice as many, whatever the number of workers",
    ]
    says(COST, *sentences)
