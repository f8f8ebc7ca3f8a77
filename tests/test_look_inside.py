"""Notebook 11: its network is step 6's, and a picture of a digit becomes an image like MNIST's."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient
from PIL import Image, ImageDraw, ImageOps
from scipy.interpolate import CubicSpline

import manage
import utils

NAME = "11_look_inside"
EXAMPLE = utils.HERE / "notebooks" / "my_digit.png"
CELLS = manage.code_cells(NAME)


def run(*ids: str, **scope: object) -> dict:
    """Execute cells of the notebook by their id, after its imports; return their names."""
    source = CELLS["imports"].source.split("utils.use_style()")[0]
    for text in ("from pathlib import Path", source, *(CELLS[key].source for key in ids)):
        exec(text, scope)
    return scope


OWN = run("own-read", "own-bright", "own-ink", "own-centre", "own-prepare")
prepare = OWN["prepare"]


# --- Pictures to read, drawn here -----------------------------------------------------------------

FIVE = (  # two strokes in a square of side 1: the top bar, then the stem and the bowl
    [(0.84, 0.06), (0.55, 0.07), (0.27, 0.09)],
    [(0.27, 0.09), (0.21, 0.44), (0.55, 0.38), (0.86, 0.62), (0.62, 0.93), (0.12, 0.87)],
)


def draw(size=(420, 320), corner=(205, 60), side=170, pen=15, paper=235, ink=40, shade=0):
    """A hand-drawn 5 as a grey picture; ``shade`` darkens the paper towards one corner."""
    fine = 4  # drawn larger, then reduced: smooth edges
    mask = Image.new("L", (size[0] * fine, size[1] * fine))
    pencil = ImageDraw.Draw(mask)
    for stroke in FIVE:
        times = np.arange(len(stroke))
        for x, y in CubicSpline(times, stroke)(np.linspace(0, times[-1], 400)):
            x, y, r = (fine * v for v in (corner[0] + side * x, corner[1] + side * y, pen / 2))
            pencil.ellipse((x - r, y - r, x + r, y + r), fill=255)
    opaque = np.asarray(mask.resize(size, Image.Resampling.BOX)) / 255
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    light = 1 - shade * (x + y) / 2
    return Image.fromarray((light * (paper + (ink - paper) * opaque)).round().astype(np.uint8))


def save(picture: Image.Image, folder: Path, name: str = "digit.png") -> Path:
    picture.save(folder / name)
    return folder / name


def check(image: torch.Tensor) -> None:
    """What every MNIST image is: 28 x 28, the digit 20 long, its centre of mass in the middle."""
    assert image.shape == (28, 28) and image.dtype == torch.uint8
    rows, columns = (torch.nonzero(image.amax(axis)).flatten() for axis in (1, 0))
    assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
    assert image.max() == 255 and image[0].max() == image[:, 0].max() == 0
    mass = image.double()
    for axis in (0, 1):
        middle = (mass.sum(1 - axis) * torch.arange(28)).sum() / mass.sum()
        assert abs(middle - 13.5) <= 0.5 + 1e-6


@pytest.fixture(scope="module")
def model():
    """The network of notebook 11's own cell with the published weights of step 6."""
    record = utils.load_record(utils.RESULTS / "steps" / "06_lr_schedule-seed0.json")
    network = run("model", DROPOUT=0.01)["make_model"]()
    return utils.load_weights(network, record).eval()


def reading(model, image: torch.Tensor) -> int:
    """0.1307 and 0.3081: mean and std of MNIST's training pixels."""
    return int(model((image[None, None].float() / 255 - 0.1307) / 0.3081).argmax())


# --- The network ----------------------------------------------------------------------------------


def test_the_network_is_that_of_step_6(model):
    assert CELLS["model"].source == manage.code_cells("06_lr_schedule")["model"].source
    assert utils.count_parameters(model) < 20_000


def test_the_ranges_drawn_are_those_of_the_augmentation():
    """Pushed to its ends, step 5's augmentation turns, scales and shifts as notebook 11 says."""
    source = manage.code_cells("05_augmentation")["random-affine"].source
    ranges = run("damage", "damages", SEED=0)["TRAINED"]
    assert f"math.radians({ranges['rotation (degrees)'][1]})" in source
    assert f"1 + {ranges['scale (factor)'][1] - 1:.2f} *" in source
    assert f"({ranges['shift (pixels)'][1]} / 14)" in source
    assert "AUGMENT = 1.0 " in manage.code_cells("05_augmentation")["parameters"].source


def test_undamaged_levels_leave_the_image_alone():
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for name, (damage, levels, harmless) in run("damage", "damages", SEED=0)["DAMAGES"].items():
        assert harmless in levels
        assert torch.allclose(damage(x, harmless), x, atol=1e-4), name
        for level in levels:
            found = damage(x, level)
            assert found.shape == x.shape and torch.isfinite(found).all(), (name, level)


@pytest.mark.parametrize("damage", ["missing record", "missing weights", "damaged weights"])
def test_missing_or_damaged_weights_give_one_sentence_and_the_command(tmp_path, damage):
    shutil.copytree(utils.RESULTS / "steps", tmp_path / "steps")
    name = "06_lr_schedule"
    path = tmp_path / "steps" / f"{name}-seed0"
    if damage == "missing record":
        path.with_suffix(".json").unlink()
    elif damage == "missing weights":
        path.with_suffix(".safetensors").unlink()
    else:
        content = path.with_suffix(".safetensors").read_bytes()
        path.with_suffix(".safetensors").write_bytes(content[: len(content) // 2])
    scope = run("model", "load", DROPOUT=0.01, SEED=0, device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match=f"python notebooks/manage.py run {name}$") as caught:
        scope["load_step"](name, tmp_path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and ". " not in message


def test_retraining_trains_the_seed_that_is_looked_at(monkeypatch):
    """``RETRAIN`` runs the steps' notebooks; here they are only counted, and their seed is read."""
    seeds = []

    class Client:
        def __init__(self, notebook, timeout):
            assert timeout is None
            scope = {}
            for cell in notebook.cells:
                if "parameters" in cell.metadata.get("tags", []):
                    exec(cell.source, scope)
            seeds.append(scope["SEED"])

        def execute(self):
            pass

    monkeypatch.chdir(utils.HERE / "notebooks")
    monkeypatch.setattr("nbclient.NotebookClient", Client)
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    steps = {"step 4": "04_gap_fc", "step 5": "05_augmentation", "step 6": "06_lr_schedule"}
    for data, study in (("MNIST", "steps"), (utils.DIGITS_NAME, "scratch/steps")):
        scope = {"RETRAIN": True, "SEED": 3, "STEPS": steps, "data": SimpleNamespace(name=data)}
        assert run("retrain", utils=utils, **scope)["study"] == study
    assert seeds == [3] * 6


# --- What is measured -----------------------------------------------------------------------------


def test_temperature_scaling_finds_a_known_temperature():
    generator = torch.Generator().manual_seed(0)
    true_logits = 2 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(true_logits.softmax(1), 1, generator=generator)[:, 0]
    scope = run("temperature", "reliability")
    assert scope["fit_temperature"](3 * true_logits, labels) == pytest.approx(3, rel=0.05)
    assert scope["reliability"](true_logits, labels)[-1] < 1.5
    assert scope["reliability"](3 * true_logits, labels)[-1] > 5


def test_the_calibration_error_of_a_known_case():
    """Always 90 % sure of class 0, right half of the time: the gap is 40 points."""
    logits = torch.full((100, 10), math.log(0.1 / 9))
    logits[:, 0] = math.log(0.9 - 1e-4)
    labels = torch.arange(100) % 2
    images, mean, accuracy, ece = run("reliability")["reliability"](logits, labels)
    assert images.sum() == 100 and int((images > 0).sum()) == 1
    used = images > 0
    assert accuracy[used].item() == 0.5
    assert ece == pytest.approx(100 * (mean[used].item() - 0.5), abs=1e-3)


def test_the_receptive_field_is_where_the_gradient_can_be(model):
    """All weights one, no ReLU: the gradient is positive in the whole field and zero outside."""
    scope = run("field", model=model)
    plain = [layer for block in scope["blocks"] for layer in block]
    kinds = (torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.AvgPool2d)
    for block in range(1, len(scope["blocks"]) + 1):
        plain = [m for each in scope["blocks"][:block] for m in each if isinstance(m, kinds)]
        x = torch.ones(1, 1, 28, 28, requires_grad=True)
        y = x
        for layer in plain:
            if isinstance(layer, torch.nn.Conv2d):
                ones = torch.ones(1, 1, *layer.kernel_size)
                y = torch.nn.functional.conv2d(y, ones, stride=layer.stride, padding=layer.padding)
            else:
                y = torch.nn.functional.avg_pool2d(y, layer.kernel_size, layer.stride)
        for unit in (0, y.shape[-1] // 2):
            (gradient,) = torch.autograd.grad(y[0, 0, unit, unit], x, retain_graph=True)
            rows = gradient[0, 0].sum(1).nonzero().flatten().tolist()
            first, last = scope["receptive_field"](block, unit)
            assert rows == list(range(max(first, 0), min(last, 27) + 1))


def test_erasing_ink_is_what_captum_measures(model):
    """Each pixel: the mean fall of the lead over all 5 x 5 squares that cover it, one by one."""
    data = SimpleNamespace(normalize=lambda pixels: (pixels - 0.1307) / 0.3081)
    image = prepare(EXAMPLE)["centred in 28"]
    found = run("occlusion", data=data)["occlusion"](model, image, 5, 3)
    squares = list(np.ndindex(24, 24))
    erased = image.repeat(len(squares) + 1, 1, 1)  # the last one stays whole
    for picture, (row, column) in zip(erased, squares, strict=False):
        picture[row : row + 5, column : column + 5] = 0
    with torch.no_grad():
        logits = model(data.normalize(erased[:, None].float() / 255))
    lead = logits[:, 5] - logits[:, 3]
    total, count = torch.zeros(2, 28, 28)
    for fall, (row, column) in zip(lead[-1] - lead, squares, strict=False):
        total[row : row + 5, column : column + 5] += fall
        count[row : row + 5, column : column + 5] += 1
    assert torch.allclose(found, total / count, atol=1e-4)
    assert found.shape == (28, 28) and found.max() > 1


# --- Your own digit -------------------------------------------------------------------------------


def test_the_example_is_drawn_by_this_file(model):
    """Not taken from a data set: the shipped picture is what ``draw`` makes."""
    shipped = np.asarray(Image.open(EXAMPLE).convert("L"), dtype=float)
    assert np.abs(shipped - np.asarray(draw(shade=0.3), dtype=float)).mean() < 1
    assert EXAMPLE.stat().st_size < 20_000
    image = prepare(EXAMPLE)["centred in 28"]
    check(image)
    assert reading(model, image) == 5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"paper": 30, "ink": 220},
        {"paper": 255, "ink": 0, "pen": 30},
        {"paper": 200, "ink": 120},
        {"paper": 240, "ink": 60, "shade": 0.5},
        {"size": (1500, 2000), "corner": (300, 900), "side": 700, "pen": 60},
        {"size": (40, 36), "corner": (8, 6), "side": 24, "pen": 3},
        {"size": (600, 120), "corner": (450, 10), "side": 100, "pen": 9},
    ],
    ids=["dark", "light", "bold", "pale", "shade", "large", "small", "wide"],
)
def test_pictures_of_all_kinds_are_read(tmp_path, model, settings):
    image = prepare(save(draw(**settings), tmp_path))["centred in 28"]
    check(image)
    assert reading(model, image) == 5


def test_dark_on_light_and_light_on_dark_give_the_same(tmp_path):
    picture = draw()
    first = prepare(save(picture, tmp_path))["centred in 28"]
    second = prepare(save(ImageOps.invert(picture), tmp_path))["centred in 28"]
    assert (first.int() - second.int()).abs().max() <= 2


@given(
    size=st.tuples(st.integers(60, 500), st.integers(60, 500)),
    room=st.floats(0.4, 0.9),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    light=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_any_size_and_place_gives_an_image_like_mnists(tmp_path_factory, size, room, places, light):
    side = room * min(size)
    margin = 0.06 * side
    corner = [margin + p * (n - side - 2 * margin) for p, n in zip(places, size, strict=True)]
    paper, ink = (40, 220) if light else (220, 40)
    picture = draw(size, corner, side, pen=0.1 * side, paper=paper, ink=ink)
    check(prepare(save(picture, tmp_path_factory.mktemp("own")))["centred in 28"])


@pytest.mark.parametrize("stroke", [0, 255], ids=["dark", "light"])
@pytest.mark.parametrize("beneath", [0, 255], ids=["over black", "over white"])
def test_a_transparent_background_is_paper(tmp_path, model, stroke, beneath):
    opaque = ImageOps.invert(draw(paper=255, ink=0))
    color = Image.eval(opaque, lambda v: stroke if v else beneath)
    picture = Image.merge("RGBA", (color, color, color, opaque))
    image = prepare(save(picture, tmp_path))["centred in 28"]
    check(image)
    assert reading(model, image) == 5


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK"])
def test_pictures_of_all_modes(tmp_path, model, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(draw()).astype(np.uint16) * 257)
    else:
        picture = draw().convert(mode)
    name = "digit.tif" if mode == "CMYK" else "digit.png"
    image = prepare(save(picture, tmp_path, name))["centred in 28"]
    check(image)
    assert reading(model, image) == 5


def test_a_phones_sideways_photo_is_turned_upright(tmp_path, model):
    turned = draw().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "photo.jpg", exif=exif)
    assert reading(model, prepare(tmp_path / "photo.jpg")["centred in 28"]) == 5


def test_specks_and_noise_are_not_ink(tmp_path):
    clean = np.asarray(draw(), dtype=float)
    dirty = clean + np.random.default_rng(0).normal(0, 6, clean.shape)
    dirty[20:24, 30:34] = 30
    dirty[300:303, 400:404] = 30
    picture = Image.fromarray(dirty.clip(0, 255).astype(np.uint8))
    first, second = (prepare(save(each, tmp_path))["centred in 28"] for each in (draw(), picture))
    assert (first.double() - second.double()).abs().mean() < 6
    check(second)


def test_a_lopsided_digit_is_not_cut(tmp_path):
    """A heavy end pulls the centre of mass; the 20 pixels of the digit still stay in the image."""
    canvas = np.full((200, 200), 255, dtype=np.uint8)
    canvas[150:180, 20:180] = 0
    canvas[20:150, 20:24] = 0
    image = prepare(save(Image.fromarray(canvas), tmp_path))["centred in 28"]
    rows, columns = (torch.nonzero(image.amax(axis)).flatten() for axis in (1, 0))
    assert len(rows) == len(columns) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        (b"", "is empty"),
        (b"not a picture at all", "cannot be read as a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "cannot be read as a picture"),
        (EXAMPLE.read_bytes()[:2_000], "cannot be read as a picture"),
    ],
    ids=["missing", "empty", "text", "broken", "truncated"],
)
def test_unreadable_files_get_a_clear_sentence(tmp_path, content, message):
    path = tmp_path / "digit.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(path)
    assert "\n" not in str(caught.value) and "digit.png" in str(caught.value)


@pytest.mark.parametrize("color", [0, 128, 255])
def test_one_colour_is_no_digit(tmp_path, color):
    for size in ((1, 1), (300, 200)):
        with pytest.raises(ValueError, match="all one colour"):
            prepare(save(Image.new("L", size, color), tmp_path))


@pytest.mark.parametrize("side", [8_000, 15_000])
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, side):
    path = save(Image.new("1", (side, side)), tmp_path)
    assert path.stat().st_size < 100_000  # a small file all the same
    with pytest.raises(ValueError, match="is huge"):
        prepare(path)


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "digit.png"
    with path.open("wb") as file:
        file.truncate(31_000_000)
    with pytest.raises(ValueError, match="is huge"):
        prepare(path)


# --- The record -----------------------------------------------------------------------------------


def test_the_record_is_published_with_the_network_it_is_about():
    record = utils.load_record(utils.RESULTS / "inside" / f"{NAME}-seed0.json")
    step = utils.load_record(utils.RESULTS / "steps" / "06_lr_schedule-seed0.json")
    analysis = record["analysis"]
    assert analysis["network"]["sha256"] == step["weights"]["sha256"], "execute notebook 11 again"
    assert (record["dataset"], record["test_correct"]) == ("MNIST", step["test_correct"])
    assert len(analysis["known_label_errors"]) == 15
    for curves in analysis["robustness"].values():
        assert all(len(curves[key]) == len(curves["levels"]) for key in ("step 4", "step 6"))


def test_the_text_says_what_the_record_says():
    record = utils.load_record(utils.RESULTS / "inside" / f"{NAME}-seed0.json")
    curves, rows = record["analysis"]["robustness"], record["analysis"]["calibration"]
    (val, val_scaled), (test, test_scaled) = rows[:2], rows[2:]
    assert test["ece"] < test["ece_by_luck"] and test_scaled["ece"] > test_scaled["ece_by_luck"]
    assert 0.97 < val["ece"] / val["ece_by_luck"] < 1 and val_scaled["ece"] < val["ece"]
    assert val_scaled["loss"] < val["loss"] and test_scaled["loss"] > test["loss"]
    assert val["loss"] > 1.5 * test["loss"], "the validation images are harder"
    noise = {level: i for i, level in enumerate(curves["noise (std)"]["levels"])}
    four, five, six = (curves["noise (std)"][step] for step in ("step 4", "step 5", "step 6"))
    for level in (noise[0.2], noise[0.3]):
        assert four[level] > five[level] > six[level], "worse against moderate noise"
    begins = noise[0.2]
    assert 0.6 < (five[begins] - six[begins]) / (four[begins] - five[begins]) < 1, "nearly as much"
    moved = {"by augmentation": 0.0, "by the schedule": 0.0}
    for name in curves:
        four, five, six = (curves[name][step] for step in ("step 4", "step 5", "step 6"))
        moved["by augmentation"] += sum(abs(a - b) for a, b in zip(four, five, strict=True))
        moved["by the schedule"] += sum(abs(a - b) for a, b in zip(five, six, strict=True))
    assert moved["by the schedule"] < 0.7 * moved["by augmentation"]


def test_noise_repeats_unless_a_generator_says_otherwise():
    add_noise = run("damage", SEED=0)["add_noise"]
    images, generator = torch.rand(2, 1, 28, 28), torch.Generator().manual_seed(5)
    assert torch.equal(add_noise(images, 0.2), add_noise(images, 0.2))
    one, other = (add_noise(images, 0.2, generator) for _ in range(2))
    assert not torch.equal(one, other) and one.min() >= 0 and one.max() <= 1


@pytest.mark.parametrize(
    ("names", "published"),
    [({}, True), ({"STUDY": "mine"}, False), ({"SEED": 1}, False), ({"study": "inside"}, False)],
)
def test_only_the_published_networks_change_the_overviews_pictures(names, published):
    scope = {"STUDY": "inside", "SEED": 0, "study": "steps"} | names
    exec(manage.code_cells(NAME)["networks"].source.splitlines()[-1], scope)
    assert scope["PUBLISH"] is published


@pytest.mark.full
def test_it_runs_on_the_stand_in_digits_without_publishing(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET", "digits")
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    published = {p: p.read_bytes() for p in (utils.RESULTS / "inside").iterdir()}
    notebook = nbformat.read(utils.HERE / "notebooks" / f"{NAME}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(utils.HERE / "notebooks")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    texts = {c.id: "".join(o.get("text", "") for o in c.get("outputs", [])) for c in notebook.cells}
    assert utils.DIGITS_NAME in texts["data"] and "scratch" in texts["record"]
    assert {p: p.read_bytes() for p in (utils.RESULTS / "inside").iterdir()} == published
