"""The page in site/ against PyTorch in a real Chromium; networks for others; the book."""

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from scipy import ndimage

import manage
import records
import utils

ROOT = records.HERE
SITE = ROOT / "site"
sys.path.append(str(SITE))
MODELS = SITE / "models"
URL = (SITE / "index.html").as_uri()
OWN = "15_your_own_digit"
ON_PAGE = ("step-6", "smallest")
NAMES = (*ON_PAGE, "separable-96")
PUBLISHED = {"step-6": ("steps", "06_lr_schedule-seed0")}
PUBLISHED |= {"smallest": ("networks", "mixed_2922-seed0")}
PUBLISHED |= {"separable-96": ("best", "separable_96-seed2")}
networks = pytest.mark.parametrize("name", NAMES)
full = pytest.mark.full


def page_data() -> dict:
    """What data.js holds."""
    text = (SITE / "data.js").read_text(encoding="utf-8")
    return json.loads(re.search(r"const DATA = (\{.*\});\n", text, re.S)[1])


def reader(name: str) -> torch.nn.Module:
    """A published network as the Hub's class loads it from a folder."""
    hub = pytest.importorskip("hub", reason="needs huggingface_hub", exc_type=ImportError)
    return hub.DigitReader.from_pretrained(MODELS / name).eval()


@pytest.fixture(scope="module")
def mnist() -> utils.Data:
    data = utils.load_mnist()
    if data.name != "MNIST":
        pytest.skip("needs MNIST")
    return data


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("needs Chromium (or its path in CHROMIUM)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium, url: str = URL, **screen: object):
    """The page without a network; whatever it asks for, and each error, is noted."""
    context = chromium.new_context(offline=True, **screen)
    page = context.new_page()
    page.set_default_timeout(120_000)  # on a busy machine
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else 0)
    page.goto(url)
    page.wait_for_function("document.getElementById('verdict').textContent.includes('5')")
    return page


@pytest.fixture(scope="module")
def page(chromium):
    page = opened(chromium)
    yield page
    assert page.errors == []


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


# --- Same numbers as PyTorch ----------------------------------------------------------------------

READ = """text => {
  const pictures = decodeBytes(text), found = NETWORKS.map(() => []);
  for (let i = 0; i < pictures.length; i += 784)
    NETWORKS.forEach((n, k) => found[k].push([...readDigit(n, pictures.slice(i, i + 784)).logits]));
  return found;
}"""


def logits_in(page, images: torch.Tensor) -> torch.Tensor:
    """Logits ``[networks, N, 10]`` that the page computes for uint8 images ``[N, 28, 28]``."""
    parts = []
    for part in images.split(500):
        text = base64.b64encode(part.numpy().tobytes()).decode()
        parts.append(torch.tensor(page.evaluate(READ, text)))
    return torch.cat(parts, dim=1)


def largest_gap(page, images: torch.Tensor) -> float:
    """The largest difference of a logit; each picture must be read the same."""
    gaps = []
    for name, found in zip(ON_PAGE, logits_in(page, images), strict=True):
        with torch.no_grad():
            parts = [reader(name)(p[:, None].float() / 255) for p in images.split(1_000)]
        wanted = torch.cat(parts)
        gaps.append((found - wanted).abs().max().item())
        close = wanted.topk(2).values.diff().abs()[:, 0] < 1e-3  # random pictures may be a tie
        assert torch.equal(found.argmax(1)[~close], wanted.argmax(1)[~close]), name
        assert close.sum() <= len(images) / 1_000
    print(f"{len(images):,} pictures: logits differ by at most {max(gaps):.1e}")
    return max(gaps)


def random_pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, 28, 28), generator=generator)
    dark = torch.rand(count, 28, 28, generator=generator) < torch.rand(
        count, 1, 1, generator=generator
    )
    return (noise * dark).to(torch.uint8)  # from nearly black to full noise


def test_the_pages_logits_are_pytorchs_on_random_pictures(page):
    assert largest_gap(page, random_pictures(100)) < 1e-3


@full
def test_the_pages_logits_are_pytorchs_on_all_test_digits_and_random_pictures(page, mnist):
    assert largest_gap(page, random_pictures(1_000)) < 1e-3
    assert largest_gap(page, mnist.test.images) < 1e-3
    labels, data = mnist.test.labels, page_data()
    for k, network in enumerate(data["networks"]):
        right = (logits_in(page, mnist.test.images[:2_000])[k].argmax(1) == labels[:2_000]).sum()
        assert right / 2_000 > network["accuracy"] / 100 - 0.01


def test_the_evidence_averages_to_the_logits(page):
    rebuilt = page.evaluate("""() => state.readings.flatMap((reading, k) =>
      reading.evidence.map(({ data }, digit) => Math.abs(reading.logits[digit]
        - data.reduce((a, b) => a + b, 0) / data.length
        - NETWORKS[k].weights[NETWORKS[k].head.bias + digit])))""")
    assert len(rebuilt) == 20 and max(rebuilt) < 1e-9
    assert page.evaluate("state.readings.map(r => r.evidence[0].side)") == [5, 5]


@pytest.mark.parametrize("name", ON_PAGE)
def test_the_pages_weights_are_the_published_ones(name):
    record = records.load_record(records.RESULTS.joinpath(*PUBLISHED[name][:1]) / _file(name))
    published = load_file(records.RESULTS / PUBLISHED[name][0] / record["weights"]["file"])
    network = next(n for n in page_data()["networks"] if n["name"] == name)
    numbers = np.frombuffer(base64.b64decode(network["weights"]), "<f4")
    kernels = [c["offset"] for b in network["blocks"] for c in b["convolutions"]]
    assert network["parameters"] == record["parameters"] == len(numbers)
    first = published["0.0.weight"].numpy().ravel()
    assert np.array_equal(numbers[: first.size], first) and len(set(kernels)) <= len(kernels)
    head = [value for key, value in published.items() if value.shape == (10,)]
    assert np.array_equal(numbers[network["head"]["bias"] :], head[0].numpy())
    assert network["accuracy"] == record["test_accuracy"]


def _file(name: str) -> str:
    return f"{PUBLISHED[name][1]}.json"


# --- Drawing --------------------------------------------------------------------------------------

SEVEN = [[(110, 90), (200, 86), (292, 92), (250, 190), (214, 270), (190, 330)]]
TWO = [[(130, 140), (160, 90), (220, 80), (265, 120), (240, 190), (180, 260), (125, 318)]]
TWO[0] += [(200, 312), (285, 316)]


def screen_points(page, strokes: list) -> list:
    """Points of the pad (400 x 400) as points of the screen."""
    frame = page.locator("#pad").bounding_box()
    scale = frame["width"] / 400
    return [[(frame["x"] + x * scale, frame["y"] + y * scale) for x, y in s] for s in strokes]


def settled(page) -> str:
    """The verdict after the next frame."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")
    return page.inner_text("#verdict")


def test_it_reads_what_is_drawn_with_the_mouse_and_takes_it_back(page):
    assert settled(page) == "It reads a 5."  # the example, which the first stroke replaces
    for start, *points in screen_points(page, SEVEN):
        page.mouse.move(*start)
        page.mouse.down()
        for point in points:
            page.mouse.move(*point, steps=4)
        page.mouse.up()
    assert settled(page) == "It reads a 7."
    assert page.evaluate("pad.strokes.length") == 1
    page.wait_for_function("document.getElementById('live').textContent.includes('7')")
    page.click("#clear")
    assert settled(page) == "Draw a digit in the square." and page.is_disabled("#clear")
    page.click("#undo")
    assert settled(page) == "It reads a 7."
    page.click("#undo")
    assert settled(page) == "Draw a digit in the square."


def test_it_is_drawn_by_keyboard(page):
    page.click("#clear") if page.is_enabled("#clear") else None
    page.focus("#pad")
    press = page.keyboard.press
    for key in ["ArrowUp"] * 2 + [" "] + ["ArrowDown"] * 14 + [" "]:
        press(key)
    assert settled(page) == "It reads a 1." and page.is_visible("#pen")
    press("Control+z")
    assert settled(page) == "Draw a digit in the square."
    order = []
    for _ in range(4):
        press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order[0] in ("undo", "clear", "BUTTON")  # nobody is caught on the paper


def test_a_finger_draws_on_a_phone_and_the_page_does_not_scroll(chromium):
    page = opened(chromium, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    send = page.context.new_cdp_session(page).send

    def drag(points):
        kinds = ["touchStart"] + ["touchMove"] * (len(points) - 1)
        for kind, (x, y) in zip(kinds, points, strict=True):
            send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    for stroke in screen_points(page, TWO):
        drag(stroke)
    assert settled(page) == "It reads a 2." and page.evaluate("scrollY") == 0
    (down,) = screen_points(page, [[(200, y) for y in range(380, 20, -20)]])
    drag(down)  # would scroll anywhere else, as this finger does
    assert page.evaluate("scrollY") == 0 and page.errors == []
    drag([(200, y) for y in range(800, 500, -20)])
    page.wait_for_function("scrollY > 0")


def test_it_works_from_a_file_and_fetches_nothing_else(page):
    files = {"index.html", "style.css", "data.js", "mnist.js", "network.js", "pad.js", "page.js"}
    assert {Path(url).name for url in page.asked} == files
    assert all(url.startswith(SITE.as_uri()) for url in page.asked)
    assert sum((SITE / file).stat().st_size for file in files) < 300_000
    code = "".join((SITE / file).read_text(encoding="utf-8") for file in files - {"data.js"})
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", code)


def test_what_is_no_digit_is_doubted_and_the_rates_are_told(page):
    bars = [[(x, 60), (x, 340)] for x in (120, 280)]
    page.evaluate("strokes => pad.show(strokes)", bars + [[p[::-1] for p in b] for b in bars])
    assert settled(page) == "This does not look like a digit."
    doubt, said = page_data()["doubt"], page.inner_text("#doubt-about")
    for rate in (doubt["doubted"]["test"], *doubt["believed"].values()):
        assert f"{rate:.1f} %" in said and rate < 12
    page.evaluate("pad.show([[[200, 200]]])")
    assert settled(page) == "Draw a digit in the square."
    assert "dot" in page.inner_text("#note")


def test_the_gallery_shows_what_the_network_misreads(page):
    record = records.load_record(records.RESULTS / "steps" / _file("step-6"))
    digits = page_data()["gallery"]["digits"]
    assert sorted(d["index"] for d in digits) == record["test_errors"]
    assert {d["index"] for d in digits if d["doubtful"]} <= set(records.LABEL_ERRORS)
    assert page.locator("#misread button").count() == len(digits)
    for place in (0, len(digits) - 1):
        page.locator("#misread button").nth(place).click()
        settled(page)
        assert page.evaluate("largest(state.readings[0].logits)") == digits[place]["read"]
    page.click("#clear")


@full
def test_a_frame_takes_less_than_50_ms_of_one_core(page):
    """CPU time of the page's thread: what else the machine does is not counted."""
    page.evaluate("pad.show([])")
    send = page.context.new_cdp_session(page).send
    send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    page.evaluate("for (let i = 0; i < 20; i++) read(new Uint8Array(784).fill(i))")  # warm
    (stroke,), before = screen_points(page, SEVEN), spent()
    page.mouse.move(*stroke[0])
    page.mouse.down()
    frames = 0
    for x, y in stroke[1:]:
        for step in range(4):
            page.mouse.move(x - step, y)
            settled(page)
            frames += 1
    page.mouse.up()
    per_frame = 1_000 * (spent() - before) / frames
    print(f"a frame: {per_frame:.1f} ms of one core")
    assert per_frame < 50


# --- The preparation, twice -----------------------------------------------------------------------


def drawings(count: int) -> list:
    """Random strokes: straight, curved, dots, in corners, of any size."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        size, strokes = random.uniform(30, 360), []
        corner = random.uniform(20, 380 - size, 2) if size < 360 else np.array([20, 20])
        for _ in range(random.integers(1, 4)):
            points = corner + size * random.uniform(0, 1, (random.integers(2, 9), 2))
            if random.random() < 0.3:
                points[:, random.integers(2)] = points[0, 0]  # a straight line: ties when centred
            strokes.append(points.round(1).tolist())
        found.append(strokes)
    return found


SHOW = """strokes => {
  pad.show(strokes);
  const ink = pad.ink(), bits = Array.from(ink, String).join('');
  return [bits, [...toMnist(ink, 400, 400)], pad.canvas.toDataURL()];
}"""


def python_twin(*cells: str) -> dict:
    hub = pytest.importorskip("hub", reason="needs huggingface_hub", exc_type=ImportError)
    return hub.cells(OWN, *cells)


def test_both_preparations_make_the_same_picture_of_100_drawings(page):
    to_mnist, gaps = python_twin("to-mnist")["to_mnist"], []
    for strokes in drawings(100):
        bits, picture, _ = page.evaluate(SHOW, strokes)
        ink = np.frombuffer(bits.encode(), np.uint8).reshape(400, 400) == ord("1")
        twin = to_mnist(ink).numpy().ravel().astype(int)
        gaps.append(np.abs(twin - picture).max())
    assert max(gaps) <= 1


def test_the_drawing_as_a_file_is_prepared_alike_by_notebook_15(page, tmp_path):
    prepare = python_twin("to-mnist", "open", "shrink", "ink", "prepare")["prepare"]
    for strokes in (SEVEN, TWO, [[(60, 330), (70, 350)], *SEVEN][1:]):
        _, picture, url = page.evaluate(SHOW, strokes)
        path = tmp_path / "drawing.png"
        path.write_bytes(base64.b64decode(url.split(",")[1]))
        twin = prepare(path)["as in MNIST"].numpy().ravel().astype(int)
        assert np.abs(twin - picture).max() <= 1


def thinned(image: np.ndarray) -> np.ndarray:
    """The skeleton of a black and white picture (bool ``[H, W]``): Zhang and Suen, 1984."""
    image = np.pad(image, 1).astype(int)
    ways = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            p = [np.roll(image, (-y, -x), (0, 1)) for y, x in ways]
            count = sum(p)
            turns = sum((p[i] == 0) & (p[(i + 1) % 8] == 1) for i in range(8))
            up, right, down, left = p[0], p[2], p[4], p[6]
            pairs = (up * right * down, right * down * left)
            if not first:
                pairs = (up * right * left, up * down * left)
            drop = (image == 1) & (count >= 2) & (count <= 6) & (turns == 1)
            drop &= (pairs[0] == 0) & (pairs[1] == 0)
            image[drop] = 0
            changed |= bool(drop.any())
    return image[1:-1, 1:-1] == 1


def as_strokes(image: np.ndarray) -> list:
    """A digit of MNIST as strokes on the paper: its skeleton's pixels, each joined to the next."""
    large = ndimage.zoom(image.astype(float), 3, order=1) > 100
    ys, xs = np.nonzero(thinned(large))
    inside = set(zip(ys.tolist(), xs.tolist(), strict=True))
    scale, strokes = 400 / large.shape[0], []
    for y, x in inside:
        here = ((x + 0.5) * scale, (y + 0.5) * scale)
        joined = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1))]
        ends = [((b + 0.5) * scale, (a + 0.5) * scale) for a, b in joined if (a, b) in inside]
        strokes += [[here, end] for end in ends] or [[here, here]]
    return strokes


@full
def test_at_least_95_percent_of_redrawn_validation_digits_are_read_alike(page, mnist):
    images, alike = mnist.val.images[:200], [0, 0]
    originals = logits_in(page, images).argmax(dim=2).tolist()
    for i, image in enumerate(images.numpy()):
        page.evaluate("strokes => { pad.show(strokes); update(); }", as_strokes(image))
        found = page.evaluate("state.readings.map(r => largest(r.logits))")
        for k in range(2):
            alike[k] += found[k] == originals[k][i]
    print(f"redrawn and read alike: {alike} of {len(images)}")
    assert min(alike) >= 0.95 * len(images)


# --- In the notebook ------------------------------------------------------------------------------


@pytest.mark.parametrize("sandbox", ["", 'sandbox="allow-scripts"'])
def test_the_canvas_of_notebook_15_works_in_an_output(chromium, tmp_path, sandbox, monkeypatch):
    """JupyterLab puts an output into its page; Colab into a frame that may only run scripts."""
    monkeypatch.chdir(ROOT / "notebooks")
    shown = []
    scope = {"re": re, "html": html, "Path": Path, "HTML": str, "display": shown.append}
    exec(manage.code_cells(OWN)["draw"]["source"], scope)
    path = tmp_path / "output.html"
    outer = (
        f'<iframe id="colab" {sandbox} width="1000" height="900" srcdoc="{html.escape(shown[0])}">'
    )
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><body>{outer}</iframe>", encoding="utf-8"
    )
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    frame = page.frame_locator("#colab").frame_locator("iframe")
    box = frame.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60, steps=10)
    page.mouse.up()
    frame.locator("#verdict", has_text="It reads a 1.").wait_for()
    assert not frame.locator("#gallery").is_visible()
    assert [url for url in asked if not url.startswith(("about:", "data:"))] == [path.as_uri()]


# --- Networks for others --------------------------------------------------------------------------


@networks
def test_a_local_folder_loads_as_from_the_hub_and_onnx_agrees(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = reader(name), random_pictures(200)[:, None].float() / 255
    record = records.load_record(records.RESULTS / PUBLISHED[name][0] / _file(name))
    published = load_file(records.RESULTS / PUBLISHED[name][0] / record["weights"]["file"])
    own = list(model.state_dict().values())
    assert all(
        any(p.shape == q.shape and torch.equal(p, q) for q in own) for p in published.values()
    )
    session = onnxruntime.InferenceSession(str(MODELS / name / "model.onnx"))
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        assert (found - model(images)).abs().max() < 1e-3
        assert session.run(None, {"images": images[:1].numpy()})[0].shape == (1, 10)


@full
@networks
def test_onnx_reads_all_test_digits_as_pytorch_does(name, mnist):
    build = pytest.importorskip("build", reason="needs onnxruntime", exc_type=ImportError)
    assert build.compare(name, reader(name), mnist.test.images) < 1e-3
    record = records.load_record(records.RESULTS / PUBLISHED[name][0] / _file(name))
    model, _ = build.load(name, mnist)
    wrong = build.logits_of(model, mnist.test.images).argmax(1) != mnist.test.labels
    assert abs(int(wrong.sum()) - len(record["test_errors"])) <= 1


@full
def test_the_pages_data_can_be_built_again(mnist):
    build = pytest.importorskip("build", reason="needs onnxruntime", exc_type=ImportError)
    model, record = build.load("step-6", mnist)
    data = page_data()
    found = build.choose_threshold(model, mnist)
    assert found["threshold"] == pytest.approx(data["doubt"]["threshold"], abs=0.051)
    for key in ("test", "validation"):
        assert found["doubted"][key] == pytest.approx(data["doubt"]["doubted"][key], abs=0.2)
    assert build.gallery(model, mnist) == data["gallery"]
    assert len(record["test_errors"]) == len(data["gallery"]["digits"])


@networks
def test_a_model_card_is_what_the_records_say(name, tmp_path, monkeypatch):
    build = pytest.importorskip("build", reason="needs onnxruntime", exc_type=ImportError)
    cards = pytest.importorskip("huggingface_hub").ModelCard
    record = records.load_record(records.RESULTS / PUBLISHED[name][0] / _file(name))
    assert build.NETWORKS[name]["run"] == "/".join(PUBLISHED[name])
    text = (MODELS / name / "README.md").read_text(encoding="utf-8")
    shutil.copytree(MODELS / name, tmp_path / name)
    monkeypatch.setattr(build, "MODELS", tmp_path)
    gap = float(re.search(r"on all test digits (\S+) ", text)[1])
    build.write_card(name, record, SimpleNamespace(mean=0, std=1), gap)
    assert (tmp_path / name / "README.md").read_text(encoding="utf-8") == text
    card = cards.load(MODELS / name / "README.md").data
    assert card.license == "mit" and card.eval_results[0].metric_value == record["test_accuracy"]


def test_a_network_that_the_page_does_not_know_is_refused():
    build = pytest.importorskip("build", reason="needs onnxruntime", exc_type=ImportError)
    network = python_network("8-12")
    network[1].append(torch.nn.ChannelShuffle(2))
    with pytest.raises(ValueError, match="unknown block"):
        build.pack(network)


def python_network(line: str) -> torch.nn.Sequential:
    hub = pytest.importorskip("hub", reason="needs huggingface_hub", exc_type=ImportError)
    return hub.cells("09_smallest_network", "convolution", "network")["network"](line)


# --- Pictures of all kinds ------------------------------------------------------------------------

FIVE = Image.open(ROOT / "notebooks" / "my_digit.png").convert("L")
MASK = FIVE.point(lambda v: 255 if v < 110 else 0)
LARGE = FIVE.resize((5_040, 3_840))
KINDS = {
    "white on black": (ImageOps.invert(MASK), "a.png"), "black on white": (MASK, "a.png"),
    "CMYK": (FIVE.convert("CMYK"), "a.jpg"), "palette": (FIVE.convert("P"), "a.gif"),
    "16 bits": (Image.fromarray(np.asarray(FIVE).astype(np.uint16) * 200), "a.png"),
    "transparent": (Image.merge("LA", (Image.new("L", FIVE.size), MASK)), "a.png"),
    "white, transparent": (Image.merge("LA", (Image.new("L", FIVE.size, 255), MASK)), "a.png"),
    "19 million pixels": (LARGE, "a.jpg"),
}  # fmt: skip
BAD = {
    "blank": (Image.new("L", (300, 200), 255), "is blank"),
    "huge": (Image.new("1", (9_000, 9_000)), "too many pixels"),
    "clear": (Image.new("RGBA", (200, 200)), "is blank"),
    "no picture": (b"\x89PNG\r\n\x1a\n nothing", "cannot be read"), "empty": (b"", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_all_kinds_are_read_by_the_published_networks(kind, tmp_path):
    model, (picture, file) = reader("step-6"), KINDS[kind]
    picture.save(tmp_path / file)
    digit, chance, _ = sys.modules["hub"].read_picture(tmp_path / file, model)
    assert digit == 5 and chance > 0.9


def test_the_command_answers_bad_pictures_with_a_sentence_each(tmp_path, monkeypatch, capsys):
    command = pytest.importorskip("read", reason="needs huggingface_hub", exc_type=ImportError)
    paths = []
    for name, (content, _) in BAD.items():
        paths.append(tmp_path / f"{name}.png")
        raw = io.BytesIO()
        content.save(raw, "PNG") if isinstance(content, Image.Image) else raw.write(content)
        paths[-1].write_bytes(raw.getvalue())
    paths += [tmp_path / "not there.png", ROOT / "notebooks" / "my_digit.png"]
    monkeypatch.setattr(sys, "argv", ["read.py", *map(str, paths)])
    with pytest.raises(SystemExit) as stopped:  # and no other exception
        command.main()
    said, complaints = capsys.readouterr()
    complaints = complaints.splitlines()
    assert stopped.value.code == 1 and len(complaints) == len(BAD) + 1
    assert "is not a file" in complaints[-1]
    for line, (_, sentence) in zip(complaints, BAD.values(), strict=False):
        assert sentence in line
    assert re.fullmatch(r".*my_digit.png: 5 \(\d+\.\d %\)", said.strip())


# --- The book, and its way to the public ----------------------------------------------------------


@full
def test_the_book_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx_book_theme", reason="needs site/requirements.txt")
    command = [sys.executable, str(SITE / "book.py"), str(tmp_path / "out")]
    subprocess.run(command, check=True)  # a warning is an error there
    pages = {p.stem for p in (tmp_path / "out" / "book" / "notebooks").rglob("*.html")}
    assert pages == {Path(name).name for name in manage.names()}
    assert not (tmp_path / "out" / "jupyter_execute").exists(), "copies that are no pages"
    front = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', front):
        assert (tmp_path / "out" / link).is_file(), link


def test_the_books_links_lead_into_the_book_or_to_the_repository():
    book = pytest.importorskip("book")
    repository, ref = manage.settings()
    public = f"https://github.com/{repository}"
    links = {
        "[a](../README.md)": "[a](../index.md)",
        "[a](09_smallest_network.ipynb#x)": "[a](09_smallest_network.ipynb#x)",
        "[a](../LICENSE)": f"[a]({public}/blob/{ref}/LICENSE)",
        "[a](results/search)": f"[a]({public}/tree/{ref}/notebooks/results/search)",
        "[![Open](b.svg)](https://x.y)": "[Open](https://x.y)",
    }
    for given, wanted in links.items():
        assert book.rewrite(given, "notebooks") == wanted


def test_the_workflow_that_publishes_has_least_rights_and_fixed_actions():
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", one) for one in used)
    build, deploy = text.split("  deploy:")
    assert "permissions: {}" in build and "write" not in build
    assert re.findall(r"(\w[\w-]*): write", deploy) == ["pages", "id-token"]
    assert "your_github_name" not in text and "secrets." not in text
