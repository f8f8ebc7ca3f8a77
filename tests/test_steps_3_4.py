"""Steps 3 and 4: dropout and GAP by hand, the sweep, shifted images, and what the text claims."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import manage
import records
import utils
from claims import claim

STEP_3, STEP_4 = "03_dropout", "04_gap_fc"


def run(name: str, *keys: str, on: bool = False, **scope: object) -> dict:
    """The names that some cells of a notebook make; ``on`` sets REPEAT."""
    scope |= {"nn": nn, "torch": torch, "F": F, "pd": pd, "utils": utils, "records": records}
    for key in keys:
        source = manage.code_cells(name)[key]["source"]
        exec(source.replace("REPEAT = False", "REPEAT = True") if on else source, scope)
    return scope


def shown(name: str, key: str) -> dict[float, list[float]]:
    """The numbers in the rows of the table that a cell shows."""
    outputs = manage.code_cells(name)[key]["outputs"]
    text = next(o["data"]["text/plain"] for o in outputs if "text/html" in o.get("data", {}))
    lines = "".join(text).splitlines()[2:]
    rows = [[float(v) for v in line.split() if v[-1].isdigit()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def network(name: str) -> nn.Sequential:
    return run(name, "model", DROPOUT=0.01)["make_model"]().eval()


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.5])
def test_dropout_by_hand_is_pytorchs(p):
    x, by_hand = torch.rand(64, 3, 40, 40) + 0.1, run(STEP_3, "dropout-hand")["dropout"]
    torch.manual_seed(5)
    y = by_hand(x, p)
    torch.manual_seed(5)
    assert torch.allclose(y, F.dropout(x, p)) and abs((y == 0).float().mean() - p) < 0.005
    assert abs(y.mean() / x.mean() - 1) < 0.01  # the mean stays


def test_correlation_and_hooks_against_brute_force(digits):
    net, val = network(STEP_3), digits.loader("val")
    scope = run(STEP_3, "dropout-neighbours", trained=net, digits=next(iter(val))[0], data=digits)
    pair = torch.randn(2, 50, 1, 1, 1)
    assert abs(scope["correlation"](*pair) - torch.corrcoef(pair.flatten(1))[0, 1].abs()) < 1e-5
    whole, calls = utils.evaluate(net, val), []
    assert scope["accuracy_with"](lambda y, p: calls.append(p) or y, 0.3) == whole.accuracy
    assert set(calls) == {0.3} and len(calls) % 6 == 0  # after each of six blocks
    scope["accuracy_with"](lambda y, p: torch.zeros_like(y), 1.0)
    assert torch.equal(utils.evaluate(net, val).logits, whole.logits)  # hooks are gone


def test_the_sweep_can_be_repeated_and_does_not_start_itself(monkeypatch):
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    monkeypatch.setattr(records, "load_records", lambda study: [])
    monkeypatch.setattr(records, "run_notebook", lambda *given: runs.append(given))
    runs = []
    run(STEP_3, "dropout-repeat", STUDY="steps")
    run(STEP_3, "dropout-repeat", on=True, STUDY="dropout")
    assert not runs  # by itself, or in a copy
    run(STEP_3, "dropout-repeat", on=True, STUDY="steps")
    found = {(v["NAME"], v["DROPOUT"], v["SEED"], v["STUDY"]) for _, v, _ in runs}
    wanted = {(f"dropout_{n}", n / 100, s, "dropout") for n in (10, 25, 50) for s in (0, 1, 2)}
    assert found == wanted and {path.stem for path, _, _ in runs} == {STEP_3}


@claim(STEP_3, "from block 2 on two numbers side by side agree far more")
@claim(STEP_3, "the same share costs far more when it falls on whole maps")
def test_neighbours_agree_and_whole_maps_cost_more():
    near, kept = shown(STEP_3, "dropout-neighbours"), shown(STEP_3, "dropout-survival")
    assert all(near[block][0] > 1.5 * near[block][2] for block in range(2, 7))
    assert all(100 - kept[p][1] > 1.2 * (100 - kept[p][0]) for p in (0.1, 0.25, 0.5))


@claim(
    STEP_3,
    "the others are the study `dropout`, with two runs of each share so far.",
    "up to *p* = 0.25 the runs with and without dropout overlap",
    "with half of all numbers dropped the network misreads clearly more",
    "the training error grows with every share. So the gap to the validation error shrinks",
    "at *p* = 0.5 it is smaller than without dropout, and both errors are the highest.",
    "*p* = 0.01 does not show an effect, neither on the test accuracy nor on the gap.",
)
def test_the_sweep_says_what_the_text_says():
    all_runs = {0: records.load_records("seeds", "02_batch_norm")}
    all_runs[0.01] = records.load_records("seeds", STEP_3)
    all_runs |= {n / 100: records.load_records("dropout", f"dropout_{n}") for n in (10, 25, 50)}
    assert {len(all_runs[p]) for p in (0.1, 0.25, 0.5)} == {2}
    wrong, gap, train, val = {}, {}, {}, {}
    for p, runs in all_runs.items():
        assert {r["hyperparameters"].get("dropout", 0) for r in runs} == {p}
        wrong[p] = [len(r["test_errors"]) for r in runs]
        gap[p] = [r["clean_train_accuracy"] - r["history"]["val_accuracy"][-1] for r in runs]
        train[p] = 100 - sum(r["clean_train_accuracy"] for r in runs) / len(runs)
        val[p] = train[p] + sum(gap[p]) / len(runs)
    for p in (0.01, 0.1, 0.25):
        assert min(wrong[p]) <= max(wrong[0]) and max(wrong[p]) >= min(wrong[0])
    assert max(val, key=lambda p: val[p] - train[p]) == 0
    assert min(wrong[0.5]) > max(wrong[0]) and val[0.5] == max(val.values())
    assert list(train.values()) == sorted(train.values())
    for values in (wrong, gap):
        _, low, high = records.difference(values[0.01], values[0])
        assert low <= 0 <= high


@claim(STEP_3, "so the network still has 24,826.")
@claim(STEP_4, "falls from 24,826 parameters to 19,066", "Step 3 takes no other size")
def test_step_3_beside_step_4():
    scope = run(STEP_4, "model", "gap-cost", DROPOUT=0.01)
    flat, pooled = scope["make_step_3"]().eval(), scope["make_model"]().eval()
    counts = [utils.count_parameters(model) for model in (network(STEP_3), flat, pooled)]
    assert counts == [24_826, 24_826, 19_066]
    record = records.load_records("steps", STEP_3)
    both = [records.load_weights(net, *record) for net in (network(STEP_3), flat)]
    assert torch.equal(*(net(torch.ones(2, 1, 28, 28)) for net in both))
    maps = torch.rand(3, 24, 5, 5)
    moved = maps.flatten(2)[:, :, torch.randperm(25)].view_as(maps)
    assert torch.allclose(pooled[6:](maps), pooled[6:](moved), atol=1e-5)  # it forgets the place
    assert not torch.allclose(flat[6:](maps), flat[6:](moved), atol=1e-3)
    assert pooled(torch.rand(2, 1, 40, 40)).shape == (2, 10)
    with pytest.raises(RuntimeError):
        flat(torch.rand(2, 1, 32, 32))


def test_shifted_moves_each_image_by_so_many_pixels():
    source = manage.code_cells(STEP_4)["gap-shift"]["source"]
    exec(source.split("\n\n\n")[0], scope := dict(globals()))
    images = torch.randint(1, 255, (8, 28, 28), dtype=torch.uint8)
    moved = scope["shifted"](utils.Split(images, torch.arange(8)), 3).images
    for i, turns in enumerate((2, 0, 1, 3)):  # turned so that each went down
        still, part = (x[i::4].rot90(turns, (1, 2)) for x in (images, moved))
        assert torch.equal(part[:, 3:], still[:, :-3]) and not part[:, :3].any()


@claim(STEP_4, "Moved by four pixels step 4 reads 96 of 100 digits and step 3 reads 71")
@claim(STEP_4, "at five and six pixels the distance is above 40 points")
@claim(STEP_4, "at 32 x 32 pixels it reads almost as well. At 40 x 40 it does not")
def test_the_tables_say_what_the_text_says():
    rows = shown(STEP_4, "gap-shift-plot")
    assert [round(v) for v in rows[4][:2]] == [71, 96]
    assert rows[5][2] > 40 < rows[6][2] and all(rows[p][3] > 0 for p in range(3, 9))
    sizes = {size: row[-1] for size, row in shown(STEP_4, "gap-size").items()}
    assert sizes[28] - sizes[32] < 1 < 5 < sizes[28] - sizes[40]
