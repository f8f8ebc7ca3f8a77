"""Notebook 08: runs and variants are what their names say, its numbers those of its runs."""

import functools
import itertools
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats
from torch import nn

import records
import utils
from claims import claim, prose, run_cells

NAME, STEP = "08_many_seeds", "06_lr_schedule"


run = functools.partial(run_cells, NAME)


REST = ("result", "many-seeds", "chance", "variants", "run-ablation", "ablation", "ablation-plot")
REST += ("gap", "mistakes", "mistakes-plot", "seed-number", "seed-trace")


def read_through(**parameters: object) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        asked, saved = [], []
        patch.setattr(records, "run_study", lambda *study: asked.append(study) or [])
        patch.setattr(records, "save_figure", lambda name, *_: saved.append(name))
        return run("run", "seeds", *REST, **parameters) | {"asked": asked, "saved": saved}


@pytest.fixture(scope="module")
def shown() -> dict:
    return read_through(SEEDS=31)


def test_what_has_a_record_is_not_run_again_and_the_pictures_are_published(shown):
    (steps, _, have, where), (variants, _, both, _) = shown["asked"]
    assert shown["saved"] == ["many_seeds", "ablation"] and where == "local"
    assert set(steps) - have == {(STEP, 30)} and len(variants) == 50 and not set(variants) - both


@pytest.mark.parametrize("change", [{"LEAVE_OUT": ()}, {"ABLATION": "mine"}, {"STUDY": "mine"}])
def test_another_study_overwrites_no_picture(change):
    assert read_through(**change)["saved"] == []


def test_a_run_is_the_step_up_to_its_record_with_another_seed(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(records, "run_notebook", lambda *job: done.append(job))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(records, "run_study", lambda *_: [])
    scope = run("run", "variants", "run-ablation", STEP=STEP, have=set())
    scope["run_step"](STEP, 7)
    scope["run_variant"]("without_dropout", 2)
    scope["run_variant"]("05_augmentation", 3)
    first, second, third = (values for _, values, _ in done)
    assert first == {"SEED": 7, "STUDY": "seeds", "TEST_EVERY_EPOCH": True, "BAR": 0}
    assert second | {"DROPOUT": 0.0, "NAME": "without_dropout", "STUDY": "ablation"} == second
    assert third["STUDY"] == "seeds" and third["BAR"] == second["BAR"] == 0, "none may be dropped"
    cells = [cell.id for cell in scope["recipe"](STEP).cells]
    assert cells[0] == "header" and cells[-1] == "rules" and tmp_path in done[0][0].parents


def test_a_variant_lacks_what_its_name_says_and_nothing_else():
    scope, networks = run("run", "variants", STEP=STEP), {}
    for name, (source, values, edits) in scope["VARIANTS"].items():
        notebook, before, after = scope["edited"](name)
        pairs = zip(scope["recipe"](source).cells, notebook.cells, strict=True)
        changed = [a.id for a, b in pairs if a.source != b.source]
        assert changed == ["model"] * bool(edits) and bool(edits) == (before != after)
        exec(after, names := {"nn": nn, "DROPOUT": 0.01} | values)
        networks[name] = names["make_model"]()
    kinds = {name: {type(m) for m in network.modules()} for name, network in networks.items()}
    assert [n for n in kinds if nn.BatchNorm2d not in kinds[n]] == ["without_batch_norm"]
    assert [n for n in kinds if nn.AdaptiveAvgPool2d not in kinds[n]] == ["flatten_head"]
    rates = {m.p for m in networks["without_dropout"].modules() if isinstance(m, nn.Dropout)}
    counts = list(map(utils.count_parameters, networks.values()))
    assert rates == {0.0} and counts == [18_946, 19_066, 24_826, 19_066]
    scope["VARIANTS"]["nothing"] = (STEP, {}, [("not in the cell", "")])
    with pytest.raises(ValueError, match="once in the network cell"):
        scope["edited"]("nothing")


def test_dunnetts_interval_is_that_of_a_simulation(shown):
    draw, df, scale = np.random.default_rng(0), 30 + 50 - 6, (1 / 10 + 1 / 30) ** 0.5
    noise = draw.normal(size=(200_000, 5)) / 10**0.5 - draw.normal(size=(200_000, 1)) / 30**0.5
    spread = (draw.chisquare(df, size=(200_000, 1)) / df) ** 0.5
    largest = np.abs(noise / scale / spread).max(axis=1)
    pooled = sum((len(g) - 1) * np.var(g, ddof=1) for g in shown["accuracy"].values()) / df
    table, unit = shown["ablation"].iloc[1:], scale * pooled**0.5
    half = (table["high"] - table["difference"]).tolist()
    assert half == pytest.approx([np.quantile(largest, 0.95) * unit] * 5, abs=0.001)
    found = [(largest > abs(difference) / unit).mean() for difference in table["difference"]]
    assert found == pytest.approx(table["p"].tolist(), abs=0.003)


@claim(
    NAME,
    "the best of ten normal draws lies about 1.5 standard deviations above the mean, of thirty "
    "about 2, of a hundred about 2.5.",
)
def test_how_far_the_best_of_some_draws_lies():
    draws = np.random.default_rng(0).standard_normal((20_000, 100))
    best = [draws[:, :n].max(axis=1).mean() for n in (10, 30, 100)]
    assert best == pytest.approx([1.5, 2, 2.5], abs=0.06)


@claim(NAME, "all 30 are at or above 99.4", "a mean of 99.60 and no run below 99.45. Both came")
@claim(NAME, "Leaving out dropout (of 1 %), or global average pooling, does not show an effect")
@claim(NAME, "all five variants have an interval that contains zero", "each *p* is below 0.001")
@claim(
    NAME, "For the other three variants the interval contains zero", "GAP saves 5,760 parameters"
)
@claim(
    NAME,
    "Seeds 5 to 9 of no variant are shown to differ from 0 to 4; but with five against five",
    "less than 0.05 points",
)
@claim(
    NAME, "(0.02; the schedule peaks at 0.1)", "because one run, 99.72, is far ahead of the next"
)
@claim(NAME, "Whether batch norm or augmentation costs more, ten runs do not show", "only just")
def test_each_number_in_the_text_is_made_of_the_records(shown):
    last, row = shown["last"], records.summary(shown["last"])
    assert len(last) == 30 and min(last) >= 99.45 and row["low"] < 99.6 <= row["mean"] < row["high"]
    table, wrong, doubtful = shown["ablation"], shown["wrong"], set(records.LABEL_ERRORS)
    crossing = table.iloc[1:].query("low <= 0 <= high").index
    assert set(crossing) == {"without_dropout", "flatten_head"} and list(table["n"]) == [
        30,
        *[10] * 5,
    ]
    norm, warp = (f"without_{idea}" for idea in ("batch_norm", "augmentation"))
    apart, low, high = records.difference(shown["accuracy"][norm], shown["accuracy"][warp])
    assert low < 0 < high and table["low"].loc[crossing].min() > -0.05
    assert (table["p"].drop([STEP, *crossing]) < 0.001).all()
    for name, values in shown["accuracy"].items():
        _, least, most = records.difference(values[5:], values[:5])
        assert name == STEP or least < 0 < most, name
        assert name == STEP or 0.045 < (most - least) / 2 < 0.105, name  # "could stay hidden"
    assert len(shown["rows"]) == 6 and all(r["low"] < 0 < r["high"] for r in shown["rows"].values())
    traced, five = shown["trace"].query("low > 0"), "constant rate (step 5)"
    assert (
        list(traced.index) == ["without dropout", five] and (shown["trace"]["low"] < 0).sum() == 3
    )
    p, other = (5 * stats.ttest_1samp(shown["extra"][key], 0).pvalue for key in traced.index)
    assert p < 0.05 < other
    assert 24_826 - 19_066 == 5_760 and sorted(last)[-2] == 99.65
    for name, runs in shown["groups"].items():
        thirty, step5 = name == STEP, name == "05_augmentation"
        where = [f"{r['device']}, torch {r['versions']['torch'][:6]}" for r in runs]
        assert set(where[:5]) == {"cpu: AMD EPYC, torch 2.15.0"}, name
        assert thirty == (where[0] == where[-1]) and len(set(where[5:])) == 1, name
        assert thirty or (where[-1].endswith("2.14.1") and step5 == ("Xeon" in where[-1])), name
    constant = [
        records.summary([max(r["history"]["test_accuracy"]) - r["test_accuracy"] for r in known])
        for step in ("01_baseline", "02_batch_norm", "03_dropout", "04_gap_fc")
        if (known := [r for r in records.load_records("seeds", step)
                      if "test_accuracy" in r["history"]])
    ]  # fmt: skip
    assert {row["n"] for row in constant} == {2, 3} and len(constant) == 4
    gap = {name: row["distance"] for name, row in shown["gap"].items()}
    full, bare = (gap.pop(name) for name in ("full recipe", "without augmentation"))
    misread = shown["gap"]["without augmentation"]["training error (%)"]
    names = ("05_augmentation", warp, norm)
    costs = [-table[key][name] for name in names for key in ("difference", "high", "low")]
    pairs = [2 * len(a & b) / len([*a, *b]) for a, b in itertools.combinations(wrong, 2)]
    counted, always = mean(len(w & doubtful) for w in wrong), set.intersection(*wrong)
    assert counted / mean(map(len, wrong)) > 0.2, "more than a fifth"
    gain = records.summary([b - end for b, end in zip(shown["best"], last, strict=True)])
    again = [r["test_accuracy"] for r in records.load_records("weights", STEP)]
    first, trace = records.load_records("steps", STEP)[0]["test_accuracy"], traced.iloc[0]
    for sentence in (
        f"mean of {row['mean']:.3f} % (95 % interval {row['low']:.3f} to {row['high']:.3f}), a",
        f"deviation of {stdev(last):.3f}, a minimum of {min(last)} and a maximum of {max(last)};",
        "worth {:.3f} points, augmentation {:.3f}, batch norm {:.3f}.".format(*costs[::3]),
        "costs {:.3f} points ({:.3f} to {:.3f}), *no augmentation* {:.3f} ({:.3f} to {:.3f}), "
        "*no batch norm* {:.3f} ({:.3f} to {:.3f}); each".format(*costs),
        f"they differ by {apart:.3f} ({low:.3f} to {high:+.3f})",
        f"by {gain['mean']:.3f} points on average (95 % interval {gain['low']:.3f} to",
        f"run lies {max(last) - row['mean']:.3f} above the mean",
        "have a mean of {mean:.3f} % (std {std:.3f}, {min:.2f} to {max:.2f}): ".format(
            **records.summary(again)
        )
        + "{:+.3f} points from these (95 % interval {:+.3f} to {:+.3f}).".format(
            *records.difference(again, last)
        ),
        f"{len(always)} of them, {len(always & doubtful)} with a doubtful label, and many defeat "
        f"some: {len(set.union(*wrong))} in all",
        f"mistake, {counted:.1f} of {100 * (100 - row['mean']):.0f} digits",
        f"share {100 * mean(pairs):.0f} % of their mistakes on average",
        f"between {100 * min(pairs):.0f} and {100 * max(pairs):.0f} % ({len(pairs)} pairs of 30",
        f"{trace['mean']:.3f} more of its mistakes",
        f"interval {trace['low']:.3f} to {trace['high']:.3f}, n = {trace['n']:.0f} seeds)",
        f"five times its *p* is {p:.3f}",
        "constant rate it is {mean:.3f} ({low:.3f} to {high:.3f}), but".format(**traced.loc[five]),
        f"but five times its *p* is {other:.2f}",
        f"is constant, it is {min(r['mean'] for r in constant):.2f} to "
        f"{max(r['mean'] for r in constant):.2f} (two or three runs each)",
        f"Ours lies {(max(last) - row['mean']) / stdev(last):.1f} above",
        f"the share is above {100 * shown['wilson'].low // 1:.0f} % (Wilson's",
        f"misreads {shown['gap']['full recipe']['validation error (%)']:.3f} % of them and "
        f"{100 - row['mean']:.3f} % of those",
        f"misreads {100 * misread:.0f} of 10,000 training images, and the distance grows from "
        f"{full:.2f} to {bare:.2f}. The others lie between {min(gap.values()):.2f} and "
        f"{max(gap.values()):.2f}.",
        f"ends at {first} instead of {shown['runs'][0]['test_accuracy']}",
    ):
        assert sentence in prose(NAME), sentence
