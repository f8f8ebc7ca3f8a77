"""What all notebooks share: set-up, data, the training and evaluation loops, records and plots.

The model, the augmentation, the optimizer and the schedule are *not* here: each stays visible in
the notebook that teaches it. Sections: set-up, data, loops, a look at the network, records, plots.
"""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import platform
import random
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchsummary
import torchvision
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from safetensors.torch import load, save
from torch import Tensor, nn
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import download_and_extract_archive
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "notebooks" / "results"
IMAGES = HERE / "images"


def _require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _require_model(model: object) -> None:
    """Raise a TypeError unless it is a network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _require_fields(record: dict, *fields: str) -> None:
    """Raise a ValueError that names the fields that a record lacks."""
    missing = sorted(set(fields) - set(record))
    _require(not missing, f"the record lacks {missing}")


# --------------------------------------------------------------------------------------------------
# Set-up
# --------------------------------------------------------------------------------------------------


def is_smoke_test() -> bool:
    """True when ``SMOKE_TEST=1``: few images, one epoch, no verdict on accuracy."""
    return os.environ.get("SMOKE_TEST", "0") not in ("", "0")


def pick_device() -> torch.device:
    """The first GPU if there is one (``cuda``, then Apple's ``mps``), otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and PyTorch; return a CPU generator for shuffling and augmentation.

    A CPU generator draws the same numbers beside every GPU; CUDA's own draws depend on the model.

    Raises:
        ValueError: if ``seed`` is not an integer in [0, 2**32).
    """
    valid = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32
    _require(valid, f"seed must be an integer in [0, 2**32), got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (scikit-learn and others draw from it)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def environment(device: torch.device) -> dict:
    """Where a run happens: ``device`` (name), ``threads`` and ``versions``, for its record."""
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        found = re.search(r"model name\s*:\s*(.+)", text)
        name = found[1] if found else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


# --------------------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------------------

DIGITS_NAME = "scikit-learn digits (stand-in)"
SHA256 = {  # of the four extracted files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte before a mirror counts as silent
DOWNLOAD_ATTEMPTS = 3


class Split(NamedTuple):
    """Images (uint8, ``[N, 28, 28]``) and their labels (int64, ``[N]``), on one device."""

    images: Tensor
    labels: Tensor


class Data(NamedTuple):
    """The three splits, the data set's name, and mean and std of the training pixels in [0, 1]."""

    train: Split
    val: Split
    test: Split
    name: str
    mean: float
    std: float

    def normalize(self, images: Tensor) -> Tensor:
        """Shift and scale images ``[B, 1, 28, 28]`` to mean 0, std 1 over the training pixels."""
        return (images - self.mean) / self.std


class MirrorsUnreachable(ConnectionError):
    """No mirror delivered MNIST. (A wrong checksum is a ``RuntimeError`` instead.)"""


def split_indices(images: int, val_images: int = 5_000) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation images: always the same split, whatever the seed.

    Raises:
        ValueError: unless ``0 < val_images < images``.
    """
    whole = isinstance(val_images, int) and isinstance(images, int)
    _require(
        whole and 0 < val_images < images, f"need 0 < val_images < {images}, got {val_images!r}"
    )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[val_images:], order[:val_images]


def verify_files(root: Path) -> None:
    """Check the four MNIST files under ``root/MNIST/raw`` against their SHA-256.

    Raises:
        FileNotFoundError: naming the missing file.
        ValueError: naming the truncated or altered file.
    """
    for name, expected in SHA256.items():
        path = Path(root) / "MNIST" / "raw" / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. The folder must hold MNIST/raw/ with the four extracted files "
                "as torchvision lays them out; unset MNIST_DIR to download them instead."
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        _require(
            found == expected,
            f"{path} is damaged: SHA-256 {found[:12]}..., expected {expected[:12]}... "
            "Delete it and fetch it again, or unset MNIST_DIR to download it.",
        )


def download_mnist(cache: Path) -> Path:
    """Fill ``cache`` through torchvision and return it; what is there is used only if it verifies.

    The download goes to a temporary folder beside its final place; its files are renamed into it
    after the checksums match: a run that is killed half-way leaves nothing that is trusted later.

    Raises:
        MirrorsUnreachable: if no mirror answers in ``DOWNLOAD_ATTEMPTS`` tries.
        RuntimeError: if a mirror delivers files with a wrong checksum.
        OSError: if the cache folder cannot be written.
    """
    cache = Path(cache)
    with contextlib.suppress(FileNotFoundError, ValueError):
        verify_files(cache)
        return cache
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
            raw = Path("MNIST", "raw")
            _fetch(folder / raw)
            verify_files(Path(folder))
            _move_into_place(folder / raw, cache / raw)
    except MirrorsUnreachable:
        raise
    except OSError as error:
        hint = "Set MNIST_CACHE to a folder with 120 MB of space that you may write to."
        raise OSError(f"cannot keep MNIST in {cache}: {error}. {hint}") from error
    verify_files(cache)
    return cache


def _fetch(raw: Path) -> None:
    """Let torchvision download the files into ``raw``, with a time-out, retries, both mirrors."""
    before, reasons = socket.getdefaulttimeout(), []
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none
    try:
        for attempt, mirror in itertools.product(range(DOWNLOAD_ATTEMPTS), MNIST.mirrors):
            time.sleep(attempt)
            try:
                for name, md5 in MNIST.resources:
                    download_and_extract_archive(mirror + name, raw, filename=name, md5=md5)
                return
            except (OSError, RuntimeError, HTTPException) as error:
                if getattr(error, "errno", None) in (13, 28, 30, 122):
                    raise  # no permission, disk full, read-only, quota: another try changes nothing
                reasons.append(f"{mirror}: {error}")
    finally:
        socket.setdefaulttimeout(before)
    damaged = [reason for reason in reasons if "corrupted" in reason]
    if damaged:  # even once: what arrived was not MNIST, and the stand-in must not cover that up
        raise RuntimeError(f"MNIST arrived with a wrong checksum: {damaged[-1]}")
    raise MirrorsUnreachable(f"no MNIST mirror answered in {attempt + 1} tries: {reasons[-1]}")


def _move_into_place(source: Path, target: Path) -> None:
    """Replace the four files one by one; who comes second writes the same bytes again."""
    target.mkdir(parents=True, exist_ok=True)
    for name in SHA256:
        (source / name).replace(target / name)


def _load_digits() -> tuple[Split, Split]:
    """The 1,797 real digits of scikit-learn, 8 x 8, scaled to 20 x 20 and padded to 28 x 28.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    # Needed only here: not worth its import time elsewhere.
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, size=20, mode="bilinear", align_corners=False)
    images = F.pad(images, (4, 4, 4, 4)).round().clamp(0, 255).to(torch.uint8)[:, 0]
    labels = torch.from_numpy(raw.target).long()
    train, test = split_indices(len(images), val_images=360)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def _load_both() -> tuple[Split, Split, str]:
    """Training and test images from MNIST_DIR, the cache, or (unreachable mirrors) the stand-in."""
    choice = os.environ.get("DATASET", "mnist").lower()
    _require(choice in ("mnist", "digits"), f"DATASET must be 'mnist' or 'digits', got {choice!r}")
    root, given = None, os.environ.get("MNIST_DIR")
    if choice == "mnist" and given:
        root = HERE / Path(given).expanduser()  # a relative one counts from the repository's root
        verify_files(root)
    elif choice == "mnist":
        try:
            root = download_mnist(HERE / Path(os.environ.get("MNIST_CACHE") or "data").expanduser())
        except MirrorsUnreachable as error:
            line = f"{error}. NOT MNIST: going on with the {DIGITS_NAME}. MNIST_DIR helps."
            warnings.warn(line, stacklevel=3)
            print("WARNING:", line)
    if root is None:
        return *_load_digits(), DIGITS_NAME
    return _read_files(root, "train"), _read_files(root, "t10k"), "MNIST"


def _read_files(root: Path, part: str) -> Split:
    """Images and labels from the files that were verified, and from no others.

    ``MNIST(root)`` would prefer what torchvision of 2019 left beside them, in ``MNIST/processed/``:
    unverified, and pickled.
    """
    raw = str(Path(root) / "MNIST" / "raw" / part)
    images = read_image_file(f"{raw}-images-idx3-ubyte")
    return Split(images, read_label_file(f"{raw}-labels-idx1-ubyte"))


def load_mnist(device: torch.device | str = "cpu", val_images: int = 5_000) -> Data:
    """Load MNIST, split it, and put it on ``device`` as uint8 (54 MB: no data loader needed).

    Looks in ``MNIST_DIR``; else in the cache (``MNIST_CACHE``, default ``data/``), filled by a
    download; else, behind a warning, takes scikit-learn's 1,797 digits (``DATASET=digits`` asks for
    them). Their validation split is a tenth. A smoke test keeps 2,000 / 500 / 500 images.

    Returns:
        ``Data`` with uint8 images ``[N, 28, 28]`` and int64 labels ``[N]``.

    Raises:
        FileNotFoundError, ValueError: if a file in MNIST_DIR is missing or damaged.
        RuntimeError: if a mirror delivers files with a wrong checksum.
        OSError: if the cache folder cannot be written.
    """
    split_indices(60_000, val_images)  # a bad number is told before a download, not after
    full, test, name = _load_both()
    train_ids, val_ids = split_indices(
        len(full.labels), val_images if name == "MNIST" else len(full.labels) // 10
    )
    parts = [Split(full.images[ids], full.labels[ids]) for ids in (train_ids, val_ids)] + [test]
    pixels = parts[0].images.float() / 255
    mean, std = pixels.mean().item(), pixels.std().item()
    if is_smoke_test():
        keep = (2_000, 500, 500)
        parts = [Split(p.images[:n], p.labels[:n]) for p, n in zip(parts, keep, strict=True)]
        print("SMOKE TEST: few images, one epoch; its accuracy means nothing.")
    parts = [Split(p.images.to(device), p.labels.to(device)) for p in parts]
    return Data(*parts, name, mean, std)


def batches(
    split: Split, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (float ``[B, 1, 28, 28]`` in [0, 1]) and labels ``[B]``, each image once.

    With a (CPU) ``generator`` the order is shuffled. The last batch may be smaller.

    Raises:
        ValueError: for an empty split, images that are not uint8 ``[N, H, W]``, labels outside
            0-9 or of another length, or a batch size below 1.
    """
    images, labels = split
    _require(
        images.dtype == torch.uint8 and images.ndim == 3 and len(images) > 0,
        f"images must be uint8 [N, H, W] with N > 0, got {images.dtype} {list(images.shape)}",
    )
    _require(
        labels.shape == images.shape[:1] and labels.dtype == torch.int64,
        f"labels must be {len(images)} int64 in 0-9, got {labels.dtype} {list(labels.shape)}",
    )
    low, high = labels.min().item(), labels.max().item()
    _require(low >= 0 and high <= 9, f"labels must be in 0-9, got {low} to {high}")
    _require_batch_size(batch_size)
    order = None
    if generator is not None:
        order = torch.randperm(len(images), generator=generator).to(images.device)
    for start in range(0, len(images), batch_size):
        stop = start + batch_size
        ids = slice(start, stop) if order is None else order[start:stop]
        yield images[ids].unsqueeze(1).float() / 255, labels[ids]


def _require_batch_size(batch_size: object) -> None:
    """Raise a ValueError unless it is a whole number from 1."""
    valid = isinstance(batch_size, int) and batch_size >= 1
    _require(valid, f"batch_size must be a whole number, at least 1, got {batch_size!r}")


# --------------------------------------------------------------------------------------------------
# Training and evaluation loops
# --------------------------------------------------------------------------------------------------

Augment = Callable[[Tensor, torch.Generator], Tensor]
# Accuracies in percent; seconds of training alone.
HISTORY_KEYS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
)


class Evaluation(NamedTuple):
    """Mean cross-entropy, accuracy in percent, number correct, and the logits ``[N, 10]``."""

    loss: float
    accuracy: float
    correct: int
    logits: Tensor


def _require_fitting(model: nn.Module, data: Data, split: Split) -> None:
    """Raise a ValueError unless the model answers images of this split with ten numbers each."""
    _require_model(model)
    places = {p.device.type for p in model.parameters()} | {split.images.device.type}
    _require(len(places) == 1, f"model and images must share one device, found {sorted(places)}")
    images, _ = next(batches(split, batch_size=2))
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(data.normalize(images))
    except RuntimeError as error:
        if "CUDA" in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise  # nothing that the shape is to blame for
        shape = list(images.shape[1:])
        raise ValueError(f"the model does not take images of shape {shape}: {error}") from error
    finally:
        model.train(was_training)
    _require_logits(logits, len(images))


def _require_logits(logits: Tensor, images: int) -> None:
    """Raise a ValueError unless the network answered each image with ten numbers."""
    found = type(logits).__name__
    _require(isinstance(logits, Tensor), f"the model must return a tensor of logits, got {found}")
    shape = list(logits.shape)
    _require(shape == [images, 10], f"logits must be [{images}, 10] here, got {shape}")


def train_epoch(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    generator: torch.Generator,
    augment: Augment | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    epoch: int = 1,
) -> tuple[float, float]:
    """Train for one epoch; return mean loss and accuracy (percent) over its images, as seen.

    Raises:
        FloatingPointError: naming epoch and batch, if a loss is not finite.
        ValueError: if the model does not fit the images or their device, or for a bad batch size.
    """
    _require_fitting(model, data, data.train)
    _require_batch_size(batch_size)
    model.train()
    losses, correct = [], []
    total = -(-len(data.train.labels) // batch_size)
    shuffled = batches(data.train, batch_size, generator)
    for images, labels in tqdm(shuffled, f"epoch {epoch}", total, leave=False):
        if augment is not None:
            images = augment(images, generator)
        logits = model(data.normalize(images))
        _require_logits(logits, len(labels))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()  # per batch, not per epoch
        # Kept as tensors: .item() here would make a GPU wait for every batch.
        losses.append(loss.detach() * len(labels))
        correct.append((logits.detach().argmax(dim=1) == labels).sum())
    return _epoch_means(losses, correct, len(data.train.labels), epoch)


def _epoch_means(losses: list, correct: list, images: int, epoch: int) -> tuple[float, float]:
    """Sums over batches divided by the number of images: exact with a smaller last batch too."""
    losses = torch.stack(losses)
    finite = torch.isfinite(losses)
    if not finite.all():
        batch = int((~finite).nonzero()[0]) + 1
        raise FloatingPointError(
            f"the loss is not finite from epoch {epoch}, batch {batch} of {len(losses)} on: "
            "lower the learning rate or check the input for NaN"
        )
    return losses.sum().item() / images, 100 * torch.stack(correct).sum().item() / images


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: Split, batch_size: int = 1_000) -> Evaluation:
    """Loss and accuracy of ``model`` on a split, in eval mode: no dropout, batch norm's averages.

    Leaves the model in the mode it came in.

    Raises:
        FloatingPointError: if a logit is not finite.
        ValueError: if the model does not fit the images, or is on another device.
    """
    _require_fitting(model, data, split)
    was_training = model.training
    model.eval()
    logits = torch.cat([model(data.normalize(x)) for x, _ in batches(split, batch_size)])
    model.train(was_training)
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the network's logits are not finite: its weights are damaged")
    loss = F.cross_entropy(logits, split.labels, reduction="sum").item() / len(split.labels)
    correct = int((logits.argmax(dim=1) == split.labels).sum())
    return Evaluation(loss, 100 * correct / len(split.labels), correct, logits)


def fit(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    augment: Augment | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    test_every_epoch: bool = False,
) -> dict[str, list[float]]:
    """Train for ``epochs`` and print one row per epoch; return the history (see HISTORY_KEYS).

    ``test_every_epoch`` adds a list ``test_accuracy``: only for studies *about* the test set.
    Interrupted by hand (KeyboardInterrupt) it returns the epochs that were completed.

    Raises:
        ValueError: if ``epochs`` is below 1.
        FloatingPointError: if a loss is not finite.
    """
    valid = isinstance(epochs, int) and epochs >= 1
    _require(valid, f"epochs must be at least 1, got {epochs!r}")
    history = {key: [] for key in (*HISTORY_KEYS, *["test_accuracy"] * test_every_epoch)}
    if data.name != "MNIST":  # a table of the stand-in must say so
        print(f"data set: {data.name}")
    print("epoch  train loss  train acc %  val loss  val acc %  learning rate  seconds")
    try:
        for epoch in range(1, epochs + 1):
            row = _one_epoch(
                model, data, optimizer, batch_size, generator, augment, scheduler, epoch
            )
            if test_every_epoch:
                row["test_accuracy"] = evaluate(model, data, data.test).accuracy
            for key, value in row.items():
                history[key].append(value)
    except KeyboardInterrupt:
        print(f"stopped by hand after {len(history['seconds'])} of {epochs} epochs")
    return history


def _one_epoch(model, data, optimizer, batch_size, generator, augment, scheduler, epoch) -> dict:
    """Train and validate once, print the row, return it."""
    rate = optimizer.param_groups[0]["lr"]  # at the start of the epoch
    start = time.perf_counter()
    loss, accuracy = train_epoch(
        model, data, optimizer, batch_size, generator, augment, scheduler, epoch
    )
    seconds = time.perf_counter() - start
    val = evaluate(model, data, data.val)
    print(
        f"{epoch:5d}  {loss:10.4f}  {accuracy:11.2f}  {val.loss:8.4f}  {val.accuracy:9.2f}"
        f"  {rate:13.5f}  {seconds:7.1f}",
        flush=True,
    )
    row = (loss, accuracy, val.loss, val.accuracy, rate, seconds)
    return dict(zip(HISTORY_KEYS, row, strict=True))


# --------------------------------------------------------------------------------------------------
# Dropout with few random draws: what notebook 10 found worth having on a CPU
# --------------------------------------------------------------------------------------------------


def chosen_places(count: int, share: float) -> Tensor:
    """The places, ascending, where ``count`` independent draws succeed with probability ``share``.

    Drawn by their gaps, which are geometrically distributed: about ``count * share`` random numbers
    instead of ``count`` (Devroye 1986, Non-Uniform Random Variate Generation, ch. XII).

    Raises:
        ValueError: unless ``count >= 0`` and ``0 < share < 1``.
    """
    good = isinstance(count, int) and count >= 0 and 0 < share < 1
    _require(good, f"expected count >= 0 and 0 < share < 1, got {count!r} and {share!r}")
    gaps = int(count * share + 6 * (count * share) ** 0.5 + 10)  # nearly always enough
    places = torch.empty(gaps, dtype=torch.int64).geometric_(share).cumsum(0) - 1
    while places[-1] < count:
        more = torch.empty(gaps, dtype=torch.int64).geometric_(share)
        places = torch.cat([places, places[-1] + more.cumsum(0)])
    return places[places < count]


class _ZeroSome(torch.autograd.Function):
    """Zero the given places, scale the other numbers up; the same for the gradient."""

    @staticmethod
    def forward(ctx, images: Tensor, places: Tensor, share: float) -> Tensor:
        result = images / (1 - share)  # dense, so its memory is one line of numbers
        result.as_strided((result.numel(),), (1,)).index_fill_(0, places, 0)
        ctx.save_for_backward(places)
        ctx.share, ctx.strides = share, result.stride()
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        result = gradient.new_empty_strided(gradient.shape, ctx.strides)
        torch.div(gradient, 1 - ctx.share, out=result)
        result.as_strided((result.numel(),), (1,)).index_fill_(0, *ctx.saved_tensors, 0)
        return result, None, None


class SparseDropout(nn.Dropout):
    """``nn.Dropout`` whose cost on a CPU follows the number of zeros, not of activations.

    The masks have the same distribution (Hinton et al. 2012, arXiv:1207.0580), but are not the same
    masks for a seed. On other devices, and for ``p`` of 0 or 1, it is ``nn.Dropout`` itself.
    """

    @torch.compiler.disable
    def forward(self, images: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or images.device.type != "cpu":
            return super().forward(images)
        return _ZeroSome.apply(images, chosen_places(images.numel(), self.p), self.p)


# --------------------------------------------------------------------------------------------------
# A look at the network
# --------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One row of the layer table; ``macs`` are multiply-accumulates for one image."""

    name: str
    output: tuple[int, ...]
    parameters: int
    receptive_field: int
    macs: int


def count_parameters(model: nn.Module) -> int:
    """All trainable parameters, shared ones once: the count that the budget of 20,000 is about."""
    _require_model(model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layer_table(model: nn.Module, input_shape: tuple[int, ...] = (1, 28, 28)) -> list[Layer]:
    """Output size, parameters, receptive field and cost of each layer, for layers in a chain.

    A layer with kernel k adds (k - 1) * dilation * jump to the receptive field; its stride
    multiplies the jump (https://distill.pub/2019/computing-receptive-fields/).

    Raises:
        ValueError: if ``input_shape`` is not (channels, height, width) or does not fit the model.
    """
    _require_model(model)
    valid = isinstance(input_shape, tuple) and len(input_shape) == 3
    _require(valid, f"input_shape must be (C, H, W), got {input_shape}")
    rows: list[Layer] = []
    field, jump = 1, 1

    def visit(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal field, jump
        kernel, stride = _kernel_and_stride(layer, inputs[0])
        field, jump = field + (kernel - 1) * jump, jump * stride
        own = [p for p in layer.parameters() if p.requires_grad]
        weights = layer.weight.numel() if isinstance(layer, nn.Conv2d | nn.Linear) else 0
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        shape = tuple(output.shape[1:])
        parameters = sum(p.numel() for p in own)
        rows.append(Layer(type(layer).__name__, shape, parameters, field, weights * positions))

    twin = copy.deepcopy(model).cpu().eval()  # hooks and modes stay off the caller's model
    for layer in twin.modules():
        if not list(layer.children()):
            layer.register_forward_hook(visit)
    try:
        with torch.no_grad():
            twin(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise ValueError(f"an image {input_shape} does not fit the model: {error}") from error
    return rows


def _kernel_and_stride(layer: nn.Module, x: Tensor) -> tuple[int, int]:
    """Extent and stride of a layer along one side; layers that read all positions span them all."""
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        first = [v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride)]
        dilation = getattr(layer, "dilation", 1)
        dilation = dilation[0] if isinstance(dilation, tuple) else dilation
        return (first[0] - 1) * dilation + 1, first[1]
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten) and x.ndim == 4:
        return x.shape[-1], 1
    return 1, 1


def print_layers(rows: list[Layer]) -> None:
    """Print the layer table, one aligned row per layer, and the totals."""
    _require(all(isinstance(row, Layer) for row in rows), f"expected rows of Layer, got {rows}")
    print(f"{'layer':<18} {'output':>13} {'parameters':>11} {'receptive field':>16} {'MACs':>11}")
    for row in rows:
        size = " x ".join(map(str, row.output))
        print(f"{row.name:<18} {size:>13} {row.parameters:>11,}", end=" ")
        print(f"{row.receptive_field:>16} {row.macs:>11,}")
    parameters, macs = sum(r.parameters for r in rows), sum(r.macs for r in rows)
    print(f"{'total':<18} {'':>13} {parameters:>11,} {'':>16} {macs:>11,}")


def torchsummary_table(model: nn.Module, input_shape: tuple[int, ...] = (1, 28, 28)) -> int:
    """Print torchsummary's table and return its total of parameters.

    torchsummary draws from the global random generator, would change batch norm's averages in train
    mode and assumes CUDA where there is CUDA: it gets a copy on the CPU in eval mode.

    Raises:
        ValueError: if ``input_shape`` does not fit the model.
    """
    layer_table(model, input_shape)  # its errors say what does not fit
    twin, text = copy.deepcopy(model).cpu().eval(), io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text), torch.no_grad():
        torchsummary.summary(twin, input_shape, device="cpu")
    table = text.getvalue()
    print(table[: table.index("Input size")].rstrip("-\n "))
    return int(re.search(r"Total params: ([\d,]+)", table)[1].replace(",", ""))


# --------------------------------------------------------------------------------------------------
# Records: one JSON file per run
# --------------------------------------------------------------------------------------------------

RECORD_KEYS = {
    *("study", "name", "seed", "epochs", "parameters", "dataset", "train_images", "val_images"),
    *("batch_size", "hyperparameters", "history", "test_accuracy", "test_correct", "seconds"),
    *("device", "threads", "versions"),
}


def make_record(
    study: str,
    name: str,
    seed: int,
    model: nn.Module,
    data: Data,
    history: dict[str, list[float]],
    test: Evaluation,
    hyperparameters: dict,
    epochs: int,
    **extra: object,
) -> dict:
    """Everything about one run that a reader may ask for later; the result is the last epoch.

    Raises:
        ValueError: if the history is empty or the hyperparameters lack the batch size.
    """
    _require("batch_size" in hyperparameters, "hyperparameters must name the batch_size")
    _require(bool(history.get("seconds")), "the history is empty: no epoch was completed")
    _require_logits(test.logits, len(data.test.labels))
    wrong = (test.logits.argmax(dim=1) != data.test.labels).nonzero().flatten()
    seconds = sum(history["seconds"])
    seen = len(history["seconds"]) * len(data.train.labels)
    return {
        "study": study,
        "name": name,
        "seed": seed,
        "epochs": epochs,
        "parameters": count_parameters(model),
        "dataset": data.name,
        "smoke_test": is_smoke_test(),
        "train_images": len(data.train.labels),
        "val_images": len(data.val.labels),
        "test_images": len(data.test.labels),
        "batch_size": hyperparameters["batch_size"],
        "hyperparameters": hyperparameters,
        "test_accuracy": test.accuracy,
        "test_correct": test.correct,
        "test_errors": wrong.tolist(),
        "seconds": seconds,
        "images_per_second": seen / seconds,
        **environment(test.logits.device),
        "history": history,
        **extra,
    }


def record_path(record: dict, results: Path = RESULTS) -> Path:
    """``results/<study>/<name>-seed<seed>.json``; under ``results/scratch/`` unless publishable.

    Publishable is a complete run on MNIST; a smoke test, a run on other data or a run stopped by
    hand must never overwrite a published record.

    Raises:
        ValueError: if the record lacks a field that says where it belongs, or one is no file name.
    """
    _require_fields(record, "study", "name", "seed", "epochs", "dataset", "history")
    # They become a folder and a file: "../x" would leave results/.
    for key in ("study", "name", "seed"):
        plain = re.fullmatch(r"[\w-]+", str(record[key]))
        _require(bool(plain), f"{key} must be letters, digits, _ and -, got {record[key]!r}")
    _require("seconds" in record["history"], "the record's history lacks 'seconds'")
    complete = len(record["history"]["seconds"]) == record["epochs"]
    public = record["dataset"] == "MNIST" and not record.get("smoke_test") and complete
    folder = results if public else results / "scratch"
    return folder / record["study"] / f"{record['name']}-seed{record['seed']}.json"


def save_record(record: dict, results: Path = RESULTS) -> Path:
    """Write a record through a temporary file and a rename; return its path.

    Raises:
        ValueError: if a field is missing or a number is not finite.
    """
    _require_fields(record, *RECORD_KEYS)
    path = record_path(record, results)
    text = json.dumps(record, indent=1, allow_nan=False)
    # Lists of numbers on one line: a history stays readable, a diff small.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)
    _write_atomically(path, text.encode() + b"\n")
    return path


def _write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)  # mkstemp's 0o600 would survive the rename
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_record(path: Path) -> dict:
    """Read one record.

    Raises:
        ValueError: naming the file, if it is not JSON or lacks a field.
    """
    try:
        record = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from error
    _require(isinstance(record, dict), f"{path} is not a record: {type(record).__name__}")
    missing = RECORD_KEYS - set(record)
    _require(not missing, f"{path} is not a record: it lacks {sorted(missing)}")
    return record


def load_records(study: str, dataset: str = "MNIST", results: Path = RESULTS) -> list[dict]:
    """All records of a study on one data set, sorted by file name."""
    folder = results if dataset == "MNIST" else results / "scratch"
    records = [load_record(path) for path in sorted((folder / study).glob("*.json"))]
    return [record for record in records if record["dataset"] == dataset]


def records_by_name(
    study: str, dataset: str = "MNIST", seed: int = 0, results: Path = RESULTS
) -> dict[str, dict]:
    """A study's records by their name; of several seeds the one asked for, or else the lowest."""
    records = load_records(study, dataset, results)
    return {r["name"]: r for r in sorted(records, key=lambda r: (r["seed"] == seed, -r["seed"]))}


def save_weights(model: nn.Module, record: dict, results: Path = RESULTS) -> dict:
    """Save the weights as safetensors beside the record; return the record with name and hash."""
    _require_model(model)
    path = record_path(record, results).with_suffix(".safetensors")
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    content = save(state, metadata={"record": path.with_suffix(".json").name})
    _write_atomically(path, content)
    return record | {"weights": {"file": path.name, "sha256": hashlib.sha256(content).hexdigest()}}


def load_weights(model: nn.Module, record: dict, results: Path = RESULTS) -> nn.Module:
    """Load the weights that ``save_weights`` stored for this record into ``model``; return it.

    Raises:
        FileNotFoundError, ValueError: if the file is missing, damaged, or of another network.
    """
    _require_model(model)
    path = record_path(record, results).with_suffix(".safetensors")
    remedy = f"Run notebooks/{record['name']}.ipynb to make it again."
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {remedy}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    expected = record.get("weights", {}).get("sha256")
    _require(digest == expected, f"{path} does not belong to its record (SHA-256). {remedy}")
    try:
        model.load_state_dict(load(content))
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: {error}") from error
    return model


RULES = (
    ">= 99.4 % on the test set",
    "< 20,000 parameters",
    "< 20 epochs",
    "batch norm and dropout",
    "GAP and FC",
)


def _ingredients(model: nn.Module) -> tuple[bool, float, bool, bool]:
    """Has it batch norm, how much dropout, has it GAP, has it an FC layer?"""
    layers = list(model.modules())
    drops = [m.p for m in layers if isinstance(m, nn.Dropout | nn.Dropout2d)]
    pools = [m.output_size for m in layers if isinstance(m, nn.AdaptiveAvgPool2d)]
    # A 1 x 1 convolution to ten channels beside GAP computes what an FC layer behind it does.
    heads = [m.out_channels for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    norm, linear = (any(isinstance(m, k) for m in layers) for k in (nn.BatchNorm2d, nn.Linear))
    return (
        norm,
        max(drops, default=0.0),
        any(s in (1, (1, 1)) for s in pools),
        linear or 10 in heads,
    )


def judge(record: dict, model: nn.Module) -> list[tuple[str, str, str]]:
    """The five rules as (rule, what the run has, verdict); accuracy only on MNIST in full."""
    _require_model(model)
    _require_fields(record, "test_accuracy", "parameters", "epochs", "dataset", "history")
    norm, dropout, gap, linear = _ingredients(model)
    has = [
        f"{record['test_accuracy']:.2f} %",
        f"{record['parameters']:,}",
        f"{record['epochs']}",
        f"{'batch norm' if norm else 'no batch norm'}, dropout {dropout:g}",
        f"{'GAP' if gap else 'no GAP'}, {'FC' if linear else 'no FC'}",
    ]
    passed = [record["test_accuracy"] >= 99.4, record["parameters"] < 20_000]
    passed += [record["epochs"] < 20, norm and dropout > 0, gap and linear]
    verdicts = ["pass" if ok else "FAIL" for ok in passed]
    if record["dataset"] != "MNIST":
        verdicts[0] = "not judged: not MNIST"
    elif record.get("smoke_test"):
        verdicts[0] = "not judged: smoke test"
    elif len(record["history"]["seconds"]) < record["epochs"]:
        verdicts[0] = "not judged: stopped early"
    return list(zip(RULES, has, verdicts, strict=True))


def print_rules(rows: list[tuple[str, str, str]], dataset: str) -> None:
    """Print the five-rule table, headed by the data set's name."""
    print(f"{'rule':<27} {'this run on ' + dataset:<45} verdict")
    for rule, value, verdict in rows:
        print(f"{rule:<27} {value:<45} {verdict}")


# --------------------------------------------------------------------------------------------------
# Plots: the same colours for the same thing everywhere (Okabe-Ito, safe for colour-blind readers)
# --------------------------------------------------------------------------------------------------

COLORS = {
    "train": "#0072B2",
    "val": "#D55E00",
    "test": "#009E73",
    "before": "#8C8C8C",
    "accent": "#CC79A7",
}


def use_style() -> None:
    """Small, readable figures: the fonts stay legible at the width GitHub shows them."""
    style = {
        "figure.dpi": 110,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
    plt.rcParams.update(style)  # checked by matplotlib; |= is not


def plot_digits(images: Tensor, titles: list[str], columns: int = 10, scale: float = 0.9) -> None:
    """A grid of digits (``[N, 28, 28]``), each under its title."""
    _require(images.ndim == 3, f"images must be [N, 28, 28], got {list(images.shape)}")
    _require(len(images) == len(titles) > 0, f"{len(images)} images, but {len(titles)} titles")
    rows = -(-len(images) // columns)
    _, axes = plt.subplots(
        rows, columns, figsize=(columns * scale, rows * (scale + 0.28)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images.cpu(), titles, strict=False):
        axis.imshow(image, cmap="gray_r")
        axis.set_title(title, fontsize=8)


def plot_curves(record: dict, before: dict | None = None) -> None:
    """Loss (log scale) and accuracy per epoch, training and validation; the step before in grey."""
    for run in (record, before or record):
        _require_fields(run, "history", "name", "dataset")
    _, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    styles = {"train": ("--", None, "training"), "val": ("-", "o", "validation")}
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for run in [before, record] if before else [record]:
            for part, (line, marker, label) in styles.items():
                values = run["history"][f"{part}_{metric}"]
                color, extra = COLORS[part], ""
                if run is before:
                    color, extra = COLORS["before"], f", {run['name'].replace('_', ' ')}"
                style = {"color": color, "marker": marker, "ms": 3, "label": label + extra}
                if run is before:  # not by colour alone: thinner, and hollow dots
                    style |= {"lw": 1, "mfc": "white"}
                axis.plot(range(1, len(values) + 1), values, line, **style)
        axis.set(xlabel="epoch", title=f"{metric.capitalize()} ({record['dataset']})")
        axis.xaxis.get_major_locator().set_params(integer=True)
    late = [v for r in (record, before or record) for v in r["history"]["val_accuracy"][1:]]
    axes[0].set(yscale="log", ylabel="cross-entropy loss")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")  # 0.02, not 2 x 10^-2
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[1].set(ylabel="accuracy (%)", ylim=(min(late, default=0.5) - 0.5, 100.05))
    axes[1].legend(fontsize=8, loc="lower right")


def plot_mistakes(data: Data, test: Evaluation, limit: int = 25) -> None:
    """The misclassified test digits, the most confident first, with label and prediction."""
    _require_logits(test.logits, len(data.test.labels))
    confidence, predicted = test.logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != data.test.labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)][:limit]
    if len(wrong) == 0:
        print("no mistakes")
        return
    titles = [
        f"{data.test.labels[i]} read {predicted[i]}\n{100 * confidence[i]:.0f} %" for i in wrong
    ]
    plot_digits(data.test.images[wrong], titles, columns=min(9, max(1, len(wrong))), scale=1.0)
    plt.suptitle(
        f"{len(wrong)} of {len(data.test.labels) - test.correct} mistakes ({data.name})",
        fontsize=10,
    )


def plot_steps(records: list[dict]) -> Figure:
    """Test accuracy (last epoch) and number of parameters, step by step, with the two rules."""
    _require(len(records) > 0, "plot_steps needs at least one record")
    for record in records:
        _require_fields(record, "name", "test_accuracy", "parameters", "dataset")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    names = [record["name"].replace("_", " ") for record in records]
    accuracy = [record["test_accuracy"] for record in records]
    parameters = [record["parameters"] for record in records]
    axes[0].plot(names, accuracy, "o-", color=COLORS["test"])
    axes[0].set(ylabel="test accuracy (%)", title=f"Last epoch, one seed ({records[0]['dataset']})")
    for i, value in enumerate(accuracy):
        dip = accuracy[i - 1 : i] > [value] < accuracy[i + 1 : i + 2]  # higher on both sides
        style = {"textcoords": "offset points", "ha": "center", "va": "top" if dip else "bottom"}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the lines
        axes[0].annotate(f"{value:.2f}", (i, value), (0, -6 if dip else 5), **style)
    bars = axes[1].bar(names, parameters, color=COLORS["train"], width=0.85)
    axes[1].bar_label(
        bars, [f"{n:,}" for n in parameters], label_type="center", fontsize=8, color="white"
    )
    axes[1].set(ylabel="parameters", title="Parameters", ylim=(0, 25_000))
    axes[0].set_ylim(min(*accuracy, 99.4) - 0.15, max(*accuracy, 99.4) + 0.15)
    for axis, rule, label in zip(axes, (99.4, 20_000), ("99.4 %", "20,000"), strict=True):
        axis.axhline(rule, color=COLORS["before"], ls="--", lw=1, zorder=0)
        axis.set_xlim(-0.6, max(len(records), 3) - 0.4)  # one bar alone would fill the panel
        axis.text(axis.get_xlim()[1], rule, f" {label}", va="center", fontsize=8)
        axis.tick_params(axis="x", rotation=30)
        axis.grid(axis="x", visible=False)
        plt.setp(axis.get_xticklabels(), ha="right")
    return figure


def save_figure(name: str, data: Data, figure: Figure) -> None:
    """Save a figure as ``images/<name>.png``: only from full runs on MNIST."""
    _require(bool(re.fullmatch(r"[\w-]+", name)), f"name must be a file's stem, got {name!r}")
    _require(isinstance(figure, Figure), f"expected a Figure, got {type(figure).__name__}")
    if data.name == "MNIST" and not is_smoke_test():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        _write_atomically(IMAGES / f"{name}.png", picture.getvalue())
