"""Notebook 07: the five networks and recipes are those described, and its tables its records."""

import contextlib
import io
import re
import statistics

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torchvision.transforms.functional import InterpolationMode, rotate

import manage
import utils

NAME = "07_reference_networks"
CELLS = manage.code_cells(NAME)
FOLDER = utils.RESULTS / "references"
MODELS = ("model-r1", "model-r2", "model-r3", "r3-count", "model-r4", "model-r5", "model")
RECIPE = ("recipes", "optimizer", "warp", "augment")
NETWORKS = ("R1", "R2", "R3", "R4", "R5")
EPOCHS = {"R1": 20, "R2": 20, "R3": 18, "R4": 19, "R5": 12}
BATCH = {"R1": 64, "R2": 128, "R3": 128, "R4": 128, "R5": 64}
PARAMETERS = {"R1": 9_680, "R2": 18_962, "R3": 17_290, "R4": 13_816, "R5": 9_320}
networks = pytest.mark.parametrize("key", NETWORKS)


def run(*ids: str, **scope: object) -> tuple[dict, str]:
    """Execute cells of the notebook by their id, after its imports; return names and output."""
    defaults = {"SEEDS": 3, "OUR_SEEDS": 1, "NETWORKS": NETWORKS, "ONLY": None, "DROPOUT": 0.01}
    scope = defaults | {"STUDY": "references", "device": torch.device("cpu")} | scope
    exec(CELLS["imports"].source.split("utils.use_style()")[0], scope)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for key in ids:
            exec(CELLS[key].source, scope)
    return scope, printed.getvalue()


SCOPE = run(*MODELS, "overview", *RECIPE)[0]
BUILD, RECIPES = SCOPE["BUILD"], SCOPE["RECIPES"]


# --- The networks ---------------------------------------------------------------------------------

# Convolutions and linear layers: inputs, outputs, kernel, padding, bias; "P" halves the size.
DESCRIPTION = {
    "R1": "1-16-3-0-no 16-16-3-0-no P" + 3 * " 16-16-3-0-no" + " 16-10-1-0-no",
    "R2": "1-8-3-1-yes 8-8-3-1-yes P 8-16-3-1-yes 16-16-3-1-yes P 16-32-3-1-yes 32-32-3-1-yes "
    "32-16-1-0-yes 16-10-1-0-yes",
    "R3": "1-14-3-0-yes 14-16-3-0-yes P 16-32-3-0-yes 32-16-3-0-yes 16-14-3-0-yes 14-10-5-0-yes "
    "10-10-1-0-yes",
    "R4": "1-8-3-1-no 8-16-3-1-no 16-24-3-0-no 24-8-1-0-no P 8-16-3-0-no 16-24-3-0-no "
    "24-8-1-0-no 8-16-3-0-no 16-16-3-0-no 16-16-1-0-no 16-10-1-0-no",
    "R5": "1-12-3-0-no 12-12-3-0-no P 12-16-3-0-no 16-18-3-0-no 18-20-3-0-no 20-10-1-0-no",
}
# What follows a convolution (C), in order: ReLU (R), batch norm (B), dropout (D).
ORDER = {
    "R1": "CRBD CRBD CRBD CRBD CRBD C",
    "R2": "CRB CRBD CRB CRBD CRB CRBD C C",
    "R3": "CBRD CBRD CBRD CBRD CBRD CBRD C",
    "R4": "CRBD CRBD CRBD CR CRBD CRBD CR CRBD CRBD CRBD C",
    "R5": "CBRD CBRD CBRD CBRD CBRD C",
}
DROPOUT = {"R1": {0.05}, "R2": {0.1}, "R3": {0.1}, "R4": {0.1}, "R5": {0.01}}


def leaves(key: str) -> list[nn.Module]:
    return [layer for layer in BUILD[key]().modules() if not list(layer.children())]


def word(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Conv2d):
        kernel, padding = layer.kernel_size[0], layer.padding[0]
        sizes = (layer.in_channels, layer.out_channels, kernel, padding)
    elif isinstance(layer, nn.Linear):
        sizes = (layer.in_features, layer.out_features, 1, 0)
    else:
        return "P" if isinstance(layer, nn.MaxPool2d) else None
    return "-".join(map(str, sizes)) + ("-no" if layer.bias is None else "-yes")


@networks
def test_the_layers_are_those_described(key):
    assert " ".join(filter(None, map(word, leaves(key)))) == DESCRIPTION[key]
    letters = ""
    for layer in leaves(key):
        kinds = {"C": (nn.Conv2d, nn.Linear), "R": nn.ReLU, "B": nn.BatchNorm2d}
        kinds["D"] = (nn.Dropout, nn.Dropout2d)
        letters += "".join(letter for letter, kind in kinds.items() if isinstance(layer, kind))
    assert letters.replace("C", " C").split() == ORDER[key].split()
    dropouts = [m for m in leaves(key) if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert {m.p for m in dropouts} == DROPOUT[key]
    assert {type(m) for m in dropouts} == {nn.Dropout2d if key == "R4" else nn.Dropout}


@networks
def test_parameters_are_exact_and_all_are_used(key):
    model = BUILD[key]()
    assert utils.count_parameters(model) == PARAMETERS[key]
    assert sum(layer.parameters for layer in utils.layer_table(model)) == PARAMETERS[key]
    F.cross_entropy(model(torch.rand(8, 1, 28, 28)), torch.arange(8)).backward()
    assert all(p.grad is not None for p in model.parameters())


@networks
def test_gap_reads_the_whole_last_map_and_an_fc_layer_follows(key):
    layers = leaves(key)
    rows = utils.layer_table(BUILD[key]())
    pools = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    (gap,) = [i for i, layer in enumerate(layers) if isinstance(layer, pools)]
    assert rows[gap].output[1:] == (1, 1) and rows[gap - 1].output[1] > 1
    assert rows[-1].output == (10,) and sum(row.macs for row in rows[gap:]) > 0


def test_the_unused_layer_is_owned_but_neither_passed_nor_trained():
    torch.manual_seed(0)
    declared = SCOPE["R3"]()
    torch.manual_seed(0)
    used = SCOPE["make_r3"]()
    assert utils.count_parameters(declared) - utils.count_parameters(used) == 130 == 12 * 10 + 10
    x = torch.rand(4, 1, 28, 28)
    assert torch.equal(declared.eval()(x), used.eval()(x))
    declared(x).sum().backward()
    assert {n for n, p in declared.named_parameters() if p.grad is None} == {
        "spare.weight",
        "spare.bias",
    }


def test_the_network_beside_them_is_that_of_step_6():
    assert CELLS["model"].source == manage.code_cells("06_lr_schedule")["model"].source


def test_the_diagram_draws_what_the_networks_compute():
    outline = run("outline", **{"BUILD": BUILD})[0]["outline"]
    for key, build in BUILD.items():
        boxes = outline(build())
        assert boxes[0] == ("input", 1, 28, 1) and boxes[-1][:3] == ("FC", 10, 1)
        assert len(boxes) == 2 + len(DESCRIPTION[key].split()), key  # input and GAP are no words
        assert [box[0] for box in boxes].count("pool") == DESCRIPTION[key].count("P")
        assert [box[0] for box in boxes].count("GAP") == 1
    assert [f"{c} of {s}" for _, c, s, _ in outline(BUILD["R4"]())][:6] == [
        "1 of 28", "8 of 28", "16 of 28", "24 of 26", "8 of 26", "8 of 13",
    ]  # fmt: skip


# --- The recipes ----------------------------------------------------------------------------------


def planned_rates(key: str, steps: int = 100) -> list[float]:
    """The rate of every batch, by the notebook's own optimizer and schedule."""
    recipe = RECIPES[key]
    optimizer = SCOPE["make_optimizer"](nn.Linear(1, 1), recipe)
    scheduler = SCOPE["make_scheduler"](optimizer, recipe, recipe["epochs"], steps)
    rates = []
    for _ in range(recipe["epochs"] * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    return rates


@networks
def test_epochs_batch_and_optimizer_are_as_published(key):
    recipe = RECIPES[key]
    assert (recipe["epochs"], recipe["batch_size"]) == (EPOCHS[key], BATCH[key])
    options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    assert {name: recipe[name] for name in options} == options
    groups = SCOPE["make_optimizer"](BUILD[key](), recipe).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == PARAMETERS[key]
    assert {group["momentum"] for group in groups} == {0.9}


@pytest.mark.parametrize(("key", "rate"), [("R1", 0.03), ("R3", 0.01)])
def test_constant_rates(key, rate):
    assert set(planned_rates(key)) == {rate}


@pytest.mark.parametrize(("key", "after"), [("R2", 15), ("R5", 8)])
def test_rates_that_drop_by_ten(key, after):
    rates = planned_rates(key)
    assert set(rates[: after * 100]) == {0.01}
    assert rates[after * 100 :] == pytest.approx([0.001] * (EPOCHS[key] - after) * 100)


def test_one_cycle_of_r4():
    rates = planned_rates("R4")
    assert max(rates) == pytest.approx(0.015)
    assert rates[0] == pytest.approx(0.015 / 25)
    assert rates.index(max(rates)) == pytest.approx(0.3 * len(rates), abs=2)
    assert rates[-1] < 1e-6
    assert len(set(rates[:100])) == 100, "stepped per batch, not per epoch"


def test_our_recipe_is_that_of_step_6(digits):
    """Its schedule, optimizer and hyperparameters, from step 6's own cells."""
    six = manage.code_cells("06_lr_schedule")
    scope = {"torch": torch, "EPOCHS": 19, "PEAK_LR": 0.1, "DROPOUT": 0.01, "AUGMENT": 1.0}
    scope["data"] = digits
    for key in ("random-affine", "hyperparameters", "optimizer", "schedule"):
        exec(six[key].source, scope)
    theirs, ours = scope["hyperparameters"], RECIPES["ours"]
    assert ours["epochs"] == scope["EPOCHS"]
    for name in ("batch_size", "learning_rate", "momentum", "weight_decay"):
        assert ours[name] == theirs[name], name
    optimizer = scope["make_optimizer"](BUILD["R1"]())
    scheduler, rates = scope["make_scheduler"](optimizer), []
    for _ in range(scheduler.total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == planned_rates("ours", scheduler.total_steps // 19)
    mine = SCOPE["make_optimizer"](BUILD["R1"](), ours)
    step_6 = scope["make_optimizer"](BUILD["R1"]())
    for a, b in zip(mine.param_groups, step_6.param_groups, strict=True):
        assert [p.shape for p in a["params"]] == [p.shape for p in b["params"]]
        assert (a["weight_decay"], a["nesterov"]) == (b["weight_decay"], b["nesterov"])
    x = pictures(16)
    expected = scope["random_affine"](x, torch.Generator().manual_seed(3))
    found = SCOPE["make_augment"](ours)(x, torch.Generator().manual_seed(3))
    assert torch.equal(found, expected), "not the augmentation of steps 5 and 6"


def test_step_6_was_published_with_our_recipe():
    record = utils.load_record(utils.RESULTS / "steps" / "06_lr_schedule-seed0.json")
    ours = RECIPES["ours"]
    assert record["epochs"] == ours["epochs"]
    for name in ("batch_size", "learning_rate", "momentum", "weight_decay"):
        assert record["hyperparameters"][name] == ours[name]


# --- The augmentation -----------------------------------------------------------------------------

warp, crop_some, make_augment = (SCOPE[key] for key in ("warp", "crop_some", "make_augment"))


def pictures(images: int) -> torch.Tensor:
    return torch.rand(images, 1, 28, 28, generator=torch.Generator().manual_seed(images))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ranges_are_as_published():
    found = {key: RECIPES[key]["augment"] for key in NETWORKS}
    assert found["R1"] is found["R3"] is None
    assert found["R2"] == {"crop": 0.1, "degrees": 15} and found["R4"] == {"degrees": 7}
    assert {"degrees", "shift", "zoom", "shear"} == set(found["R5"])  # rotation and affine
    assert make_augment(RECIPES["R1"]) is None


@given(images=st.integers(1, 20), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_zero_strength_is_the_identity(images, seed):
    x = pictures(images)
    assert torch.allclose(warp(x, seeded(seed)), x, atol=1e-5)
    assert torch.equal(crop_some(x, seeded(seed), 0.0), x)


@given(key=st.sampled_from(("R2", "R4", "R5")), images=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_augmented_images_keep_shape_and_range_and_repeat(key, images, seed):
    x = pictures(images).requires_grad_()
    augment = make_augment(RECIPES[key])
    first = augment(x, seeded(seed))
    assert first.shape == x.shape and first.dtype == x.dtype and not first.requires_grad
    assert first.min() >= 0 and first.max() <= 1 + 1e-5
    assert torch.equal(first, augment(x, seeded(seed)))


@pytest.mark.parametrize(("key", "degrees"), [("R2", 15), ("R4", 7)])
def test_a_rotation_is_torchvisions_and_stays_in_its_range(key, degrees):
    """Each image, turned back by the angle drawn for it, equals torchvision's rotation."""
    x = torch.zeros(40, 1, 28, 28)
    x[:, :, 6:22, 12:16] = 1
    found = warp(x, seeded(1), degrees=degrees)
    angles = degrees * (2 * torch.rand(5, 40, generator=seeded(1)) - 1)[0]
    assert 0.8 * degrees < angles.abs().max() <= degrees
    for image, turned, angle in zip(x, found, angles.tolist(), strict=True):
        expected = rotate(image, angle, InterpolationMode.BILINEAR)
        assert torch.allclose(turned, expected, atol=2e-3)


def test_a_crop_enlarges_the_middle_of_one_image_in_ten():
    x = pictures(4_000)
    found = crop_some(x, seeded(), 0.1)
    changed = (found != x).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.1, abs=0.02)
    middle = F.interpolate(x[:, :, 3:-3, 3:-3], size=28, mode="bilinear")
    assert torch.equal(found[changed], middle[changed])
    assert torch.equal(crop_some(x, seeded(), 1.0), middle)


# --- The runs -------------------------------------------------------------------------------------


def test_as_published_nothing_is_held_out_and_the_test_set_validates(digits):
    scope, printed = run("data")
    theirs, ours = scope["their_data"], scope["data"]
    assert len(theirs.train.labels) == len(ours.train.labels) + len(ours.val.labels) == 1_437
    assert theirs.val is theirs.test is ours.test
    pixels = {image.numpy().tobytes() for image in theirs.train.images}
    assert pixels == {x.numpy().tobytes() for x in (*ours.train.images, *ours.val.images)}
    assert "(the same images)" in printed.splitlines()[-1]


def test_the_study_is_what_the_parameters_say():
    names = run("plan")[0]["planned"]()
    assert len(names) == len(set(names)) == 20
    assert names[:5] == [(f"{key}_as_published", 0) for key in NETWORKS]
    assert names[-5:] == [(f"{key}_our_recipe", 0) for key in NETWORKS]
    fewer = run("plan", NETWORKS=("R4",), SEEDS=2)[0]["planned"]()
    assert fewer == [("R4_as_published", 0), ("R4_as_published", 1), ("R4_our_recipe", 0)]


def test_only_picks_single_runs():
    planned = run("plan")[0]["planned"]
    assert planned("R1_as_published-0") == [("R1_as_published", 0)]
    found = planned("R2_our_recipe-12, R5_as_published-1")
    assert found == [("R2_our_recipe", 12), ("R5_as_published", 1)]
    for wrong in ("R6_as_published-0", "R1-0", "R1_as_published", "R1_as_published-0,,"):
        with pytest.raises(ValueError, match="is not a run"):
            planned(wrong)


def test_an_interrupted_study_goes_on_where_it_stopped(monkeypatch):
    """What has a record is not trained again; the record of a smoke test is none."""
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    trained, saved = [], []
    stored = [{"name": f"{key}_as_published", "seed": 0} for key in NETWORKS]
    stored = [record | {"smoke_test": record["name"][:2] == "R5"} for record in stored]

    class Utils:
        HERE, is_smoke_test = utils.HERE, staticmethod(utils.is_smoke_test)
        load_records = staticmethod(lambda *_: stored)
        save_record = staticmethod(lambda record: saved.append(record) or utils.HERE / "x.json")

    scope, _ = run("plan", SEEDS=1, OUR_SEEDS=0)
    scope["utils"], scope["data"] = Utils, utils.Data(*[None] * 3, "MNIST", 0, 1)
    scope["train"] = lambda *run: trained.append(run) or {"smoke_test": False}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(CELLS["run"].source, scope)
    assert trained == [("R5_as_published", 0)] and len(saved) == 1
    assert "4 of 5 runs have a record; to run now: 1" in printed.getvalue()


@pytest.mark.parametrize("kind", ["as_published", "our_recipe"])
def test_a_run_leaves_a_record_that_repeats(digits, kind):
    scope = run("data", "train", BUILD=BUILD, RECIPES=RECIPES)[0] | {
        key: SCOPE[key] for key in ("make_optimizer", "make_scheduler", "make_augment")
    }
    scope["RECIPES"] = {key: recipe | {"epochs": 2} for key, recipe in RECIPES.items()}
    exec(CELLS["train"].source, scope)
    first, again = (scope["train"](f"R2_{kind}", 5) for _ in range(2))
    assert first["history"]["train_loss"] == again["history"]["train_loss"]
    assert (first["name"], first["seed"], first["parameters"]) == (f"R2_{kind}", 5, 18_962)
    if kind == "as_published":
        assert (first["train_images"], first["val_images"]) == (1_437, 360)
        assert len(first["history"]["test_accuracy"]) == 2
        assert first["history"]["test_accuracy"][-1] == first["test_accuracy"]
    else:
        assert (first["train_images"], first["val_images"]) == (1_294, 143)
        assert "test_accuracy" not in first["history"]
    assert "scratch" in utils.record_path(first).parts  # not MNIST: never published


# --- The records and what the notebook prints of them ---------------------------------------------

RECORDS = [utils.load_record(path) for path in sorted(FOLDER.glob("*.json"))]
each_record = pytest.mark.parametrize(
    "record", RECORDS, ids=[f"{r['name']}-{r['seed']}" for r in RECORDS]
)


@each_record
def test_a_record_keeps_its_protocol(record):
    key, kind = record["name"].split("_", 1)
    assert key in NETWORKS and kind in ("as_published", "our_recipe")
    assert (record["dataset"], record["smoke_test"]) == ("MNIST", False)
    assert record["parameters"] == PARAMETERS[key]
    recipe = RECIPES[key if kind == "as_published" else "ours"]
    assert record["hyperparameters"] == recipe
    assert (record["epochs"], record["batch_size"]) == (recipe["epochs"], recipe["batch_size"])
    images = tuple(record[f"{part}_images"] for part in ("train", "val", "test"))
    history = record["history"]
    assert all(len(values) == record["epochs"] for values in history.values())
    assert record["test_accuracy"] == pytest.approx(record["test_correct"] / 100)
    assert len(record["test_errors"]) == 10_000 - record["test_correct"]
    if kind == "as_published":
        assert images == (60_000, 10_000, 10_000)
        assert record["epochs"] == EPOCHS[key]
        assert history["test_accuracy"] == history["val_accuracy"]
        assert history["test_accuracy"][-1] == record["test_accuracy"]
    else:
        assert images == (55_000, 5_000, 10_000)
        assert "test_accuracy" not in history


def printed(cell: str) -> str:
    """What the committed notebook shows under a cell; skips if it was not executed yet."""
    text = "".join(output.get("text", "") for output in CELLS[cell].outputs)
    if not RECORDS or not text:
        pytest.skip("no runs yet" if not RECORDS else f"{NAME} is not executed yet")
    return text


def rows(cell: str) -> dict[str, str]:
    """Its rows by the network that they begin with."""
    return {line[:6].strip(" *"): line for line in printed(cell).splitlines()}


def runs(key: str, kind: str) -> list[dict]:
    return [record for record in RECORDS if record["name"] == f"{key}_{kind}"]


def spread(values: list[float]) -> str:
    std = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{std}"


def best(record: dict) -> float:
    return max(record["history"]["test_accuracy"])


def step_6() -> list[dict]:
    return utils.load_records("seeds")


@networks
def test_the_first_table_is_the_records(key):
    found = runs(key, "as_published")
    line = rows("table")[key]
    if not found:
        assert "no record yet" in line
        return
    bests, lasts = [best(r) for r in found], [r["test_accuracy"] for r in found]
    pattern = rf"{PARAMETERS[key]:,} .* {len(found)}  {spread(bests)} +{spread(lasts)} "
    assert re.search(pattern, line), (pattern, line)
    seconds = [value for record in found for value in record["history"]["seconds"]]
    assert line.split()[-1] == f"{statistics.median(seconds):.1f}"


@networks
def test_the_verdict_is_the_records(key):
    found = runs(key, "as_published")
    line, theirs = rows("verdict")[key], run("published")[0]["PUBLISHED"][key]["best"]
    n = len(found)
    counts = [sum(best(r) >= 99.4 for r in found), sum(r["test_accuracy"] >= 99.4 for r in found)]
    counts.append(sum(best(r) >= theirs for r in found))
    assert re.findall(r"\d+ of \d+", line) == [f"{count} of {n}" for count in counts]
    bests, inside = [best(r) for r in found], False
    if n > 1:  # a new draw from the same normal distribution: its distance is t distributed
        distance = abs(theirs - statistics.mean(bests)) / statistics.stdev(bests)
        p_value = 2 * stats.t.sf(distance / (1 + 1 / n) ** 0.5, n - 1)
        inside = p_value >= 0.05
    none = "luck would explain it" if inside else "not reproduced"
    expected = "reached by some" if 0 < counts[0] < n else none
    expected = "reproduced" if counts[0] == n else expected
    assert line.endswith("  " + ("no record yet" if n == 0 else expected))


@pytest.mark.parametrize("key", [*NETWORKS, "step 6"])
def test_the_gains_are_the_records(key):
    found = step_6() if key == "step 6" else runs(key, "as_published")
    line = rows("luck")[key]
    gains = [best(r) - r["test_accuracy"] for r in found]
    expected = f"{statistics.mean(gains):.3f}  {max(gains):.2f}" if gains else "no record yet"
    assert f" {len(found)}  {expected} " in line


@networks
def test_the_last_table_is_the_records(key):
    line, means = rows("ours")[key], []
    for kind in ("as_published", "our_recipe"):
        values = [record["test_accuracy"] for record in runs(key, kind)]
        means += [statistics.mean(values)] if values else []
        expected = spread(values) if values else "no record yet"
        assert f" {len(values)}  {expected} " in line
    if len(means) == 2:
        assert line.endswith(f"  {means[1] - means[0]:+.3f}")


def test_step_6_stands_in_the_last_table():
    values = [record["test_accuracy"] for record in step_6()]
    assert f" {len(values)}  {spread(values)}" in rows("ours")["step 6"]
    pairs = [
        [statistics.mean(r["test_accuracy"] for r in runs(key, kind)) for key in NETWORKS]
        for kind in ("as_published", "our_recipe")
        if all(runs(key, kind) for key in NETWORKS)
    ]
    if len(pairs) == 2:
        theirs, ours = pairs
        text = printed("ours")
        assert f"by {statistics.mean(ours) - statistics.mean(theirs):+.3f} on average" in text
        apart = [f"{max(values) - min(values):.3f}" for values in (theirs, ours)]
        assert f"their recipes {apart[0]}, ours {apart[1]}" in text


def test_published_figures_are_those_of_the_task():
    published = run("published")[0]["PUBLISHED"]
    assert [list(published[key].values()) for key in NETWORKS] == [
        [99.42, 99.29, 25],
        [99.45, 99.45, 25],
        [99.43, 99.32, 17],
        [99.45, 99.40, 112],
        [99.43, 99.41, 42],
    ]


def test_the_text_about_our_recipe_says_what_the_records_say():
    theirs = {key: [r["test_accuracy"] for r in runs(key, "as_published")] for key in NETWORKS}
    ours = {key: [r["test_accuracy"] for r in runs(key, "our_recipe")] for key in NETWORKS}
    if not all(map(len, [*theirs.values(), *ours.values()])):
        pytest.skip("the study is not complete")
    theirs = {key: statistics.mean(values) for key, values in theirs.items()}
    ours = {key: statistics.mean(values) for key, values in ours.items()}
    gains = {key: ours[key] - theirs[key] for key in NETWORKS}
    assert min(gains.values()) > 0 and sorted(gains, key=gains.get)[-2:] == ["R5", "R1"]

    def width(accuracies: dict) -> float:
        return max(accuracies.values()) - min(accuracies.values())

    without = {key: value for key, value in theirs.items() if key != "R1"}
    assert width(theirs) > 3 * width(ours) and width(without) < 2 * width(ours)
    above = [record["test_accuracy"] > max(ours.values()) for record in step_6()]
    assert len(above) == 30 and sum(above) >= 27, "hardly one is as low"


def test_the_text_about_seconds_says_what_the_records_say():
    def seconds(key: str, kind: str) -> float:
        return statistics.median(s for r in runs(key, kind) for s in r["history"]["seconds"])

    if not all(runs(key, kind) for key in NETWORKS for kind in ("as_published", "our_recipe")):
        pytest.skip("the study is not complete")
    assert 0.9 < seconds("R3", "as_published") / seconds("R4", "as_published") < 1.1
    macs = {key: float(rows("table")[key].split()[2]) for key in NETWORKS}  # millions
    assert 0.45 < macs["R3"] / macs["R4"] < 0.6 and min(macs, key=macs.get) == "R5"
    assert seconds("R5", "our_recipe") > seconds("R2", "our_recipe")
