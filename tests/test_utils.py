"""utils.py: against PyTorch and brute force first, then what it refuses."""

import random
from collections.abc import Callable

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
    layers = [nn.Conv2d(1, a, 3, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 10))


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


def equal_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same numbers, to the last bit."""
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


# --- Seed and data --------------------------------------------------------------------------------


def test_seed_everything_repeats_every_generator():
    def draws(seed: int) -> list[float]:
        generator = utils.seed_everything(seed)
        own = torch.rand(1, generator=generator).item()
        return [own, torch.rand(1).item(), random.random(), np.random.rand()]  # noqa: NPY002

    assert draws(3) == draws(3)
    assert not set(draws(3)) & set(draws(4))


def test_split_is_fixed_disjoint_and_complete():
    train_ids, val_ids = utils.split_indices(60_000)
    torch.manual_seed(99)  # the run's seed has no say
    assert torch.equal(val_ids, utils.split_indices(60_000)[1])
    assert len(train_ids) == 55_000 and len(val_ids) == 5_000
    assert torch.equal(torch.cat([train_ids, val_ids]).sort().values, torch.arange(60_000))
    assert train_ids[:5].tolist() == [11331, 41365, 15227, 3162, 10062]  # as in every record


@pytest.mark.parametrize(
    ("name", "smoke", "sizes"),
    [
        ("MNIST", "0", [3_000, 5_000, 700]),
        ("MNIST", "1", [768, 250, 250]),
        (mnist.STAND_IN, "0", [7_200, 800, 700]),
    ],
)
def test_mean_and_std_are_of_all_training_images(monkeypatch, name, smoke, sizes):
    """In a smoke test, too, which keeps few of them."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (8_700, 2, 2), np.uint8), np.arange(8_700) % 10
    files = mnist.Digits((images[700:], labels[700:]), (images[:700], labels[:700]), name)
    monkeypatch.setattr(mnist, "load", lambda: files)
    monkeypatch.setenv("SMOKE_TEST", smoke)
    data = utils.load_mnist()
    train_ids, val_ids = utils.split_indices(8_000, 5_000 if name == "MNIST" else 800)
    for part, ids in ((data.train, train_ids + 700), (data.val, val_ids + 700)):
        assert np.array_equal(part.images, images[ids][: len(part)])
        assert part.labels.tolist() == labels[ids][: len(part)].tolist()
    assert np.array_equal(data.test.images, images[: len(data.test)])
    assert [len(part) for part in (data.train, data.val, data.test)] == sizes and data.name == name
    pixels = images[train_ids + 700] / 255
    assert (data.mean, data.std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-3)


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
    epochs = [list(loader) for _ in range(3)]
    orders = [torch.cat([y for _, y in batches]).tolist() for batches in epochs]
    assert orders[0] != orders[1] != orders[2] and orders[0] != data.val.labels.tolist()
    assert len(seen) == 9 and all(inside and own is generator for inside, own in seen)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:16]
    found, labels = epochs[0][0]
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


# --- Training and evaluation ----------------------------------------------------------------------


@given(images=st.integers(1, 60), batch_size=st.integers(1, 70), training=st.booleans())
@settings(max_examples=20, deadline=None)
def test_evaluate_is_exact_and_leaves_the_network_as_it_was(images, batch_size, training):
    torch.manual_seed(0)
    data, model, twin = random_data(images), small_model().train(training), small_model().eval()
    twin.load_state_dict(model.state_dict())
    found = utils.evaluate(model, data.loader("test", batch_size))
    with torch.no_grad():
        logits = twin((data.test.images[:, None] / 255 - 0.5) / 0.3)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-4)
    correct = (logits.argmax(1) == data.test.labels).sum().item()
    assert (found.correct, found.accuracy) == (correct, pytest.approx(100 * correct / images))
    assert model.training == training and equal_weights(model, twin)


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


def test_evaluate_refuses_damaged_weights(digits):
    nn.init.constant_((model := small_model())[-1].weight, float("nan"))
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        utils.evaluate(model, digits.loader("val"))


def by_hand(data: utils.Data, epochs: int) -> tuple[nn.Module, list[tuple[float, float]]]:
    """Training as tutorials write it, in the order of the images that seed 0 gives."""
    generator = utils.seed_everything(0)
    model = small_model((8, 24)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    rows = []
    for _ in range(epochs):
        order, total, hits = torch.randperm(len(data.train), generator=generator), 0.0, 0
        for ids in order.split(32):  # the last batch is smaller
            images = data.normalize(data.train.images[ids].unsqueeze(1).float() / 255)
            logits = model(images)
            loss = nn.CrossEntropyLoss()(logits, data.train.labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(ids)
            hits += (logits.argmax(1) == data.train.labels[ids]).sum().item()
        rows.append((total / len(data.train), 100 * hits / len(data.train)))
    return model, rows


def test_fit_is_the_loop_that_one_would_write(digits):
    """The same weights to the last bit as a loop by hand, twice; another seed, other weights."""
    model, history = train(digits, epochs=3)
    reference, rows = by_hand(digits, epochs=3)
    assert equal_weights(model, reference)
    losses, accuracies = zip(*rows, strict=True)
    assert history["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert history["train_accuracy"] == pytest.approx(accuracies)
    assert losses[-1] < 0.8 * losses[0]
    again = train(digits, epochs=3)[1]
    assert all(history[key] == again[key] for key in set(history) - {"seconds"})
    assert train(digits, seed=1)[1]["train_loss"][0] != losses[0]


def test_fit_validates_on_the_validation_images_and_watches_others_only_if_asked(digits):
    model, history = train(digits, epochs=2, test=digits.loader("test"))
    val, test = (utils.evaluate(model, digits.loader(part)) for part in ("val", "test"))
    assert (history["val_loss"][-1], history["val_accuracy"][-1]) == (val.loss, val.accuracy)
    assert history["test_accuracy"][-1] == test.accuracy and test.loss != val.loss
    assert [len(values) for values in history.values()] == [2] * 7
    assert set(train(digits)[1]) == set(history) - {"test_accuracy"}


def test_the_scheduler_steps_per_batch_and_the_rate_is_noted_first(digits):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001 * (step + 1))
    loader = digits.loader("train", 100, generator=torch.Generator())
    history = utils.fit(model, loader, digits.loader("val"), optimizer, 2, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * (26 + 1))
    assert history["learning_rate"] == pytest.approx([0.001, 0.014])


def test_seconds_are_of_training_alone(digits, monkeypatch):
    now = 0.0

    def takes(seconds: float, real: Callable) -> Callable:
        def work(*given: object) -> object:
            nonlocal now
            now += seconds
            return real(*given)

        return work

    monkeypatch.setattr(utils.time, "perf_counter", lambda: now)
    monkeypatch.setattr(utils, "train_epoch", takes(5.0, utils.train_epoch))
    monkeypatch.setattr(utils, "evaluate", takes(100.0, utils.evaluate))
    history = train(digits, epochs=2, test=digits.loader("test"))[1]
    assert history["seconds"] == [5.0, 5.0]


def test_a_loss_that_is_not_finite_names_epoch_and_batch(digits):
    calls = []

    def poison(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        return images * (float("nan") if len(calls) == 44 else 1)

    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 3 of 41"):
        train(digits, epochs=2, augment=poison)


def test_an_interrupt_leaves_a_usable_history_of_a_data_set_that_is_named(digits, capsys):
    calls = []

    def stop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 60:  # in the second epoch
            raise KeyboardInterrupt
        return images

    _, history = train(digits, epochs=3, augment=stop)
    assert [len(values) for values in history.values()] == [1] * 6
    first, _, row, last = capsys.readouterr().out.splitlines()
    assert first == f"data set: {mnist.STAND_IN}" and row.split()[0] == "1"
    assert last == "stopped by hand after 1 of 3 epochs"


# --- What is refused at the door ------------------------------------------------------------------


class Pair(nn.Linear):
    """Returns two things where one is expected."""

    def forward(self, images):
        return super().forward(images.flatten(1)), images


BLANK = torch.zeros(3, 28, 28, dtype=torch.uint8)
DATA, SEVEN = random_data(3), nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
COLOUR = nn.Sequential(nn.Conv2d(3, 10, 28), nn.Flatten())


def load(images: torch.Tensor, *labels: int, size: float = 2) -> None:
    DATA.loader(utils.Split(images, torch.tensor(labels, dtype=torch.int64)), size)


def both_loops(model: object) -> None:
    """Evaluation and training have to refuse the model in the same words."""
    optimizer = torch.optim.SGD(small_model().parameters(), lr=0.1)
    fit = lambda: utils.fit(model, DATA.loader("train"), DATA.loader("val"), optimizer, 1)  # noqa: E731
    with pytest.raises((TypeError, ValueError)) as first:
        fit()
    with pytest.raises(first.type) as second:
        utils.evaluate(model, DATA.loader("val"))
    assert str(first.value) == str(second.value)
    raise second.value


REFUSED = [  # what is called, and what it answers
    *((lambda s=s: utils.seed_everything(s), f"seed must .*got {s!r}") for s in (-1, 2**32, 1.5)),
    *((lambda s=s: utils.seed_everything(s), f"seed must .*got {s!r}") for s in ("0", True, None)),
    *((lambda n=n: utils.split_indices(10, n), "0 < val_images < 10") for n in (0, -1, 10, 2.5)),
    (lambda: load(BLANK.float(), 0, 0, 0), "images must be uint8"),
    (lambda: load(BLANK[:, None], 0, 0, 0), "N, H, W"),
    (lambda: load(BLANK[:0]), "N > 0"),
    (lambda: load(BLANK, 0, 0), "labels must be 3 int64"),
    (lambda: load(BLANK, 0, 1, 10), "0-9, got 0 to 10"),
    (lambda: load(BLANK, 0, 1, -1), "0-9, got -1 to 1"),
    (lambda: load(BLANK, 0, 0, 0, size=0), "batch_size must .* at least 1, got 0"),
    (lambda: load(BLANK, 0, 0, 0, size=2.5), "batch_size must .* got 2.5"),
    (lambda: DATA.loader("valid"), "no split is called 'valid'"),
    (lambda: DATA.loader("train", augment=lambda x, _: x), "augment needs a generator"),
    (
        lambda: utils.evaluate(small_model(), DATA.loader("val", generator=torch.Generator())),
        "in their order",
    ),
    (lambda: train(DATA, epochs=0), "epochs must be at least 1, got 0"),
    (lambda: train(DATA, epochs=1.5), "epochs must be at least 1, got 1.5"),
    (lambda: both_loops(None), "model must be a torch.nn.Module, got NoneType"),
    (lambda: both_loops(SEVEN), r"logits must be \[2, 10\] here, got \[2, 7\]"),
    (lambda: both_loops(COLOUR), r"does not take images of shape \[1, 28, 28\]: "),
    (lambda: both_loops(Pair(784, 10)), r"logits must be \[2, 10\] here, got tuple"),
    (lambda: both_loops(small_model().to("meta")), r"one device, found \['cpu', 'meta'\]"),
    (lambda: utils.layer_table(small_model(), (3, 28, 28)), r"an image \(3, 28, 28\) does not fit"),
    (lambda: utils.plot_digits(BLANK, ["a", "b"]), "3 images, but 2 titles"),
    (lambda: utils.plot_digits(BLANK[:, None], ["a"] * 3), r"N, 28, 28\], got \[3, 1, 28, 28\]"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_does_not_fit_is_refused_in_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# --- A look at the network ------------------------------------------------------------------------


def test_layer_table_of_a_known_network_which_it_leaves_alone():
    model, state = small_model(), torch.get_rng_state()
    table = utils.layer_table(model)
    assert table["receptive field"].tolist() == [3, 3, 3, 4, 8, 8, 8, 8, 28, 28, 28]
    assert table["output"][0] == "4 x 26 x 26"
    macs = {0: 26 * 26 * 4 * 9, 4: 11 * 11 * 6 * 4 * 9, 10: 60}
    assert {row: table["MACs"][row] for row in macs} == macs
    assert table["parameters"].tolist() == [36, 8, 0, 0, 222, 12, 0, 0, 0, 0, 70]
    assert table["parameters"].sum() == utils.count_parameters(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert not any(layer._forward_hooks for layer in model.modules())


def test_shared_and_frozen_parameters_are_counted_as_the_budget_does():
    layer = nn.Linear(3, 3)
    assert utils.count_parameters(nn.Sequential(layer, layer)) == 12
    layer.bias.requires_grad_(False)
    assert utils.count_parameters(layer) == 9


LAYER = st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2]), st.sampled_from([1, 2]))


@given(st.lists(LAYER, min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_receptive_field_against_the_gradient(sizes):
    layers = [nn.Conv2d(1, 1, k, stride=s, dilation=d, bias=False) for k, s, d in sizes]
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


# --- Plots ----------------------------------------------------------------------------------------


def run_of(name: str, start: float) -> dict:
    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    history = {key: [start + i, start + i + 0.5] for i, key in enumerate(keys)}
    return {"name": name, "dataset": "MNIST", "history": history}


def test_curves_show_each_column_in_its_place():
    now, old = run_of("now", 1), run_of("old_step", 11)
    for axis, metric in zip(utils.plot_curves(now, old).axes, ("loss", "accuracy"), strict=True):
        drawn = {x.get_label(): (list(x.get_ydata()), x.get_color()) for x in axis.lines}
        for part, label in (("train", "training"), ("val", "validation")):
            key, grey = f"{part}_{metric}", utils.COLORS["before"]
            assert drawn[label] == (now["history"][key], utils.COLORS[part])
            assert drawn[f"{label}, old step"] == (old["history"][key], grey)
    plt.close("all")


def test_digits_stand_under_their_titles_and_a_picture_has_its_alt(monkeypatch):
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1).expand(3, 28, 28)
    figure = utils.plot_digits(images, ["a", "b", "c"], columns=2)
    shown = [(a.get_title(), int(a.images[0].get_array()[0, 0])) for a in figure.axes[:3]]
    assert shown == [("a", 0), ("b", 1), ("c", 2)]
    calls = []
    monkeypatch.setattr(utils, "display", lambda *a, **k: calls.append((a, k)))
    utils.show("three digits")
    assert calls == [((figure,), {"metadata": {"image/png": {"alt": "three digits"}}})]
    assert not plt.get_fignums()
