"""What a learner reads: seed and device, the data and its loader, the loops, layer table, plots.

Model, augmentation, optimizer and schedule are *not* here: each stays in the notebook that teaches
it. Files and downloads are in ``mnist.py``, records in ``records.py``.
"""

import copy
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor, nn
from tqdm import tqdm

import mnist


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def is_smoke_test() -> bool:
    """True when ``SMOKE_TEST=1``: few images, one epoch, no verdict on accuracy."""
    return os.environ.get("SMOKE_TEST", "").lower() not in ("", "0", "false", "no", "off")


def pick_device() -> torch.device:
    """The first GPU if there is one (``cuda``, then Apple's ``mps``), otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and PyTorch; return a CPU generator for shuffling and augmentation.

    A CPU generator draws the same numbers beside every GPU; CUDA's own draws depend on the model.
    Raises a ValueError if ``seed`` is not an integer in [0, 2**32).
    """
    good = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32
    require(good, f"seed must be an integer in [0, 2**32), got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (scikit-learn and others draw from it)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Split:
    """Images (uint8, ``[N, 28, 28]``) and their labels (int64, ``[N]``), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> "Split":
        return Split(self.images[which], self.labels[which])


@dataclass(frozen=True)
class Data:
    """The three splits, the data set's name, and mean and std of the training pixels in [0, 1]."""

    train: Split
    val: Split
    test: Split
    name: str
    mean: float
    std: float

    def normalize(self, images: Tensor) -> Tensor:
        """Shift and scale images in [0, 1] to mean 0, std 1 over the training pixels."""
        return (images - self.mean) / self.std

    def loader(self, part: str | Split, batch_size: int = 1_000, **options: object) -> "Loader":
        """Batches of ``"train"``, ``"val"``, ``"test"`` or of any other split; see ``Loader``."""
        if isinstance(part, str):
            require(part in ("train", "val", "test"), f"no split is called {part!r}")
            part = getattr(self, part)
        return Loader(self, part, batch_size, **options)


@dataclass(frozen=True)
class Loader:
    """Yields images (float ``[B, 1, 28, 28]``, normalised) and labels ``[B]``, each image once.

    With a (CPU) ``generator`` the order is another one in each epoch, and ``augment(images,
    generator)`` may change the images, still in [0, 1]. The last batch may be smaller. No worker
    processes: the whole data set lies on the device, and a batch is an index into it.

    Raises a ValueError for an empty split, images that are not uint8 ``[N, H, W]``, labels outside
    0-9 or of another length, a batch size below 1, or augmentation without a generator.
    """

    data: Data
    split: Split
    batch_size: int
    generator: torch.Generator | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        images, labels, size = self.split.images, self.split.labels, self.batch_size
        good = images.dtype == torch.uint8 and images.ndim == 3 and len(images) > 0
        found = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (images, labels)]
        require(good, f"images must be uint8 [N, H, W] with N > 0, got {found[0]}")
        good = labels.shape == images.shape[:1] and labels.dtype == torch.int64
        require(good, f"labels must be {len(images)} int64 in 0-9, got {found[1]}")
        low, high = labels.min().item(), labels.max().item()
        require(low >= 0 and high <= 9, f"labels must be in 0-9, got {low} to {high}")
        good = isinstance(size, int) and size >= 1
        require(good, f"batch_size must be a whole number, at least 1, got {size!r}")
        require(self.augment is None or self.generator is not None, "augment needs a generator")

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.split.images, self.split.labels
        order = torch.arange(len(images))
        if self.generator is not None:
            order = torch.randperm(len(images), generator=self.generator)
        for ids in order.to(images.device).split(self.batch_size):
            batch = images[ids].unsqueeze(1).float() / 255
            if self.augment is not None:
                batch = self.augment(batch, self.generator)
            yield self.data.normalize(batch), labels[ids]


def split_indices(images: int, val_images: int = 5_000) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation images: the same, whatever a run's seed."""
    good = isinstance(val_images, int) and 0 < val_images < images
    require(good, f"need 0 < val_images < {images}, got {val_images!r}")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[val_images:], order[:val_images]


def load_mnist(device: torch.device | str = "cpu", val_images: int = 5_000) -> Data:
    """Load MNIST (``mnist.load`` says what it raises), split it, put it on ``device`` (54 MB).

    The stand-in keeps a tenth of its images to validate; a smoke test 768 / 250 / 250 in all.
    """
    split_indices(60_000, val_images)  # a bad number is told before a download, not after
    digits = mnist.load()
    full, test = (Split(*map(torch.from_numpy, part)) for part in (digits.train, digits.test))
    val_images = val_images if digits.name == "MNIST" else len(full) // 10
    parts = [*(full[ids] for ids in split_indices(len(full), val_images)), test]
    pixels = parts[0].images.float() / 255
    mean, std = pixels.mean().item(), pixels.std().item()
    if is_smoke_test():
        parts = [part[:n] for part, n in zip(parts, (768, 250, 250), strict=True)]
        print("SMOKE TEST: few images, one epoch; its accuracy means nothing.")
    parts = [Split(part.images.to(device), part.labels.to(device)) for part in parts]
    return Data(*parts, digits.name, mean, std)


class Evaluation(NamedTuple):
    """Mean cross-entropy, accuracy in percent, number correct; logits ``[N, 10]``, labels."""

    loss: float
    accuracy: float
    correct: int
    logits: Tensor
    labels: Tensor


def train_epoch(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    epoch: int = 1,
) -> tuple[float, float]:
    """Train for one epoch; return mean loss and accuracy (percent) over its images, as seen.

    Raises a FloatingPointError that names epoch and batch if a loss is not finite.
    """
    model.train()
    losses, correct = [], []
    for images, labels in tqdm(loader, f"epoch {epoch}", leave=False, file=sys.stdout):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()  # per batch, not per epoch
        # Kept as tensors: .item() here would make a GPU wait for every batch.
        losses.append(loss.detach() * len(labels))
        correct.append((logits.detach().argmax(dim=1) == labels).sum())
    losses = torch.stack(losses)  # sums over images: exact with a smaller last batch too
    loss, hits = torch.stack([losses.sum(), torch.stack(correct).sum()]).tolist()
    if not math.isfinite(loss):
        batch = int((~torch.isfinite(losses)).int().argmax()) + 1
        where = f"epoch {epoch}, batch {batch} of {len(losses)}"
        advice = "lower the learning rate or check the input for NaN"
        raise FloatingPointError(f"the loss is not finite from {where} on: {advice}")
    return loss / len(loader.split), 100 * hits / len(loader.split)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader) -> Evaluation:
    """Loss and accuracy of ``model`` in eval mode; afterwards it is in the mode it came in.

    Raises a ValueError if the loader shuffles or the model does not fit the images or their
    device, and a FloatingPointError if a logit is not finite.
    """
    require(loader.generator is None, "evaluate takes the images in their order: no generator")
    require_fitting(model, loader)
    labels, was_training = loader.split.labels, model.training
    try:
        model.eval()
        logits = torch.cat([model(images) for images, _ in loader])
    finally:
        model.train(was_training)
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the network's logits are not finite: its weights are damaged")
    loss = F.cross_entropy(logits, labels, reduction="sum").item() / len(labels)
    correct = int((logits.argmax(dim=1) == labels).sum())
    return Evaluation(loss, 100 * correct / len(labels), correct, logits, labels)


def fit(
    model: nn.Module,
    train: Loader,
    val: Loader,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    **watched: Loader,
) -> dict[str, list[float]]:
    """Train for ``epochs``; print one row per epoch and return the columns as lists.

    Accuracies are percentages, learning_rate is the one at the start of an epoch, seconds are of
    training alone. ``test=loader`` adds test_accuracy: only for studies *about* the test set.
    Interrupted by hand (KeyboardInterrupt) it returns the epochs that were completed.

    Raises a ValueError if ``epochs`` is below 1 or the model does not fit the images or their
    device, and a FloatingPointError if a loss is not finite.
    """
    good = isinstance(epochs, int) and epochs >= 1
    require(good, f"epochs must be at least 1, got {epochs!r}")
    for loader in (train, val, *watched.values()):  # at the door: the loop checks nothing
        require_fitting(model, loader)
    if train.data.name != "MNIST":  # a table of the stand-in must say so
        print(f"data set: {train.data.name}")
    print("epoch  train loss  train acc %  val loss  val acc %  learning rate  seconds")
    history: dict[str, list[float]] = {}
    try:
        for epoch in range(1, epochs + 1):
            rate, start = optimizer.param_groups[0]["lr"], time.perf_counter()
            loss, accuracy = train_epoch(model, train, optimizer, scheduler, epoch)
            seconds = time.perf_counter() - start
            found = evaluate(model, val)
            row = {"train_loss": loss, "train_accuracy": accuracy, "val_loss": found.loss}
            row |= {"val_accuracy": found.accuracy, "learning_rate": rate, "seconds": seconds}
            row |= {f"{name}_accuracy": evaluate(model, watched[name]).accuracy for name in watched}
            for key, value in row.items():
                history.setdefault(key, []).append(value)
            line = f"{epoch:5d}  {loss:10.4f}  {accuracy:11.2f}  {found.loss:8.4f}"
            print(f"{line}  {found.accuracy:9.2f}  {rate:13.5f}  {seconds:7.1f}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped by hand after {len(history.get('seconds', []))} of {epochs} epochs")
    return history


def require_fitting(model: nn.Module, loader: Loader) -> None:
    """Raise a TypeError or ValueError unless the model answers the images with ten numbers each."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    images = loader.data.normalize(loader.split.images[:2].unsqueeze(1).float() / 255)
    places = {p.device.type for p in model.parameters()} | {images.device.type}
    require(len(places) == 1, f"model and images must share one device, found {sorted(places)}")
    twin = copy.deepcopy(model).eval()  # the model itself keeps its mode
    try:
        with torch.no_grad():
            logits = twin(images)
    except RuntimeError as error:
        shape = list(images.shape[1:])
        raise ValueError(f"the model does not take images of shape {shape}: {error}") from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    require(found == [len(images), 10], f"logits must be [{len(images)}, 10] here, got {found}")


def count_parameters(model: nn.Module) -> int:
    """All trainable parameters, shared ones once: the count that the budget of 20,000 is about."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layer_table(model: nn.Module, input_shape: tuple[int, ...] = (1, 28, 28)) -> pd.DataFrame:
    """Output size, parameters, receptive field and MACs of each layer, for layers in a chain.

    A layer that spans e pixels adds (e - 1) * jump to the receptive field; its stride multiplies
    the jump (https://distill.pub/2019/computing-receptive-fields/). MACs are multiply-accumulates
    for one image. Raises a ValueError if ``input_shape`` does not fit the model.
    """
    rows, field, jump = [], 1, 1

    def visit(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal field, jump
        extent, stride = _extent_and_stride(layer, inputs[0])
        field, jump = field + (extent - 1) * jump, jump * stride
        weights = layer.weight.numel() if isinstance(layer, nn.Conv2d | nn.Linear) else 0
        macs = weights * (output[0, 0].numel() if output.ndim == 4 else 1)
        size = " x ".join(map(str, output.shape[1:]))
        rows.append((type(layer).__name__, size, count_parameters(layer), field, macs))

    twin = copy.deepcopy(model).cpu().eval()  # hooks and modes stay off the caller's model
    for layer in twin.modules():
        if not list(layer.children()):
            layer.register_forward_hook(visit)
    try:
        with torch.no_grad():
            twin(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"an image {input_shape} does not fit the model: {error}") from error
    return pd.DataFrame(rows, columns=["layer", "output", "parameters", "receptive field", "MACs"])


def _extent_and_stride(layer: nn.Module, x: Tensor) -> tuple[int, int]:
    """Extent and stride of a layer along one side; layers that read all positions span them all."""
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        sizes = (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
        kernel, stride, dilation = (v[0] if isinstance(v, tuple) else v for v in sizes)
        return (kernel - 1) * dilation + 1, stride
    spans = isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten) and x.ndim == 4
    return (x.shape[-1], 1) if spans else (1, 1)


# --- Plots: the same colours for the same thing everywhere (Okabe-Ito, safe for colour-blind) ---

COLORS = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73"}
COLORS |= {"before": "#8C8C8C", "accent": "#CC79A7"}


def use_style() -> None:
    """Small, readable figures: the fonts stay legible at the width GitHub shows them."""
    style = {"figure.dpi": 110, "font.size": 10, "figure.constrained_layout.use": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    plt.rcParams.update(style | {"axes.grid": True, "grid.alpha": 0.3})


def show(alt: str) -> None:
    """Show the current figure with a text alternative, for those who cannot see it."""
    display(plt.gcf(), metadata={"image/png": {"alt": alt}})
    plt.close()


def plot_digits(images: Tensor, titles: list[str], columns: int = 10, scale: float = 0.9) -> Figure:
    """A grid of digits (``[N, 28, 28]``), each under its title."""
    require(images.ndim == 3, f"images must be [N, 28, 28], got {list(images.shape)}")
    require(len(images) == len(titles) > 0, f"{len(images)} images, but {len(titles)} titles")
    rows = math.ceil(len(images) / columns)
    size = (columns * scale, rows * (scale + 0.28))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images.cpu(), titles, strict=False):
        axis.imshow(image, cmap="gray_r")
        axis.set_title(title, fontsize=8)
    return figure


def plot_curves(record: dict, before: dict | None = None) -> Figure:
    """Loss (log scale) and accuracy per epoch, training and validation; the step before in grey."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    own = {"train": {"ls": "--"}, "val": {"marker": "o", "ms": 3}}
    grey = {"color": COLORS["before"], "lw": 1, "mfc": "white"}  # thinner too, with hollow dots
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for run in [before, record] if before else [record]:
            for part, label in {"train": "training", "val": "validation"}.items():
                values = run["history"][f"{part}_{metric}"]
                name = f", {run['name'].replace('_', ' ')}" if run is before else ""
                style = own[part] | (grey if run is before else {"color": COLORS[part]})
                axis.plot(range(1, len(values) + 1), values, label=label + name, **style)
        axis.set(xlabel="epoch", title=f"{metric.capitalize()} ({record['dataset']})")
        axis.xaxis.get_major_locator().set_params(integer=True)
    late = [v for run in (record, before or record) for v in run["history"]["val_accuracy"][1:]]
    axes[0].set(yscale="log", ylabel="cross-entropy loss")
    axes[0].yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    axes[0].yaxis.set_major_formatter("{x:g}")  # 0.02, not 2 x 10^-2
    axes[1].set(ylabel="accuracy (%)", ylim=(min(late, default=0.5) - 0.5, 100.05))
    axes[1].legend(fontsize=8, loc="lower right")
    return figure
