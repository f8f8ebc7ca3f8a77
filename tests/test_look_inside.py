"""Notebooks 13 to 15: evidence, calibration, damage and preparation against brute force; claims."""

import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage, stats
from torch import nn

import manage
import records
import utils
from claims import claim

INSIDE, BELIEVED, OWN = "13_look_inside", "14_can_it_be_believed", "15_your_own_digit"
EXAMPLE = records.NOTEBOOKS / "my_digit.png"
DATA = SimpleNamespace(normalize=lambda pixels: (pixels - 0.1307) / 0.3081)  # as on MNIST
NORM = {"degrees": 0.0, "zoom": 1.0, "pixels": 0.0}


def run(name: str, *ids: str, **scope: object) -> dict:
    """The names that some cells of a notebook make, after its imports."""
    imports = manage.code_cells(name).get("imports")["source"].split("parameters.check(")[0]
    scope = {"SEED": 0, "device": torch.device("cpu"), "data": DATA, "Path": Path} | scope
    for source in (imports, *(manage.code_cells(name)[key]["source"] for key in ids)):
        exec(source, scope)
    return scope


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    record = records.load_record(records.RESULTS / "steps" / "06_lr_schedule-seed0.json")
    network = run("06_lr_schedule", "model", DROPOUT=0.0)["model"]
    return records.load_weights(network, record).eval()


# --- 13: what it sees -----------------------------------------------------------------------------


def test_a_filters_shares_are_its_least_squares_fit():
    shares = run(INSIDE, "filters", model=[[nn.Conv2d(1, 16, 3)]])["shares"]
    filters, (rows, columns) = torch.randn(20, 3, 3), np.indices((3, 3)).reshape(2, 9)
    design = np.stack([np.ones(9), rows, columns], axis=1)
    for one, found in zip(filters.double().numpy().reshape(20, 9), shares(filters), strict=True):
        ink, detail = 9 * one.mean() ** 2, np.linalg.lstsq(design, one, rcond=None)[1][0]
        expected = np.array([ink, (one**2).sum() - ink - detail, detail]) / (one**2).sum()
        assert np.allclose(found, expected, atol=1e-5)


def test_the_votes_of_the_class_maps_sum_to_the_logits(model):
    some = torch.randn(50, 1, 28, 28)
    blocks = [layer for layer in model if isinstance(layer, nn.Sequential)]
    maps = run(INSIDE, "field", "cam", model=model, blocks=blocks, some=some)["class_maps"](some)
    assert maps.shape == (50, 10, 5, 5) and maps.flatten(2).std(dim=2).min() > 0.01
    assert torch.allclose(maps.mean(dim=(2, 3)) + model[-1].bias, model(some), atol=1e-3)
    with pytest.raises(AssertionError):  # the cell itself notices what is not exact
        other = nn.Sequential(*model[:-1], nn.Tanh(), model[-1])
        run(INSIDE, "field", "cam", model=other, blocks=blocks, some=some)


# --- 14: can it be believed -----------------------------------------------------------------------


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    generator = np.random.default_rng(0)
    sure, right = np.append(generator.uniform(0.1, 1, 999), 1.0), generator.random((3, 1_000)) < 0.8
    error = run(BELIEVED, "ece")["calibration_error"]
    for one, ece in zip(right, error(torch.tensor(sure), torch.tensor(1.0 * right)), strict=True):
        bins = [np.minimum((10 * sure).astype(int), 9) == k for k in range(1, 10)]
        gaps = [b.sum() * abs(one[b].mean() - sure[b].mean()) for b in bins]
        assert ece.item() == pytest.approx(100 * sum(gaps) / 1_000)


def test_luck_is_that_of_a_binomial():
    drawn = run(BELIEVED, "ece")["luck"](torch.full((200,), 0.9, dtype=torch.double), 20_000)
    hits = np.arange(201)
    for limit in (0.3, 1.3, 2.8, 4.3):  # % away from 90 %
        share = stats.binom(200, 0.9).pmf(hits)[np.abs(hits / 2 - 90) >= limit].sum()
        assert (drawn >= limit).double().mean().item() == pytest.approx(share, abs=0.012)


def test_the_temperature_minimises_and_its_interval_covers():
    generator, inside = torch.Generator().manual_seed(0), 0
    fit_temperature = run(BELIEVED, "temperature")["fit_temperature"]
    for _ in range(10):
        true = 2 * torch.randn(2_000, 10, generator=generator)
        labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
        result = utils.Evaluation(0.0, 0.0, 0, 3 * true, labels)
        best, low, high = fit_temperature(result)
        loss = [F.cross_entropy(3 * true / t, labels) for t in (0.99 * best, best, 1.01 * best)]
        assert loss[1] < min(loss[0], loss[2])
        inside += low <= 3 <= high < 1.3 * low
    assert inside >= 8  # 9.5 on average


@pytest.mark.parametrize("setting", [{"degrees": 35}, {"zoom": 0.6}, {"zoom": 1.5}, {"pixels": 4}])
def test_a_warp_is_what_scipy_computes(setting):
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    found, wanted = run(BELIEVED, "warp")["warp"](images, **setting), NORM | setting
    ways = 2 * math.pi * torch.rand(6, generator=torch.Generator().manual_seed(0))
    for image, way, warped in zip(images, ways.tolist(), found, strict=True):
        angle = math.radians(wanted["degrees"]) * np.sign(math.cos(way))
        matrix = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        matrix = np.array(matrix) / wanted["zoom"]  # row, column; turned about the middle
        shift = wanted["pixels"] * np.array([math.sin(way), math.cos(way)])
        offset = 15.5 - matrix @ [15.5, 15.5] + shift
        rim = np.pad(image[0], 2)  # of zeros: into which the border fades
        expected = ndimage.affine_transform(rim, matrix, offset, order=1)[2:-2, 2:-2]
        assert np.abs(expected - warped[0].numpy()).max() < 1e-3


def test_undamaged_levels_leave_the_image_alone_and_ranges_are_the_augmentations():
    scope = run(BELIEVED, "warp", "damages")
    x = torch.rand(4, 1, 28, 28)
    for name, (damage, levels) in scope["DAMAGES"].items():
        harmless = 1 if "factor" in name else 0
        assert harmless in levels and torch.allclose(damage(x, harmless), x, atol=1e-4), name
        assert all(torch.isfinite(damage(x, level)).all() for level in levels), name
    assert list(scope["TRAINED"].values()) == [(0, 12), (0, 2), (0.88, 1.12)]  # see test_steps_5_6


def test_what_half_of_the_runs_misread_bounds_a_vote(monkeypatch):
    readings = np.random.default_rng(0).choice(10, (10, 400), p=[0.4] + [0.6 / 9] * 9)  # label: 0
    runs = [{"test_errors": np.flatnonzero(one).tolist()} for one in readings]
    monkeypatch.setattr("records.load_records", lambda *_: runs)
    table, wrong = run(BELIEVED, "nobody")["table"], (readings != 0).sum(axis=0)
    vote = sum(np.bincount(column).argmax() != 0 for column in readings.T)
    assert vote <= table["misread by half of the runs or more"] == (wrong >= 5).sum()
    assert table["misread by all runs"] == (wrong == 10).sum()


# --- 15: your own digit ---------------------------------------------------------------------------

own = run(OWN, "to-mnist", "open", "shrink", "ink", "prepare")
prepare, to_mnist = own["prepare"], own["to_mnist"]
FIVE = Image.open(EXAMPLE).convert("L")  # a drawn 5, 420 x 320, its paper darker to one corner


def prepared(content: Image.Image | bytes, folder: Path, name="digit.png", **how: object) -> dict:
    """The stages of a picture, or of any bytes, written to a file."""
    path = folder / name
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path, **how)
    return prepare(path)


def check(image: torch.Tensor, model: nn.Module) -> None:
    """As in MNIST: the digit 20 long, its centre of mass on pixel (14, 14); read as a 5."""
    mass = image.double().numpy()
    assert image.shape == (28, 28) and image.dtype == torch.uint8 and mass.max() == 255
    assert max(np.ptp(np.flatnonzero(mass.any(axis=axis))) + 1 for axis in (0, 1)) == 20
    assert np.abs(np.array(ndimage.center_of_mass(mass)) - 14).max() <= 0.51
    assert model(DATA.normalize(image[None, None].float() / 255)).argmax() == 5


MASK, EXIF = FIVE.point(lambda v: 255 if v < 110 else 0), Image.Exif()
EXIF[0x0112] = 6  # to be shown turned by 90 degrees clockwise
GOOD = {  # what: picture, name and further arguments of save
    "example": [FIVE], "light": [ImageOps.invert(FIVE)], "gif": [FIVE, "digit.gif"],
    "bold": [FIVE.filter(ImageFilter.MinFilter(11))], "bmp": [FIVE, "digit.bmp"],
    "pale": [FIVE.point(lambda v: 110 + v * 90 // 235)], "large": [FIVE.resize((2_100, 1_600))],
    "small": [FIVE.crop((185, 40, 395, 250)).resize((40, 40))],
    "wide": [FIVE.crop((0, 50, 420, 240)), "digit.webp"],
    "16 bits": [Image.fromarray(np.asarray(FIVE).astype(np.uint16) * 257)],
    "CMYK": [FIVE.convert("CMYK"), "digit.jpg"],
    "sideways": [FIVE.transpose(Image.Transpose.ROTATE_90), "photo.jpg", {"exif": EXIF}],
}  # fmt: skip
GOOD |= {
    mode: [ImageOps.invert(MASK).convert(mode)] for mode in ("1", "L", "P", "RGB", "RGBA", "LA")
}
for stroke, beneath in ((0, 0), (0, 255), (255, 0), (255, 255)):
    colors = [Image.eval(MASK, lambda v, s=stroke, b=beneath: s if v else b)] * 3
    GOOD[f"{stroke} on transparent {beneath}"] = [Image.merge("RGBA", (*colors, MASK))]


@pytest.mark.parametrize("what", GOOD)
def test_pictures_of_all_kinds_are_read(what, model, tmp_path):
    content, *names, how = [*GOOD[what], {}] if len(GOOD[what]) < 3 else GOOD[what]
    stages = prepared(content, tmp_path, *names, **how)
    check(stages["as in MNIST"], model)
    assert stages["note"] == ""


@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 90), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_the_box_keeps_its_shape_wherever_it_lies(height, width, corner, seed):
    ink, noise = np.zeros((150, 150)), np.random.default_rng(seed).uniform(0.2, 1, (height, width))
    ink[corner : corner + height, 90 - corner : 90 - corner + width] = noise
    image, longer = to_mnist(ink).numpy(), max(height, width)
    sides = [np.ptp(np.flatnonzero(image.any(axis=axis))) + 1 for axis in (1, 0)]
    assert sides == [max(1, round(20 * side / longer)) for side in (height, width)]
    places = [n.mean() for n in np.nonzero(to_mnist(noise > 0).numpy())]
    assert all(abs(place - 14) <= 0.5 for place in places)
    assert np.array_equal(image, to_mnist(noise).numpy())
    thin = np.zeros((200, 200))
    thin[:, ::50] = 1  # no stroke is lost between the pixels that are kept
    assert ndimage.label(to_mnist(thin))[1] == 4


PNG, DOT = EXAMPLE.read_bytes(), Image.new("L", (300, 200), 235)
DOT.paste(40, (150, 90, 155, 95))
BAD = {  # what: (content, what it says); more in test_hostile.py
    "empty": (b"", "is empty"), "text": (b"not a picture", "cannot be read"),
    "cut off": (PNG[:2_000], "cannot be read"), "long": (bytes(31_000_000), "too large"),
    "many pixels": (Image.new("1", (8_000, 8_000)), "too many pixels"),
    "a bomb": (PNG[:16] + b"\0\1\0\0" * 2 + PNG[24:], "too many pixels|cannot be read"),
    "one pixel": (Image.new("L", (1, 1)), "blank"), "clear": (Image.new("RGBA", (9, 9)), "blank"),
    "a dot": (DOT, "smaller than 8"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_end_in_one_sentence(what, tmp_path):
    content, sentence = BAD[what]
    with pytest.raises(ValueError, match=sentence) as caught:
        prepared(content, tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="is not a file"):
        prepare(tmp_path)


def test_ink_that_touches_the_border_is_said(tmp_path):
    cut = FIVE.crop((230, 0, 420, 320))
    assert "touches the border" in prepared(cut, tmp_path)["note"]


# --- Claims ---------------------------------------------------------------------------------------


def rows(what: str) -> pd.DataFrame:
    record = records.load_record(records.RESULTS / "inside" / f"{BELIEVED}-seed0.json")
    table = pd.DataFrame(record["rows"])
    return table[table["what"] == what].dropna(axis=1, how="all")


def misread() -> Counter:
    runs = records.load_records("seeds", "06_lr_schedule")
    assert len(runs) == 30
    assert all(r["history"]["val_accuracy"][-1] < r["test_accuracy"] for r in runs)
    return Counter(i for r in runs for i in r["test_errors"])


@claim(INSIDE, "Eight of the fifteen are misread by most of the thirty runs; the other seven are")
def test_doubtful_labels():
    assert [misread()[i] > 15 for i in set(records.LABEL_ERRORS)].count(True) == 8
    assert len(set(records.LABEL_ERRORS)) == 15
    (record,) = records.load_records("steps", "06_lr_schedule")
    own, counts = set(record["test_errors"]), misread()
    often, doubtful = sum(counts[i] >= 27 for i in own), len(own & set(records.LABEL_ERRORS))
    assert often == 10
    claim(
        INSIDE,
        f"Of the {len(own)} test digits that it misreads, {often} are misread by at least 27 of 30",
        f"runs of the same recipe, and {doubtful} have a doubtful label.",
        f"a good one: {len(own)} mistakes, where the mean of thirty is {counts.total() / 30:.1f}.",
        "the first ten are misread by at least 27 of the thirty runs",
    )(lambda: None)()


@claim(INSIDE, "half as much again as random weights have on average")
@claim(INSIDE, "but the largest part of the first layer is finer detail")
def test_edges(model):
    scope = run(INSIDE, "filters", model=model)
    ink, edge, detail = scope["share"].mean(dim=0)
    assert 1.4 < edge / (2 / 9) < 1.6 and detail > max(ink, edge)
    random = torch.randn(20_000 * 16, 3, 3, generator=torch.Generator().manual_seed(0))
    drawn = scope["shares"](random)[:, 1].view(-1, 16).mean(dim=1)
    low, high = (100 * drawn.quantile(q).item() for q in (0.025, 0.975))
    says = f"edges have {100 * edge:.0f} %"
    rest = f"(22 %; sixteen random filters come out between {low:.0f} and {high:.0f} % in 95"
    claim(INSIDE, says, rest)(lambda: None)()


@claim(BELIEVED, "(all thirty runs of step 6 read fewer of them right)")
@claim(
    BELIEVED, "four digits no run reads as labelled, and three of the four have a doubtful label"
)
def test_nobody():
    counts = misread()
    nobody = {i for i in counts if counts[i] == 30}
    assert len(nobody) == 4 and len(nobody & set(records.LABEL_ERRORS)) == 3
    half, mean = sum(count >= 15 for count in counts.values()), counts.total() / 30
    says = f"A vote of the thirty runs misreads at most {half} digits, an average run {mean:.1f}."
    claim(BELIEVED, says)(lambda: None)()


@claim(BELIEVED, "claim more than they hold on both sets: the interval of *T* lies above 1.")
@claim(BELIEVED, "makes the error smaller on the test images, too. Of steps 4 and 5 luck explains")
@claim(BELIEVED, "mended steps 1 to 3. It made step 6 worse on the test images")
@claim(BELIEVED, "Eighteen dots are judged", "99 of 100 test digits")
def test_calibration():
    table = rows("calibration")  # a row for each network
    draws, table = set(table["draws"]), table.groupby(["part", "step"]).mean(numeric_only=True)
    val, test, scaled = (table.loc[part] for part in ("validation", "test", "test, scaled by T"))
    assert draws == {20_000} and len(table) == 18
    for part in (val, test):
        assert part["ECE %"].iloc[-1] < 0.5 and (part["p"][:3] < 0.05).all()
        assert (part["p"][3:5] > 0.05).all()
    assert (test["T low"][:3] > 1.05).all()
    (own, new, mended), t = (part.iloc[-1] for part in (val, test, scaled)), test.iloc[-1]
    assert own["p"] < 0.05 < new["p"] and mended["p"] < 0.05 and t["T low"] > 1
    claim(
        BELIEVED,
        f"calibration error is {new['ECE %']:.3f} % on test images and {own['ECE %']:.3f} % on",
        f"step 2 on validation images and step 3 on test images (*p* = {val['p'].iloc[1]:.3f} and "
        f"{test['p'].iloc[2]:.3f})",
        f"its ECE is {own['ECE %']:.3f} %, more than luck explains, and its *T* is {t['T']:.2f} "
        f"({t['T low']:.2f} to {t['T high']:.2f}). On the test images luck explains its "
        f"{new['ECE %']:.3f} %, and dividing by that *T* makes it worse, {mended['ECE %']:.3f} %",
    )(lambda: None)()
    assert (scaled["ECE %"] < test["ECE %"])[:3].all()
    refused = rows("refuse").set_index("refused (%)")["misread"]
    (record,) = records.load_records("steps", "06_lr_schedule")
    wrong = 100 - record["history"]["val_accuracy"][-1]  # the ECE of one that is always sure
    claim(
        BELIEVED,
        f"removes {refused[0] - refused[1]:.0f} of the {refused[0]:.0f} mistakes",
        f"would have {100 - record['test_accuracy']:.2f} % and {wrong:.2f} %.",
    )(lambda: None)()
    assert rows("source").set_index("source")["above 90 %"]["test digits"] == pytest.approx(99, 0.5)


@claim(BELIEVED, "Right, 9 as 4 leads with 5; 34 mistakes", "Why, these curves do not tell")
@claim(BELIEVED, "more than three times the 12", "the baseline stands it best", "are far behind")
@claim(
    BELIEVED, "shifts improve most with GAP, rotations with augmentation, and the baseline stands"
)
def test_damage():
    pairs = rows("steps 1 to 5, added").iloc[:, 1:].astype(int).nlargest(6, "count").to_numpy()
    first, *others = [f"{label} as {read} ({count})" for label, read, count in pairs[:5]]
    first = first.replace(" as", " read as").replace(")", " times)")
    says = f"{first}, {', '.join(others[:-1])} and {others[-1]}: pairs that"
    claim(BELIEVED, says)(lambda: None)()
    assert pairs[5][-1] < pairs[4][-1]
    six = rows("step 6").set_index(["label", "read"])["count"]
    assert six.sum() == 34 and six[9, 4] == 5 and six.nlargest(2).iloc[1] == 4
    table = rows("robustness").pivot_table("accuracy", ["damage", "level"], "step")
    at = dict(zip(table.index, table.to_numpy(), strict=True))
    shift, turn = at["shift (pixels)", 4], at["rotation (degrees)", 40]
    noise, blur = at["noise (std)", 0.4], at["blur (std, pixels)", 1.5]
    contrast = at["contrast (factor)", 0.2]
    gains = np.diff(shift), np.diff(turn)
    assert [gain.argmax() for gain in gains] == [2, 3] and 40 > 3 * 12
    assert noise.argmax() == 0 and blur[1:4].max() < 50
    assert list(contrast.argsort()[::-1][:2]) == [0, 5]
    claim(
        BELIEVED,
        f"Shifted by 4 pixels step 1 reads {shift[0]:.1f} % and step 6 {shift[5]:.1f} %; with "
        f"noise of std 0.4 it is {noise[0]:.1f} % and {noise[5]:.1f} %.",
        f"steps 1 to 3 read {shift[:3].min():.0f} to {shift[:3].max():.0f} %, step 4 (GAP) "
        f"{shift[3]:.0f} %, steps 5 and 6 {shift[4]:.0f} and {shift[5]:.0f} %.",
        f"steps 1 to 4 read {turn[:4].min():.0f} to {turn[:4].max():.0f} %, steps 5 and 6 "
        f"{turn[4]:.0f} and {turn[5]:.0f} %.",
        f"with {noise[0]:.0f} %; step 2 reads {noise[1]:.0f} %, steps 4 to 6 only "
        f"{noise[3:].min():.0f} to {noise[3:].max():.0f} %.",
        f"steps 5 and 6 read {blur[4]:.0f} and {blur[5]:.0f} %, then comes step 1 with "
        f"{blur[0]:.0f} %",
        f"lead with {contrast[0]:.0f} and {contrast[5]:.0f} %.",
    )(lambda: None)()


@claim(BELIEVED, "costs every step several points", "wins a part of that back for most of them")
@claim(
    BELIEVED,
    "confidence falls along with its accuracy",
    "most letters are read with more than 90 %",
    "would stop 9 of the 26 letters, and 1 % of the test digits",
)
def test_sources():
    table = rows("source").set_index("source")
    steps = [column for column in table if column[0] == "0"]
    mnist, other, better, letters = (table.loc[name] for name in table.index)
    assert len(steps) == 6 and (mnist[steps] - other[steps]).min() > 3
    gain = better[steps] - other[steps]
    assert (gain > 1).sum() >= 4 and gain[steps[-1]] > 1
    assert mnist["confidence"] > other["confidence"] + 3 and letters["above 90 %"] > 50
    says = (
        f"reads {other[steps[-1]]:.1f} % as they are and {better[steps[-1]]:.1f} % prepared as here"
    )
    claim(OWN, f"scikit-learn's {other['images']:,.0f} digits", says)(lambda: None)()
    claim(
        BELIEVED,
        f"digits, prepared as MNIST's were, are read to {better[steps[-1]]:.1f} %.",
        f"for {26 * letters['above 90 %'] / 100:.0f} of 26 capitals with more than 90 % confidence",
    )(lambda: None)()


@claim(OWN, "The longer side is 20, and the centre of mass lies on pixel (14, 14), to half a pixel")
def test_what_mnist_has_in_common():
    html = "".join(manage.code_cells(OWN)["common"]["outputs"][0]["data"]["text/html"])
    cells = [float(n) for n in re.findall(r'class="data[^>]*>([\d.]+)<', html)]
    assert cells[6:] == [20, 20, 20] and min(cells[:6]) >= 13.5 and max(cells[:6]) <= 14.5
