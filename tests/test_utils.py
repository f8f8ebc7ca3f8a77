"""utils.py: against PyTorch and brute force first, then what it refuses."""

import os
import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mnist
import utils


def small_model(widths: tuple[int, int] = (4, 6)) -> nn.Sequential:
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


def random_data(images: int, mean: float = 0.5, std: float = 0.3) -> utils.Data:
    """Random pixels in all three splits; each split has pictures of its own."""
    draws = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (3, images, 28, 28), generator=draws).to(torch.uint8)
    labels = torch.randint(0, 10, (3, images), generator=draws)
    return utils.Data(*map(utils.Split, pixels, labels), "test", mean, std)


def train(data: utils.Data, epochs: int = 1, seed: int = 0, **options) -> tuple[nn.Module, dict]:
    generator = utils.seed_everything(seed)
    model = small_model((8, 24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loader = data.loader("train", 32, generator=generator, augment=options.pop("augment", None))
    return model, utils.fit(model, loader, data.loader("val"), optimizer, epochs, **options)


# --- Seed and data --------------------------------------------------------------------------------


def test_seed_everything_repeats_every_generator():
    def draws(seed: int) -> list[float]:
        generator = utils.seed_everything(seed)
        own = torch.rand(1, generator=generator).item()
        return [own, torch.rand(1).item(), random.random(), np.random.rand()]  # noqa: NPY002

    assert draws(3) == draws(3)
    assert not set(draws(3)) & set(draws(4))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", True, None])
def test_seed_everything_rejects(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        utils.seed_everything(seed)


def test_split_is_fixed_disjoint_and_complete():
    train_ids, val_ids = utils.split_indices(60_000)
    torch.manual_seed(99)  # the run's seed has no say
    assert torch.equal(val_ids, utils.split_indices(60_000)[1])
    assert len(train_ids) == 55_000 and len(val_ids) == 5_000
    assert torch.equal(torch.cat([train_ids, val_ids]).sort().values, torch.arange(60_000))
    assert train_ids[:5].tolist() == [11331, 41365, 15227, 3162, 10062]  # as in every record


@pytest.mark.parametrize("val_images", [0, -1, 10, 11, 2.5])
def test_split_rejects(val_images):
    with pytest.raises(ValueError, match="0 < val_images < 10"):
        utils.split_indices(10, val_images)


def test_digits_are_shaped_like_mnist(digits):
    assert digits.name == mnist.STAND_IN
    parts = (digits.train, digits.val, digits.test)
    assert [len(part) for part in parts] == [1294, 143, 360]
    for part in parts:
        assert part.images.dtype == torch.uint8 and part.images.shape[1:] == (28, 28)
        assert part.labels.dtype == torch.int64
        assert part.images[:, :4].max() == 0 and part.images.max() > 200
    everything = torch.cat([part.images for part in parts]).flatten(1)
    assert len(everything.unique(dim=0)) > 1_790, "no image in two splits"
    pixels = digits.train.images.float() / 255
    assert (digits.mean, digits.std) == pytest.approx((pixels.mean().item(), pixels.std().item()))


def test_the_smoke_test_keeps_a_few_images_but_the_whole_mean(digits, monkeypatch):
    monkeypatch.setenv("SMOKE_TEST", "1")
    few = utils.load_mnist()
    assert [len(few.train), len(few.val), len(few.test)] == [1294, 143, 360]  # all there are
    assert (few.mean, few.std) == (digits.mean, digits.std)


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="needs MNIST")
def test_mnist_is_split_as_published(monkeypatch):
    monkeypatch.delenv("SMOKE_TEST", raising=False)
    data = utils.load_mnist()
    assert [len(data.train), len(data.val), len(data.test)] == [55_000, 5_000, 10_000]
    assert (data.mean, data.std) == pytest.approx((0.1306, 0.3081), abs=1e-4)
    assert torch.bincount(data.test.labels).tolist()[:3] == [980, 1135, 1032]  # the known counts


# --- The loader -----------------------------------------------------------------------------------


@given(images=st.integers(1, 50), batch_size=st.integers(1, 60), shuffled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_loader_gives_each_image_exactly_once(images, batch_size, shuffled):
    pixels = torch.arange(images, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 28, 28)
    split = utils.Split(pixels, torch.arange(images) % 10)
    data = utils.Data(split, split, split, "test", 0.0, 1 / 255)
    generator = torch.Generator().manual_seed(0) if shuffled else None
    loader = data.loader("train", batch_size, generator=generator)
    parts = list(loader)
    ids = torch.cat([x[:, 0, 0, 0].round().long() for x, _ in parts])
    assert sorted(ids.tolist()) == list(range(images))
    assert torch.equal(torch.cat([y for _, y in parts]), ids % 10)  # labels stay with their images
    assert len(parts) == len(loader) and all(len(y) == batch_size for _, y in parts[:-1])
    assert shuffled or ids.tolist() == list(range(images))


def test_a_loader_normalises_after_the_augmentation_and_shuffles_anew():
    data, seen = random_data(40), []

    def darker(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append((images.min() >= 0 and images.max() <= 1, generator))
        return images / 2

    generator = torch.Generator().manual_seed(1)
    loader = data.loader("val", 16, generator=generator, augment=darker)
    orders = [torch.cat([y for _, y in loader]).tolist() for _ in range(3)]
    assert orders[0] != orders[1] != orders[2] and orders[0] != data.val.labels.tolist()
    assert len(seen) == 9 and all(inside and own is generator for inside, own in seen)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:16]
    found, labels = next(
        iter(data.loader("val", 16, generator=torch.Generator().manual_seed(1), augment=darker))
    )
    expected = (data.val.images[order, None] / 255 / 2 - 0.5) / 0.3
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(labels, data.val.labels[order])


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_each_name_is_its_own_split(part):
    data = random_data(12)
    (images, labels), *rest = data.loader(part)
    own = getattr(data, part)
    assert not rest and torch.equal(labels, own.labels)
    assert torch.allclose(images, data.normalize(own.images[:, None] / 255))
    (few, _), *_ = data.loader(own[:5])
    assert torch.equal(few, images[:5])


BLANK = torch.zeros(3, 28, 28, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "size", "message"),
    [
        (BLANK.float(), torch.zeros(3).long(), 2, "images must be uint8"),
        (BLANK[:, None], torch.zeros(3).long(), 2, "N, H, W"),
        (BLANK[:0], torch.zeros(0).long(), 2, "N > 0"),
        (BLANK, torch.zeros(2).long(), 2, "labels must be 3 int64"),
        (BLANK, torch.tensor([0, 1, 10]), 2, "0-9, got 0 to 10"),
        (BLANK, torch.tensor([0, 1, -1]), 2, "0-9, got -1 to 1"),
        (BLANK, torch.zeros(3).long(), 0, "batch_size must be a whole number, at least 1, got 0"),
        (BLANK, torch.zeros(3).long(), 2.5, "batch_size must be .* got 2.5"),
    ],
)
def test_a_loader_rejects(images, labels, size, message):
    with pytest.raises(ValueError, match=message):
        random_data(3).loader(utils.Split(images, labels), size)


def test_a_loader_rejects_what_it_does_not_know():
    with pytest.raises(ValueError, match="no split is called 'valid'"):
        random_data(3).loader("valid")
    with pytest.raises(ValueError, match="augment needs a generator"):
        random_data(3).loader("train", augment=lambda x, _: x)


# --- Training and evaluation ----------------------------------------------------------------------


@given(images=st.integers(1, 60), batch_size=st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_evaluate_is_exact_whatever_the_batch_size(images, batch_size):
    torch.manual_seed(0)
    data, model = random_data(images), small_model()
    found = utils.evaluate(model, data.loader("test", batch_size))
    model.eval()
    with torch.no_grad():
        logits = model((data.test.images[:, None] / 255 - 0.5) / 0.3)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-4)
    correct = (logits.argmax(1) == data.test.labels).sum().item()
    assert (found.correct, found.accuracy) == (correct, pytest.approx(100 * correct / images))


def test_evaluate_keeps_mode_and_weights(digits):
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    utils.evaluate(model, digits.loader("val"))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    utils.evaluate(model.eval(), digits.loader("val"))
    assert not model.training


def test_evaluate_gives_the_mode_back_after_an_error(digits):
    class Fails(nn.Linear):
        def forward(self, images):
            if len(images) > 2:  # not at the door
                raise RuntimeError("no memory")
            return super().forward(images.flatten(1))

    model = Fails(784, 10).train()
    with pytest.raises(RuntimeError, match="no memory"):
        utils.evaluate(model, digits.loader("val"))
    assert model.training


def by_hand(data: utils.Data, seed: int, epochs: int) -> tuple[nn.Module, list[float]]:
    """Training as tutorials write it, in the order of the images that the seed gives."""
    generator = utils.seed_everything(seed)
    model = small_model((8, 24)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(epochs):
        order, total = torch.randperm(len(data.train), generator=generator), 0.0
        for ids in order.split(32):
            images = data.normalize(data.train.images[ids].unsqueeze(1).float() / 255)
            loss = nn.CrossEntropyLoss()(model(images), data.train.labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(ids)
        losses.append(total / len(data.train))
    return model, losses


def test_fit_is_the_loop_that_one_would_write(digits):
    """The same weights to the last bit as a loop by hand, twice; another seed, other weights."""
    model, history = train(digits, epochs=3)
    reference, losses = by_hand(digits, seed=0, epochs=3)
    pairs = zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert history["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert history["train_loss"][-1] < 0.8 * history["train_loss"][0]
    assert [len(values) for values in history.values()] == [3] * 6
    again = train(digits, epochs=3)[1]
    assert all(history[key] == again[key] for key in set(history) - {"seconds"})
    assert train(digits, seed=1)[1]["train_loss"][0] != history["train_loss"][0]


def test_fit_validates_on_the_validation_images(digits):
    model, history = train(digits, epochs=2)
    found = utils.evaluate(model, digits.loader("val"))
    assert (history["val_loss"][-1], history["val_accuracy"][-1]) == (found.loss, found.accuracy)
    assert utils.evaluate(model, digits.loader("test")).loss != found.loss


def test_training_divides_by_images_not_batches():
    data = random_data(10)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    # 8 + 2: a mean of batch means would weigh the last two fourfold
    loader = data.loader("train", 8, generator=torch.Generator().manual_seed(0))
    expected = utils.evaluate(model, data.loader("train"))
    loss, accuracy = utils.train_epoch(model, loader, frozen)
    assert (loss, accuracy) == pytest.approx((expected.loss, expected.accuracy), rel=1e-5)


def test_the_scheduler_steps_per_batch_and_the_rate_is_noted_first(digits):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001 * (step + 1))
    loader = digits.loader("train", 100, generator=torch.Generator())
    history = utils.fit(model, loader, digits.loader("val"), optimizer, 2, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * (26 + 1))
    assert history["learning_rate"] == pytest.approx([0.001, 0.014])


def test_seconds_are_of_training_alone(digits, monkeypatch):
    clock, real = [0.0], utils.train_epoch

    def train_epoch(*arguments):
        clock[0] += 5.0
        return real(*arguments)

    def evaluate(*arguments):
        clock[0] += 100.0
        return utils.Evaluation(1.0, 50.0, 1, torch.zeros(1, 10), torch.zeros(1))

    monkeypatch.setattr(utils.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(utils, "train_epoch", train_epoch)
    monkeypatch.setattr(utils, "evaluate", evaluate)
    history = train(digits, epochs=2, test=digits.loader("test"))[1]
    assert history["seconds"] == [5.0, 5.0]


def test_nothing_is_checked_and_nothing_waits_inside_the_loop(digits, monkeypatch):
    """One forward pass a batch, one read from the device an epoch."""
    calls = []
    model = small_model()
    model.register_forward_hook(lambda *_: calls.append(1))
    reads = []
    for name in ("item", "tolist"):
        real = getattr(torch.Tensor, name)
        count = lambda tensor, real=real: reads.append(1) or real(tensor)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, count)
    loader = digits.loader("train", 200, generator=torch.Generator())
    reads.clear()
    utils.train_epoch(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
    assert len(calls) == len(loader) == 7
    assert len(reads) == 1


def test_fit_tracks_other_splits_only_when_asked(digits):
    assert "test_accuracy" not in train(digits)[1]
    model, history = train(digits, test=digits.loader("test"))
    assert history["test_accuracy"] == [utils.evaluate(model, digits.loader("test")).accuracy]
    assert history["val_accuracy"] == [utils.evaluate(model, digits.loader("val")).accuracy]


def test_a_loss_that_is_not_finite_names_epoch_and_batch(digits):
    calls = []

    def poison(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        return images * (float("nan") if len(calls) == 44 else 1)

    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 3 of 41"):
        train(digits, epochs=2, augment=poison)


def test_an_interrupt_leaves_a_usable_history(digits, capsys):
    calls = []

    def stop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 60:  # in the second epoch
            raise KeyboardInterrupt
        return images

    _, history = train(digits, epochs=3, augment=stop)
    assert [len(values) for values in history.values()] == [1] * 6
    assert "stopped by hand after 1 of 3 epochs" in capsys.readouterr().out


def test_the_table_of_the_stand_in_says_so(digits, capsys):
    train(digits)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"data set: {mnist.STAND_IN}" and lines[2].split()[0] == "1"


class Pair(nn.Linear):
    """Returns two things where one is expected."""

    def forward(self, images):
        return super().forward(images.flatten(1)), images


MISFITS = {
    "no network": (None, TypeError, "model must be a torch.nn.Module, got NoneType"),
    "seven classes": (
        nn.Sequential(nn.Flatten(), nn.Linear(784, 7)),
        ValueError,
        r"logits must be \[2, 10\] here, got \[2, 7\]",
    ),
    "three channels": (
        nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten()),
        ValueError,
        r"does not take images of shape \[1, 28, 28\]: ",
    ),
    "a pair": (Pair(784, 10), ValueError, r"logits must be \[2, 10\] here, got tuple"),
    "elsewhere": (small_model().to("meta"), ValueError, r"one device, found \['cpu', 'meta'\]"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_network_that_does_not_fit_is_named_at_the_door(digits, misfit):
    model, error, message = MISFITS[misfit]
    with pytest.raises(error, match=message):
        utils.evaluate(model, digits.loader("val"))
    optimizer = torch.optim.SGD(small_model().parameters(), lr=0.1)
    loader = digits.loader("train", 32, generator=torch.Generator())
    with pytest.raises(error, match=message):
        utils.fit(model, loader, digits.loader("val"), optimizer, 1)


@pytest.mark.parametrize("epochs", [0, 1.5])
def test_epochs_are_counted_from_one(digits, epochs):
    with pytest.raises(ValueError, match=f"epochs must be at least 1, got {epochs}"):
        train(digits, epochs=epochs)


def test_evaluate_refuses_shuffled_images_and_damaged_weights(digits):
    model = small_model()
    with pytest.raises(ValueError, match="in their order"):
        utils.evaluate(model, digits.loader("val", generator=torch.Generator()))
    nn.init.constant_(model[-1].weight, float("nan"))
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        utils.evaluate(model, digits.loader("val"))


# --- A look at the network ------------------------------------------------------------------------


def test_layer_table_of_a_known_network():
    table = utils.layer_table(small_model())
    assert table["receptive field"].tolist() == [3, 3, 3, 4, 8, 8, 8, 8, 28, 28, 28]
    assert table["output"][0] == "4 x 26 x 26"
    macs = {0: 26 * 26 * 4 * 9, 4: 11 * 11 * 6 * 4 * 9, 10: 60}
    assert {row: table["MACs"][row] for row in macs} == macs
    assert table["parameters"].tolist() == [36, 8, 0, 0, 222, 12, 0, 0, 0, 0, 70]
    assert table["parameters"].sum() == utils.count_parameters(small_model())


def test_shared_and_frozen_parameters_are_counted_as_the_budget_does():
    layer = nn.Linear(3, 3)
    assert utils.count_parameters(nn.Sequential(layer, layer)) == 12
    layer.bias.requires_grad_(False)
    assert utils.count_parameters(layer) == 9


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
    for layer in layers:
        nn.init.ones_(layer.weight)
    # 160: four dilated kernels of 5 with strides of 2 see at most 121 pixels
    image = torch.ones(1, 1, 160, 160, requires_grad=True)
    output = nn.Sequential(*layers)(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    touched = image.grad[0, 0].nonzero()
    extent = int((touched.max(0).values - touched.min(0).values + 1).max())
    table = utils.layer_table(nn.Sequential(*layers), (1, 160, 160))
    assert table["receptive field"].iloc[-1] == extent


def test_layer_table_leaves_the_model_alone_and_names_a_shape_that_does_not_fit():
    model, state = small_model(), torch.get_rng_state()
    utils.layer_table(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert not any(layer._forward_hooks for layer in model.modules())
    with pytest.raises(ValueError, match=r"an image \(3, 28, 28\) does not fit the model"):
        utils.layer_table(model, (3, 28, 28))


# --- Plots ----------------------------------------------------------------------------------------


def run_of(name: str, start: float) -> dict:
    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    history = {key: [start + i, start + i + 0.5] for i, key in enumerate(keys)}
    return {"name": name, "dataset": "MNIST", "history": history}


def test_curves_show_each_column_in_its_place():
    figure = utils.plot_curves(run_of("now", 1), run_of("old_step", 11))
    for axis, metric in zip(figure.axes, ("loss", "accuracy"), strict=True):
        drawn = {line.get_label(): line for line in axis.lines}
        for part, label in (("train", "training"), ("val", "validation")):
            now, old = run_of("now", 1), run_of("old", 11)
            key = f"{part}_{metric}"
            assert list(drawn[label].get_ydata()) == now["history"][key]
            assert drawn[label].get_color() == utils.COLORS[part]
            assert list(drawn[f"{label}, old step"].get_ydata()) == old["history"][key]
            assert drawn[f"{label}, old step"].get_color() == utils.COLORS["before"]
    plt.close("all")


def test_digits_stand_under_their_titles_and_a_picture_has_its_alt(monkeypatch):
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1).expand(3, 28, 28)
    figure = utils.plot_digits(images, ["a", "b", "c"], columns=2)
    shown = [(a.get_title(), int(a.images[0].get_array()[0, 0])) for a in figure.axes[:3]]
    assert shown == [("a", 0), ("b", 1), ("c", 2)]
    with pytest.raises(ValueError, match="3 images, but 2 titles"):
        utils.plot_digits(images, ["a", "b"])
    with pytest.raises(ValueError, match=r"\[N, 28, 28\], got \[3, 1, 28, 28\]"):
        utils.plot_digits(images[:, None], ["a", "b", "c"])
    calls = []
    monkeypatch.setattr(utils, "display", lambda *a, **k: calls.append((a, k)))
    plt.close("all")
    figure, _ = plt.subplots()
    utils.show("three digits")
    assert calls == [((figure,), {"metadata": {"image/png": {"alt": "three digits"}}})]
    assert not plt.get_fignums()
