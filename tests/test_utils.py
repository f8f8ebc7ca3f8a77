"""utils.py: known values, shapes, error messages, and loops that actually learn."""

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import utils


class Pair(nn.Linear):
    """Returns two things where the loops expect one."""

    def __init__(self):
        super().__init__(784, 10)

    def forward(self, images):
        return super().forward(images.flatten(1)), images


def small_model(widths=(4, 6)) -> nn.Sequential:
    a, b = widths
    return nn.Sequential(
        nn.Conv2d(1, a, 3, bias=False),
        nn.BatchNorm2d(a),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3),
        nn.BatchNorm2d(b),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(b, 10),
    )


def train(data, epochs=1, seed=0, **options):
    generator = utils.seed_everything(seed)
    model = small_model((8, 24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    options = {"epochs": epochs, "batch_size": 32, "generator": generator} | options
    return model, utils.fit(model, data, optimizer, **options)


def random_split(images: int) -> utils.Split:
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (images, 28, 28), generator=generator).to(torch.uint8)
    return utils.Split(pixels, torch.arange(images) % 10)


# --- Set-up ---------------------------------------------------------------------------------------


def test_seed_everything_repeats_every_generator():
    first, a = utils.seed_everything(3), torch.rand(2)
    second, b = utils.seed_everything(3), torch.rand(2)
    assert torch.equal(a, b)
    assert torch.equal(torch.rand(2, generator=first), torch.rand(2, generator=second))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", True, None])
def test_seed_everything_rejects(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        utils.seed_everything(seed)


def test_environment_names_device_threads_versions():
    found = utils.environment(torch.device("cpu"))
    assert found["device"].startswith("cpu: ") and found["threads"] >= 1
    assert found["versions"]["torch"] == torch.__version__


# --- Data -----------------------------------------------------------------------------------------


def test_split_is_fixed_disjoint_and_complete():
    train_ids, val_ids = utils.split_indices(60_000)
    torch.manual_seed(99)  # the run's seed has no say
    assert torch.equal(val_ids, utils.split_indices(60_000)[1])
    assert len(train_ids) == 55_000 and len(val_ids) == 5_000
    assert torch.equal(torch.cat([train_ids, val_ids]).sort().values, torch.arange(60_000))


@pytest.mark.parametrize("val_images", [0, -1, 10, 11])
def test_split_rejects(val_images):
    with pytest.raises(ValueError, match="val_images"):
        utils.split_indices(10, val_images)


def test_digits_are_shaped_like_mnist(digits):
    assert digits.name == utils.DIGITS_NAME
    sizes = [len(part.labels) for part in (digits.train, digits.val, digits.test)]
    assert sizes == [1294, 143, 360] and sum(sizes) == 1797
    for part in (digits.train, digits.val, digits.test):
        assert part.images.dtype == torch.uint8 and part.images.shape[1:] == (28, 28)
        assert part.labels.dtype == torch.int64
        assert part.images[:, :4].max() == 0  # the frame
        assert part.images.max() > 200
    pixels = digits.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(digits.mean)
    normalized = digits.normalize(pixels)
    assert normalized.mean().abs() < 1e-4 and abs(normalized.std() - 1) < 1e-4


@given(images=st.integers(1, 50), batch_size=st.integers(1, 60), shuffled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_batches_give_each_image_exactly_once(images, batch_size, shuffled):
    split = utils.Split(
        torch.arange(images, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28),
        torch.arange(images) % 10,
    )
    generator = torch.Generator().manual_seed(0) if shuffled else None
    parts = list(utils.batches(split, batch_size, generator))
    ids = torch.cat([(x[:, 0, 0, 0] * 255).round().long() for x, _ in parts])
    assert sorted(ids.tolist()) == list(range(images))
    assert torch.equal(torch.cat([y for _, y in parts]), ids % 10)  # labels stay with their images
    assert all(len(y) == batch_size for _, y in parts[:-1])
    assert all(x.shape[1:] == (1, 28, 28) and x.min() >= 0 and x.max() <= 1 for x, _ in parts)
    if not shuffled:
        assert ids.tolist() == list(range(images))


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "message"),
    [
        (torch.zeros(3, 28, 28), torch.zeros(3).long(), 2, "uint8"),
        (torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.zeros(3).long(), 2, "N, H, W"),
        (torch.zeros(0, 28, 28, dtype=torch.uint8), torch.zeros(0).long(), 2, "N > 0"),
        (torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(2).long(), 2, "labels"),
        (torch.zeros(3, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 10]), 2, "0-9"),
        (torch.zeros(3, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, -1]), 2, "0-9"),
        (torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3).long(), 0, "batch_size"),
    ],
)
def test_batches_reject(images, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        list(utils.batches(utils.Split(images, labels), batch_size))


# --- Loops ----------------------------------------------------------------------------------------


@given(images=st.integers(1, 60), batch_size=st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_evaluate_is_exact_whatever_the_batch_size(images, batch_size):
    torch.manual_seed(0)
    split, model = random_split(images), small_model()
    data = utils.Data(split, split, split, "test", 0.5, 0.3)
    found = utils.evaluate(model, data, split, batch_size)
    model.eval()
    with torch.no_grad():
        logits = model((split.images[:, None] / 255 - 0.5) / 0.3)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-4)
    correct = (logits.argmax(1) == split.labels).sum().item()
    assert (found.correct, found.accuracy) == (correct, pytest.approx(100 * correct / images))


def test_evaluate_keeps_mode_and_weights(digits):
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    utils.evaluate(model, digits, digits.val)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    utils.evaluate(model.eval(), digits, digits.val)
    assert not model.training


def test_a_known_model_has_a_known_loss():
    split = random_split(30)
    data = utils.Data(split, split, split, "test", 0.0, 1.0)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(constant[1].weight)
    nn.init.zeros_(constant[1].bias)
    found = utils.evaluate(constant, data, split, batch_size=7)
    assert found.loss == pytest.approx(math.log(10), rel=1e-5)  # ten equal probabilities
    assert found.accuracy == pytest.approx(10.0)  # argmax takes the first: digit 0


def test_training_divides_by_images_not_batches():
    split = random_split(10)
    data = utils.Data(split, split, split, "test", 0.5, 0.3)
    torch.manual_seed(0)
    model = small_model()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    loss, accuracy = utils.train_epoch(
        nn.Sequential(*[m for m in model if not isinstance(m, nn.BatchNorm2d | nn.Dropout)]),
        data,
        frozen,
        batch_size=8,  # 8 + 2: a mean of batch means would weigh the last two fourfold
        generator=torch.Generator().manual_seed(0),
    )
    plain = nn.Sequential(*[m for m in model if not isinstance(m, nn.BatchNorm2d | nn.Dropout)])
    expected = utils.evaluate(plain, data, split)
    assert loss == pytest.approx(expected.loss, rel=1e-5)
    assert accuracy == pytest.approx(expected.accuracy)


def test_fit_learns_and_repeats_bit_for_bit(digits):
    model, history = train(digits, epochs=6)
    assert set(history) == set(utils.HISTORY_KEYS)
    assert all(len(values) == 6 for values in history.values())
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert max(history["val_accuracy"]) > 50  # chance is 10; it jumps about, in each release anew
    again, repeated = train(digits, epochs=6)
    for key in set(history) - {"seconds"}:
        assert history[key] == repeated[key]
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert train(digits, seed=1)[1]["train_loss"][0] != history["train_loss"][0]


def test_fit_uses_augmentation_and_steps_the_scheduler_per_batch(digits):
    seen = []

    def augment(images, generator):
        seen.append(len(images))
        return images

    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001 * step)
    options = {"augment": augment, "scheduler": scheduler}
    utils.fit(model, digits, optimizer, 1, 100, torch.Generator(), **options)
    assert seen == [100] * 12 + [94]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.013)


def test_fit_tracks_the_test_set_only_when_asked(digits):
    assert "test_accuracy" not in train(digits)[1]
    assert len(train(digits, test_every_epoch=True)[1]["test_accuracy"]) == 1


def test_a_loss_that_is_not_finite_names_epoch_and_batch(digits):
    calls = []

    def poison(images, generator):
        calls.append(1)
        return images * (float("nan") if len(calls) == 3 else 1)

    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 3 of 41"):
        train(digits, augment=poison)


def test_zero_epochs_are_refused(digits):
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        train(digits, epochs=0)


def test_an_interrupt_leaves_a_usable_history(digits, capsys):
    calls = []

    def stop(images, generator):
        calls.append(1)
        if len(calls) == 60:  # in the second epoch
            raise KeyboardInterrupt
        return images

    _, history = train(digits, epochs=3, augment=stop)
    assert all(len(values) == 1 for values in history.values())
    assert "stopped by hand after 1 of 3 epochs" in capsys.readouterr().out


# --- Dropout by gaps ----------------------------------------------------------------------------


@given(count=st.integers(1, 5_000), share=st.floats(0.005, 0.95), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_places_are_distinct_sorted_and_inside(count, share, seed):
    torch.manual_seed(seed)
    places = utils.chosen_places(count, share)
    assert ((places >= 0) & (places < count)).all()
    assert (places.diff() > 0).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_places_have_the_distribution_of_independent_draws(share):
    """Mean and variance of the number chosen; every place, and every neighbour pair, alike."""
    torch.manual_seed(0)
    count, times = 200, 4_000
    chosen = torch.zeros(times, count)
    for row in chosen:
        row[utils.chosen_places(count, share)] = 1
    numbers, sigma = chosen.sum(1), math.sqrt(count * share * (1 - share))
    assert abs(numbers.mean() - count * share) < 5 * sigma / math.sqrt(times)
    assert numbers.std() == pytest.approx(sigma, rel=0.07)
    each = chosen.mean(0)
    assert (each - share).abs().max() < 5 * math.sqrt(share * (1 - share) / times)
    pairs = (chosen[:, 1:] * chosen[:, :-1]).mean()
    error = math.sqrt(share**2 * (1 - share**2) / times / count)
    assert abs(pairs - share**2) < 6 * error + 1e-4


def test_more_gaps_are_drawn_when_the_first_ones_do_not_reach_the_end(monkeypatch):
    short = lambda gaps, share: gaps.fill_(1)  # noqa: E731  (each place: gaps of one)
    monkeypatch.setattr(torch.Tensor, "geometric_", short)
    assert utils.chosen_places(500, 0.01).tolist() == list(range(500))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient_layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_zero_where_the_output_is(layout, gradient_layout):
    torch.manual_seed(1)
    x = torch.ones(4, 6, 5, 7).contiguous(memory_format=layout).requires_grad_()
    layer = utils.SparseDropout(0.2)
    y = layer(x)
    assert y.shape == x.shape and y.stride() == x.stride()
    values = set(y.detach().flatten().tolist())
    assert values == {0.0, 1.25}
    y.backward(torch.ones_like(y).contiguous(memory_format=gradient_layout))
    assert torch.equal(x.grad, y.detach())  # ones in, ones back: the same mask and scale
    assert torch.equal(x.detach(), torch.ones_like(x))  # nothing in place
    assert layer.eval()(x) is x and utils.SparseDropout(0.0).train()(x) is x


def test_the_gradient_by_differences():
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer = utils.SparseDropout(0.3)

    def zeroed(values):
        torch.manual_seed(7)
        return layer(values)

    assert torch.autograd.gradcheck(zeroed, (x,))


def test_sparse_dropout_repeats_with_the_seed_and_differs_between_calls():
    layer, x = utils.SparseDropout(0.1), torch.ones(50, 50)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_are_torchs_own(share):
    x = torch.ones(3, 4)
    assert torch.equal(utils.SparseDropout(share)(x), x * (1 - share))


def test_sparse_dropout_counts_as_dropout():
    model = nn.Sequential(nn.Conv2d(1, 10, 28), utils.SparseDropout(0.02), nn.Flatten())
    assert utils._ingredients(model)[1] == 0.02


@pytest.mark.parametrize("shape", [(0, 4), (7,), (2, 3, 1, 1)])
def test_sparse_dropout_takes_any_shape(shape):
    assert utils.SparseDropout(0.5)(torch.ones(shape)).shape == shape


def test_sparse_dropout_takes_a_slice_and_leaves_the_rest():
    whole = torch.ones(4, 8, 5, 5)
    part = whole[:, ::2, 1:4]
    found = utils.SparseDropout(0.4)(part)
    assert found.shape == part.shape
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert torch.equal(whole, torch.ones_like(whole))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_sparse_dropout_rejects(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        utils.SparseDropout(p)


# --- A look at the network ------------------------------------------------------------------------


def test_layer_table_of_a_known_network():
    rows = utils.layer_table(small_model())
    assert [row.receptive_field for row in rows] == [3, 3, 3, 4, 8, 8, 8, 8, 28, 28, 28]
    assert rows[0].output == (4, 26, 26) and rows[0].macs == 26 * 26 * 4 * 9
    assert rows[4].macs == 11 * 11 * 6 * 4 * 9 and rows[4].parameters == 4 * 6 * 9 + 6
    assert rows[-1].macs == 60 and rows[-1].parameters == 70
    assert sum(row.parameters for row in rows) == utils.count_parameters(small_model())


@given(
    kernels=st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=4),
    strides=st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4),
    dilations=st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_receptive_field_against_the_gradient(kernels, strides, dilations):
    layers = [
        nn.Conv2d(1, 1, k, stride=s, dilation=d, bias=False)
        for k, s, d in zip(kernels, strides, dilations, strict=False)
    ]
    model = nn.Sequential(*layers)
    for layer in layers:
        nn.init.ones_(layer.weight)
    # 160: four dilated kernels of 5 with strides of 2 see at most 121 pixels
    image = torch.ones(1, 1, 160, 160, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    touched = image.grad[0, 0].nonzero()
    extent = int((touched.max(0).values - touched.min(0).values + 1).max())
    assert utils.layer_table(model, (1, 160, 160))[-1].receptive_field == extent


def test_torchsummary_agrees_and_leaves_no_trace(capsys):
    model = small_model()
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert utils.torchsummary_table(model) == utils.count_parameters(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert "Conv2d-1" in capsys.readouterr().out


# --- Records --------------------------------------------------------------------------------------


@pytest.fixture
def finished(digits):
    """A trained model and the record of its run."""
    model, history = train(digits)
    test = utils.evaluate(model, digits, digits.test)
    settings_ = {"batch_size": 32}
    return model, utils.make_record(
        "steps", "toy", 0, model, digits, history, test, settings_, epochs=1
    )


def test_a_record_survives_the_disk(finished, tmp_path):
    _, record = finished
    assert set(record) >= utils.RECORD_KEYS
    assert record["test_correct"] == 360 - len(record["test_errors"])
    path = utils.save_record(record, tmp_path)
    assert utils.load_record(path) == record
    assert [p.name for p in path.parent.iterdir()] == ["toy-seed0.json"]  # no temporary file left
    assert utils.load_records("steps", utils.DIGITS_NAME, tmp_path) == [record]
    assert utils.load_records("steps", "MNIST", tmp_path) == []


def test_only_complete_runs_on_mnist_are_published(finished, tmp_path):
    published = finished[1] | {"dataset": "MNIST"}
    assert utils.record_path(published, tmp_path) == tmp_path / "steps" / "toy-seed0.json"
    for change in ({"smoke_test": True}, {"dataset": utils.DIGITS_NAME}, {"epochs": 2}):
        path = utils.record_path(published | change, tmp_path)
        assert path == tmp_path / "scratch" / "steps" / "toy-seed0.json"


def test_of_several_seeds_the_one_asked_for_is_found_or_else_the_lowest(finished, tmp_path):
    _, record = finished
    for seed in (3, 0, 12):
        utils.save_record(record | {"seed": seed}, tmp_path)
    for asked, found in ((0, 0), (3, 3), (12, 12), (5, 0)):
        named = utils.records_by_name("steps", utils.DIGITS_NAME, asked, tmp_path)
        assert {name: r["seed"] for name, r in named.items()} == {record["name"]: found}


def test_records_reject_what_is_missing_or_not_finite(finished, tmp_path):
    _, record = finished
    with pytest.raises(ValueError, match=r"lacks \['seed'\]"):
        utils.save_record({k: v for k, v in record.items() if k != "seed"}, tmp_path)
    with pytest.raises(ValueError):
        utils.save_record(record | {"test_accuracy": float("nan")}, tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    for content in ("{", "[]", json.dumps({"study": "steps"}), ""):
        damaged = tmp_path / "damaged.json"
        damaged.write_text(content)
        with pytest.raises(ValueError, match=r"damaged\.json is not a record"):
            utils.load_record(damaged)


KILLED_AT_EACH_EVENT = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import safetensors.torch, torch, utils
results, old = Path(sys.argv[2]), utils.load_record(sys.argv[3])
model, new = torch.nn.Linear(3, 3), old | {"seconds": 0.0}
path = utils.record_path(old, results)

def write_and_die(moment):
    left = [moment]
    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
    sys.addaudithook(count)  # opening, writing to, renaming and removing a file are all events
    utils.save_record(utils.save_weights(model, new, results), results)
    os._exit(0)

moments = 0
while True:
    moments += 1
    child = os.fork() or write_and_die(moments)
    killed = os.waitpid(child, 0)[1] != 0
    found = utils.load_record(path)
    assert found["seconds"] == 0.0 or (killed and found == old), moments
    weights = path.with_suffix(".safetensors")
    if weights.exists():
        safetensors.torch.load_file(weights)
    if not killed:
        break
print(moments - 1)
"""


def test_a_kill_at_any_moment_leaves_whole_files(finished, tmp_path):
    """Killed at each operation on a file, in turn: the record is the old one or the new one."""
    _, record = finished
    path = utils.save_record(record, tmp_path)
    command = [sys.executable, "-c", KILLED_AT_EACH_EVENT, utils.HERE, tmp_path, path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
    assert len(utils.load_records("steps", utils.DIGITS_NAME, tmp_path)) == 1


def test_weights_come_back_and_damage_is_named(finished, tmp_path):
    model, record = finished
    record = utils.save_weights(model, record, tmp_path)
    loaded = utils.load_weights(small_model((8, 24)), record, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="holds another network"):
        utils.load_weights(small_model((4, 7)), record, tmp_path)
    path = utils.record_path(record, tmp_path).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not belong to its record"):
        utils.load_weights(small_model((8, 24)), record, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        utils.load_weights(small_model((8, 24)), record, tmp_path)


def test_the_five_rules_are_judged(finished):
    model, record = finished
    rows = utils.judge(record | {"dataset": "MNIST", "test_accuracy": 99.4}, model)
    assert [verdict for *_, verdict in rows] == ["pass"] * 5
    assert utils.judge(record, model)[0][2] == "not judged: not MNIST"
    smoke = record | {"dataset": "MNIST", "smoke_test": True}
    assert utils.judge(smoke, model)[0][2] == "not judged: smoke test"
    stopped = record | {"dataset": "MNIST", "epochs": 3}
    assert utils.judge(stopped, model)[0][2] == "not judged: stopped early"
    as_convolution = nn.Sequential(*model[:-1], nn.Dropout2d(0.1), nn.Conv2d(24, 10, 1))
    *_, dropout, head = utils.judge(record, as_convolution)
    assert dropout[1:] == ("batch norm, dropout 0.1", "pass") and head[2] == "pass"
    bad = record | {"dataset": "MNIST", "test_accuracy": 99.39, "parameters": 20_000, "epochs": 20}
    bad["history"] = {"seconds": [1.0] * 20}
    plain = nn.Sequential(nn.Conv2d(1, 10, 28), nn.Dropout(0.0), nn.Flatten())
    assert [verdict for *_, verdict in utils.judge(bad, plain)] == ["FAIL"] * 5


# --- Plots ----------------------------------------------------------------------------------------


def test_plots_draw_what_they_are_given(finished, digits):
    import matplotlib.pyplot as plt

    model, record = finished
    utils.plot_curves(record, before=record | {"name": "other"})
    assert len(plt.gcf().axes[0].lines) == 4
    utils.plot_steps([record, record | {"name": "other"}])
    test = utils.evaluate(model, digits, digits.test)
    utils.plot_mistakes(digits, test, limit=4)
    assert "read" in plt.gcf().axes[0].get_title()
    with pytest.raises(ValueError, match="3 images, but 2 titles"):
        utils.plot_digits(digits.test.images[:3], ["a", "b"])
    plt.close("all")


# --- Bad input ------------------------------------------------------------------------------------


def test_a_model_on_another_device_is_named(digits):
    elsewhere = small_model().to("meta")
    with pytest.raises(ValueError, match=r"share one device, found \['cpu', 'meta'\]"):
        utils.evaluate(elsewhere, digits, digits.val)
    optimizer = torch.optim.SGD(elsewhere.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="share one device"):
        utils.fit(elsewhere, digits, optimizer, 1, 32, torch.Generator())


def test_damaged_weights_do_not_evaluate(digits):
    model = small_model()
    nn.init.constant_(model[-1].weight, float("nan"))
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        utils.evaluate(model, digits, digits.val)


def test_a_negative_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"Invalid learning rate: -0\.1"):  # by PyTorch
        torch.optim.SGD(small_model().parameters(), lr=-0.1)


@pytest.mark.parametrize("shape", [(28, 28), (3, 28, 28), (1, 4, 4)])
def test_layer_table_names_a_shape_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"input_shape must be|does not fit the model"):
        utils.layer_table(small_model(), shape)


def test_an_empty_history_makes_no_record(finished, digits):
    model, record = finished
    test = utils.evaluate(model, digits, digits.test)
    arguments = ("steps", "toy", 0, model, digits)
    with pytest.raises(ValueError, match="no epoch was completed"):
        utils.make_record(*arguments, {"seconds": []}, test, {"batch_size": 1}, 1)
    with pytest.raises(ValueError, match="batch_size"):
        utils.make_record(*arguments, record["history"], test, {}, 1)


def test_plots_refuse_nothing_and_allow_no_mistakes(finished, digits, capsys):
    with pytest.raises(ValueError, match="at least one record"):
        utils.plot_steps([])
    test = utils.evaluate(finished[0], digits, digits.test)
    perfect = test._replace(logits=torch.eye(10)[digits.test.labels], correct=360)
    utils.plot_mistakes(digits, perfect)
    assert "no mistakes" in capsys.readouterr().out


class Good:
    """What the cases below spoil, one thing at a time."""

    def __init__(self, data, model, record, folder):
        self.data, self.model, self.record, self.folder = data, model, record, folder
        self.test = utils.evaluate(model, data, data.test)
        self.short = self.test._replace(logits=self.test.logits[:5])
        self.seven = nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
        self.pair = Pair()
        self.colour = nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())  # takes three channels
        self.draws = torch.Generator()

    def optimizer(self, model=None) -> torch.optim.SGD:
        return torch.optim.SGD((model or self.model).parameters(), lr=0.1)

    def epoch(self, model=None, batch_size=400, **options) -> tuple[float, float]:
        model = self.model if model is None else model
        return utils.train_epoch(
            model, self.data, self.optimizer(model), batch_size, self.draws, **options
        )

    def fit(self, epochs=1, batch_size=400) -> dict:
        return utils.fit(self.model, self.data, self.optimizer(), epochs, batch_size, self.draws)

    def make(self, test=None, history=None, **hyperparameters) -> dict:
        history = self.record["history"] if history is None else history
        arguments = ("steps", "toy", 0, self.model, self.data, history, test or self.test)
        return utils.make_record(*arguments, hyperparameters, epochs=1)

    def damaged(self) -> str:
        (self.folder / "scratch" / "steps").mkdir(parents=True)
        path = self.folder / "scratch" / "steps" / "damaged.json"
        path.write_text('{"study": "steps"')
        return str(path)


LACKS, NO_MODEL = r"record lacks \['.*'\]", "model must be a torch.nn.Module, got "
NO_BATCH = "batch_size must be a whole number, at least 1, got "
BAD_INPUT: list[tuple[str, Callable[[Good], object], type[Exception], str]] = [
    ("seed_everything", lambda g: utils.seed_everything(-1), ValueError, "integer in .*got -1"),
    ("environment", lambda g: utils.environment("gpu"), RuntimeError, "Expected one of cpu"),
    ("split_indices", lambda g: utils.split_indices(9, 9), ValueError, "0 < val_images < 9, got 9"),
    ("split_indices", lambda g: utils.split_indices(9, 2.5), ValueError, "got 2.5"),
    ("verify_files", lambda g: utils.verify_files(g.folder), FileNotFoundError, "is missing"),
    ("download_mnist", lambda g: utils.download_mnist("/dev/null/x"), OSError, "cannot keep MNIST"),
    ("load_mnist", lambda g: utils.load_mnist("gpu"), RuntimeError, "Expected one of cpu"),
    ("load_mnist", lambda g: utils.load_mnist(val_images=0), ValueError, "0 < val_images"),
    ("batches", lambda g: [*utils.batches(random_split(3), 0)], ValueError, NO_BATCH + "0"),
    ("train_epoch", lambda g: g.epoch(batch_size=0), ValueError, NO_BATCH + "0"),
    ("train_epoch", lambda g: g.epoch(g.seven), ValueError, r"be \[2, 10\].*got \[2, 7\]"),
    (
        "train_epoch",
        lambda g: g.epoch(g.colour),
        ValueError,
        r"take images of shape \[1, 28, 28\]: ",
    ),
    ("train_epoch", lambda g: g.epoch(augment=lambda x, _: x[:1]), ValueError, r"got \[1, 10\]"),
    (
        "train_epoch",
        lambda g: g.epoch(augment=lambda x, _: x * math.nan),
        FloatingPointError,
        "epoch 1, batch 1 of 4",
    ),
    ("evaluate", lambda g: utils.evaluate(None, g.data, g.data.val), TypeError, NO_MODEL + "None"),
    ("evaluate", lambda g: utils.evaluate(g.seven, g.data, g.data.val), ValueError, r"\[2, 7\]"),
    (
        "evaluate",
        lambda g: utils.evaluate(g.colour, g.data, g.data.val),
        ValueError,
        "not take images",
    ),
    ("evaluate", lambda g: utils.evaluate(g.model, g.data, g.data.val, 0), ValueError, NO_BATCH),
    ("fit", lambda g: g.fit(epochs=0), ValueError, "epochs must be at least 1, got 0"),
    ("fit", lambda g: g.fit(epochs=1.5), ValueError, "epochs must be at least 1, got 1.5"),
    ("fit", lambda g: g.fit(batch_size=2.5), ValueError, NO_BATCH + "2.5"),
    ("chosen_places", lambda _: utils.chosen_places(-1, 0.1), ValueError, "got -1 and 0.1"),
    ("chosen_places", lambda _: utils.chosen_places(2.0, 0.1), ValueError, "got 2.0 and 0.1"),
    ("chosen_places", lambda _: utils.chosen_places(5, 0.0), ValueError, "got 5 and 0.0"),
    ("chosen_places", lambda _: utils.chosen_places(5, 1.0), ValueError, "got 5 and 1.0"),
    ("count_parameters", lambda g: utils.count_parameters("a"), TypeError, NO_MODEL + "str"),
    ("layer_table", lambda g: utils.layer_table(nn.Linear), TypeError, NO_MODEL + "type"),
    ("print_layers", lambda g: utils.print_layers([1]), ValueError, r"Layer, got \[1\]"),
    (
        "torchsummary_table",
        lambda g: utils.torchsummary_table(g.model, (3, 9, 9)),
        ValueError,
        r"\(3, 9, 9\) does not fit the model",
    ),
    ("make_record", lambda g: g.make(), ValueError, "must name the batch_size"),
    ("make_record", lambda g: g.make(g.short, batch_size=1), ValueError, r"got \[5, 10\]"),
    ("make_record", lambda g: g.make(history={}, batch_size=1), ValueError, "no epoch"),
    ("record_path", lambda g: utils.record_path({"seed": 0}), ValueError, LACKS),
    ("record_path", lambda g: utils.record_path(g.record | {"study": "../x"}), ValueError, "study"),
    ("save_record", lambda g: utils.save_record({}, g.folder), ValueError, LACKS),
    ("load_record", lambda g: utils.load_record(g.damaged()), ValueError, "is not a record: "),
    (
        "load_records",
        lambda g: g.damaged() and utils.load_records("steps", utils.DIGITS_NAME, g.folder),
        ValueError,
        "damaged.json is not a record: ",
    ),
    (
        "records_by_name",
        lambda g: g.damaged() and utils.records_by_name("steps", utils.DIGITS_NAME, 0, g.folder),
        ValueError,
        "damaged.json is not a record: ",
    ),
    ("save_weights", lambda g: utils.save_weights(g.model, {}, g.folder), ValueError, LACKS),
    ("save_weights", lambda g: utils.save_weights(1, g.record, g.folder), TypeError, NO_MODEL),
    ("load_weights", lambda g: utils.load_weights(g.model, {}, g.folder), ValueError, LACKS),
    ("load_weights", lambda g: utils.load_weights(1, g.record, g.folder), TypeError, NO_MODEL),
    ("judge", lambda g: utils.judge({}, g.model), ValueError, LACKS),
    ("record_path", lambda g: utils.record_path(g.record | {"seed": "../0"}), ValueError, "seed"),
    ("record_path", lambda g: utils.record_path(g.record | {"history": {}}), ValueError, "seconds"),
    ("layer_table", lambda g: utils.layer_table(g.model, 28), ValueError, r"\(C, H, W\), got 28"),
    ("train_epoch", lambda g: g.epoch(g.pair), ValueError, "a tensor of logits, got tuple"),
    ("judge", lambda g: utils.judge(g.record, None), TypeError, NO_MODEL),
    ("print_rules", lambda g: utils.print_rules([("a",)], "x"), ValueError, "expected 3, got 1"),
    (
        "plot_digits",
        lambda g: utils.plot_digits(torch.zeros(1, 1, 28, 28), ["a"]),
        ValueError,
        r"\[N, 28, 28\], got \[1, 1, 28, 28\]",
    ),
    ("plot_curves", lambda g: utils.plot_curves({}), ValueError, LACKS),
    ("plot_mistakes", lambda g: utils.plot_mistakes(g.data, g.short), ValueError, "360, 10"),
    ("plot_steps", lambda g: utils.plot_steps([{}]), ValueError, LACKS),
    ("save_figure", lambda g: utils.save_figure("a", g.data, None), ValueError, "got NoneType"),
    ("save_figure", lambda g: utils.save_figure("../a", g.data, None), ValueError, "a file's stem"),
]
NO_INPUT = {"is_smoke_test", "pick_device", "use_style"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*case, id=f"{name}-{i}") for i, (name, *case) in enumerate(BAD_INPUT)],
)
def test_bad_input_is_named(finished, digits, tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(Good(digits, *finished, tmp_path))


def test_every_public_function_has_a_case_of_bad_input():
    members = inspect.getmembers(utils, inspect.isfunction)
    public = {n for n, f in members if f.__module__ == "utils" and not n.startswith("_")}
    assert public == {name for name, *_ in BAD_INPUT} | NO_INPUT
    assert all(not inspect.signature(getattr(utils, name)).parameters for name in NO_INPUT)
