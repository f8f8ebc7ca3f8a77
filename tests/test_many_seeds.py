"""Notebook 08: runs and variants are what their names say, its numbers those of its runs."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import nn

import manage
import records
import utils

NAME, STEP = "08_many_seeds", "06_lr_schedule"


def run(*ids: str, **scope: object) -> dict:
    """Execute cells of the notebook by their id, after its parameters and imports."""
    cells, names = manage.code_cells(NAME), {"__name__": "__main__", "display": lambda *_: None}
    exec(cells["parameters"]["source"], names)
    names |= scope
    with contextlib.redirect_stdout(io.StringIO()):
        for key in ("imports", *ids):
            exec(cells[key]["source"], names)
    return names


@pytest.fixture
def asked(monkeypatch) -> list:
    """The plans of all studies: nothing is run, and no picture saved."""
    plans: list = []
    study = lambda plan, run, have, scheduler: plans.append((plan, have, scheduler)) or []  # noqa: E731
    monkeypatch.setattr(records, "run_study", study)
    monkeypatch.setattr(records, "save_figure", lambda name, *_: plans.append(name))
    return plans


REST = ("result", "many-seeds", "chance", "variants", "run-ablation", "ablation", "ablation-plot")
REST += ("gap", "mistakes", "mistakes-plot", "seed-number", "seed-trace")


def test_what_has_a_record_is_not_run_again_and_the_pictures_are_published(asked):
    run("run", "seeds", *REST, SEEDS=31)
    (steps, have, where), picture, (variants, both, _), other = asked
    assert (picture, other, where) == ("many_seeds", "ablation", "local")
    assert [job for job in steps if job not in have] == [(STEP, 30)]
    assert len(variants) == 25 and not set(variants) - both


@pytest.mark.parametrize("change", [{"LEAVE_OUT": ()}, {"ABLATION": "mine"}, {"STUDY": "mine"}])
def test_another_study_overwrites_no_picture(asked, change):
    run("run", "seeds", *REST, **change)
    assert len(asked) == 2 and "many_seeds" not in asked and "ablation" not in asked


@pytest.mark.parametrize("name", ["STUDY", "ABLATION"])
def test_a_study_stays_in_its_folder(name):
    for path in ("../../x", "a/b", ""):
        with pytest.raises(ValueError, match="a study's name is letters"):
            run(**{name: path})


def test_a_run_is_the_step_up_to_its_record_with_another_seed(tmp_path, monkeypatch, asked):
    done = []
    monkeypatch.setattr(records, "run_notebook", lambda *job: done.append(job))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    scope = run("run", "variants", "run-ablation", STEP=STEP, have=set())
    scope["run_step"](STEP, 7)
    scope["run_variant"]("without_dropout", 2)
    scope["run_variant"]("05_augmentation", 3)
    first, second, third = (values for _, values, _ in done)
    assert first == {"SEED": 7, "STUDY": "seeds", "TEST_EVERY_EPOCH": True, "BAR": 0}
    assert second | {"DROPOUT": 0.0, "NAME": "without_dropout", "STUDY": "ablation"} == second
    assert third["STUDY"] == "seeds" and third["BAR"] == second["BAR"] == 0, "none may be dropped"
    assert all(tmp_path in path.parents for path, _, _ in done)
    cells = [cell.id for cell in scope["recipe"](STEP).cells]
    assert cells[0] == "header" and cells[-1] == "rules" and "train" in cells


def test_a_variant_lacks_what_its_name_says_and_nothing_else():
    scope, networks = run("run", "variants", STEP=STEP), {}
    for name, (source, values, edits) in scope["VARIANTS"].items():
        notebook, before, after = scope["edited"](name)
        pairs = zip(scope["recipe"](source).cells, notebook.cells, strict=True)
        changed = [a.id for a, b in pairs if a.source != b.source]
        assert changed == ["model"] * bool(edits) and bool(edits) == (before != after)
        names = {"nn": nn, "DROPOUT": 0.01} | values
        exec(after, names)
        networks[name] = names["make_model"]()
    kinds = {name: {type(m) for m in network.modules()} for name, network in networks.items()}
    assert [n for n in kinds if nn.BatchNorm2d not in kinds[n]] == ["without_batch_norm"]
    assert [n for n in kinds if nn.AdaptiveAvgPool2d not in kinds[n]] == ["flatten_head"]
    rates = {m.p for m in networks["without_dropout"].modules() if isinstance(m, nn.Dropout)}
    counts = [utils.count_parameters(network) for network in networks.values()]
    assert rates == {0.0} and counts == [18_946, 19_066, 24_826, 19_066]
    assert networks["flatten_head"](torch.rand(2, 1, 28, 28)).shape == (2, 10)
    scope["VARIANTS"]["nothing"] = (STEP, {}, [("not in the cell", "")])
    with pytest.raises(ValueError, match="once in the network cell"):
        scope["edited"]("nothing")


@pytest.fixture(scope="module")
def shown() -> dict:
    """The notebook's names after all its cells, on the published records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "run_study", lambda *_: [])
        patch.setattr(records, "save_figure", lambda *_: None)
        return run("run", "seeds", *REST)


def test_dunnetts_interval_is_that_of_a_simulation(shown):
    """The largest of five t-like differences that share control and spread, drawn 200,000 times."""
    n, draw = np.array([5] * 5), np.random.default_rng(0)
    df = 30 + n.sum() - 6
    noise = draw.normal(size=(200_000, 5)) / n**0.5 - draw.normal(size=(200_000, 1)) / 30**0.5
    spread = (draw.chisquare(df, size=(200_000, 1)) / df) ** 0.5
    largest = np.abs(noise / (1 / n + 1 / 30) ** 0.5 / spread).max(axis=1)
    groups = shown["accuracy"].values()
    pooled = sum((len(g) - 1) * np.var(g, ddof=1) for g in groups) / df
    half = np.quantile(largest, 0.95) * (pooled * (1 / 5 + 1 / 30)) ** 0.5
    table = shown["ablation"].iloc[1:]
    assert (table["high"] - table["difference"]).values == pytest.approx(half, abs=0.001)
    scaled = abs(table["difference"]) / (pooled * (1 / 5 + 1 / 30)) ** 0.5
    assert [(largest > t).mean() for t in scaled] == pytest.approx(table["p"], abs=0.003)


@claim(NAME, "all 30 are at or above 99.4", "a mean of 99.60 and no run below 99.45. It is met")
@claim(NAME, "Leaving out dropout, or global average pooling, does not show an effect")
@claim(NAME, "Whether batch norm or augmentation costs more, five runs do not show", "only just")
def test_each_number_in_the_text_is_made_of_the_records(shown):
    last, row = shown["last"], records.summary(shown["last"])
    assert len(last) == 30 and min(last) >= 99.45 and row["low"] < 99.6 <= row["mean"] < row["high"]
    table, wrong, often = (shown[key] for key in ("ablation", "wrong", "often"))
    crossing = table.iloc[1:].query("low <= 0 <= high").index
    assert set(crossing) == {"without_dropout", "flatten_head"} and set(table["n"]) == {30, 5}
    groups = [shown["accuracy"][f"without_{name}"] for name in ("batch_norm", "augmentation")]
    assert records.difference(*groups)[1] < 0 < records.difference(*groups)[2]
    cost = {name: (-r["difference"], -r["high"], -r["low"]) for name, r in table.iterrows()}
    pairs = [2 * len(a & b) / len([*a, *b]) for a, b in itertools.combinations(wrong, 2)]
    doubtful, always = set(records.LABEL_ERRORS), set.intersection(*wrong)
    counted = mean(len(found & doubtful) for found in wrong)
    assert counted / mean(map(len, wrong)) > 0.2, "more than a fifth"
    assert [r["low"] < 0 < r["high"] for r in shown["rows"].values()] == [True, True]
    gain = records.summary([b - end for b, end in zip(shown["best"], last, strict=True)])
    trace, by_seed = shown["trace"], {r["seed"]: r["test_accuracy"] for r in shown["runs"]}
    for sentence in (
        f"mean of {row['mean']:.3f} % (95 % interval {row['low']:.3f} to {row['high']:.3f}), a",
        f"deviation of {stdev(last):.3f}, a minimum of {min(last)} and a maximum of {max(last)};",
        "the schedule is worth {:.3f} points".format(*cost["05_augmentation"]),
        "augmentation {:.3f}, batch norm".format(*cost["without_augmentation"]),
        "*constant rate* costs {:.3f} points ({:.3f} to {:.3f})".format(*cost["05_augmentation"]),
        "*no augmentation* {:.3f} ({:.3f} to {:.3f})".format(*cost["without_augmentation"]),
        "*no batch norm* {:.3f} ({:.3f} to {:.3f}".format(*cost["without_batch_norm"]),
        f"by {gain['mean']:.3f} points on average (95 % interval {gain['low']:.3f} to",
        f"the best run lies {max(last) - row['mean']:.3f} above the mean",
        f"{len(always)} of them, {len(always & doubtful)} with a doubtful label",
        f"defeat some: {len(often)} in all",
        f"mistake, {counted:.1f} of {100 * (100 - row['mean']):.0f}",
        f"{mean(pairs):.0%} of their mistakes".replace("%", " %"),
        f"between {100 * min(pairs):.0f} and {100 * max(pairs):.0f} % ({len(pairs)} pairs of 30 runs)",
        f"{trace['mean']:.3f} more of its mistakes",
        f"interval {trace['low']:.3f} to {trace['high']:.3f}, n = {trace['n']} seeds",
        f"ends at {records.load_records('steps', STEP)[0]['test_accuracy']} instead of {by_seed[0]}",
    ):
        assert sentence in prose(NAME), sentence
