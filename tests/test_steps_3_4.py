"""Steps 3 and 4: dropout and GAP by hand, the sweep, shifted images, and what the text claims."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import manage
import records
import utils
from claims import claim

STEP_3, STEP_4 = "03_dropout", "04_gap_fc"


def run(name: str, *keys: str, scope: dict | None = None, edits: dict | None = None) -> dict:
    """The names that some cells of a notebook make, in ``scope``."""
    scope = {} if scope is None else scope
    for key in keys:
        source = manage.code_cells(name)[key]["source"]
        for old, new in (edits or {}).items():
            assert source.count(old) == 1, (key, old)
            source = source.replace(old, new)
        exec(source, scope)
    return scope


def shown(name: str, key: str) -> list[list[float]]:
    """The numbers of the table that a cell shows, row by row, the index first."""
    outputs = manage.code_cells(name)[key]["outputs"]
    text = next(o["data"]["text/plain"] for o in outputs if "text/html" in o.get("data", {}))
    rows = [line.split() for line in "".join(text).splitlines()]
    return [[float(v) for v in row] for row in rows if row[0].replace(".", "").isdigit()]


def network(name: str, dropout: float = 0.01) -> nn.Sequential:
    return run(name, "model", scope={"nn": nn, "DROPOUT": dropout})["make_model"]()


# --- Step 3 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.5])
def test_dropout_by_hand_is_pytorchs(p):
    by_hand = run(STEP_3, "dropout-hand")["dropout"]
    x, results = torch.rand(64, 3, 40, 40) + 0.1, []
    for function in (by_hand, nn.functional.dropout):
        torch.manual_seed(5)
        results.append(function(x, p))
    assert torch.allclose(*results)
    dropped = (results[0] == 0).float().mean().item()
    assert abs(dropped - p) < 0.005 and abs(results[0].mean() / x.mean() - 1) < 0.01
    assert torch.allclose(results[0][results[0] > 0], (x / (1 - p))[results[0] > 0])


def test_correlation_and_hooks_against_brute_force(digits):
    trained = network(STEP_3).eval()
    scope = {"torch": torch, "pd": pytest.importorskip("pandas"), "utils": utils, "data": digits}
    images = next(iter(digits.loader("val")))[0]
    scope = run(STEP_3, "dropout-neighbours", scope=scope | {"trained": trained, "digits": images})
    one, other = torch.randn(50, 1, 1, 1), torch.randn(50, 1, 1, 1)
    expected = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs().item()
    assert scope["correlation"](one, other) == pytest.approx(expected, abs=1e-5)
    assert scope["correlation"](one, -2 * one) == pytest.approx(1, abs=1e-5)
    whole, calls = utils.evaluate(trained, digits.loader("val")).accuracy, []
    assert scope["accuracy_with"](lambda y, p: calls.append(p) or y, 0.3) == whole
    assert set(calls) == {0.3} and len(calls) % 6 == 0  # after each of six blocks
    everything = scope["accuracy_with"](lambda y, p: torch.zeros_like(y), 1.0)
    assert everything < 30 and utils.evaluate(trained, digits.loader("val")).accuracy == whole


def test_the_sweep_can_be_repeated_and_does_not_start_itself(monkeypatch):
    runs = []
    monkeypatch.setattr(records, "load_records", lambda study: [])
    monkeypatch.setattr(records, "run_notebook", lambda *given: runs.append(given))
    run(STEP_3, "dropout-repeat", scope={"records": records, "STUDY": "steps"})
    on = {"REPEAT = False": "REPEAT = True"}
    run(STEP_3, "dropout-repeat", scope={"records": records, "STUDY": "dropout"}, edits=on)
    assert not runs  # by itself, or in a copy
    run(STEP_3, "dropout-repeat", scope={"records": records, "STUDY": "steps"}, edits=on)
    values = {(v["NAME"], v["DROPOUT"], v["SEED"], v["STUDY"]) for _, v, _ in runs}
    shares = ((10, 0.1), (25, 0.25), (50, 0.5))
    wanted = {(f"dropout_{n}", p, seed, "dropout") for n, p in shares for seed in (0, 1, 2)}
    assert values == wanted and {path.stem for path, _, _ in runs} == {STEP_3}


def sweep() -> dict[float, SimpleNamespace]:
    """Share -> misread digits, gap and training error of each run, from the records."""
    studies = {0: ("seeds", "02_batch_norm"), 0.01: ("seeds", STEP_3)}
    studies |= {n / 100: ("dropout", f"dropout_{n}") for n in (10, 25, 50)}
    found = {}
    for p, study in studies.items():
        runs = records.load_records(*study)
        assert {run["hyperparameters"].get("dropout", 0) for run in runs} == {p}
        train = [100 - run["clean_train_accuracy"] for run in runs]
        val = [100 - run["history"]["val_accuracy"][-1] for run in runs]
        gap = [v - t for t, v in zip(train, val, strict=True)]
        misread = [10_000 - run["test_correct"] for run in runs]
        found[p] = SimpleNamespace(misread=misread, gap=gap, train=train, val=val)
    return found
