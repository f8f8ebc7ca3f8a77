"""What the records say, as Markdown: each step's result, README's tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import manage
import records

IDEAS = {  # step: (what is new, what the idea is for)
    "01_baseline": ("six convolutions, ReLU, flatten + linear", ""),
    "02_batch_norm": (
        "batch norm after each convolution",
        "it makes the network easier to train: it learns faster and bears higher rates",
    ),
    "03_dropout": (
        "a little dropout after each block",
        "the rules ask for it, and at this size it costs nothing that can be measured",
    ),
    "04_gap_fc": (
        "global average pooling + a small linear layer",
        "it saves 5,760 parameters and makes the network bear shifts",
    ),
    "05_augmentation": (
        "random affine transforms of the training images",
        "it makes the network bear rotations and shifts",
    ),
    "06_lr_schedule": ("one-cycle learning rate", ""),
}


def step_runs(step: str) -> list[dict]:
    """The runs of a step, one a seed: those of the study of many seeds."""
    return records.load_records("seeds", step)


def accuracies(step: str) -> list[float]:
    """Test accuracies (%) of a step's runs after the last epoch."""
    return [record["test_accuracy"] for record in step_runs(step)]


def step_result(step: str) -> str:
    """The sentence that opens a step's notebook: its runs, and the difference to the step before.

    The result is the last epoch; intervals are Student's and Welch's, over seeds.
    """
    row = records.summary(accuracies(step))
    misread = 100 * (100 - row["mean"])
    text = (
        f"**Result of this step: {row['mean']:.3f} %** on average over {row['n']} runs, last epoch "
        f"(95 % interval {row['low']:.3f} to {row['high']:.3f}, std {row['std']:.3f}, "
        f"min {row['min']:.2f}): {misread:.0f} of 10,000 test digits misread."
    )
    place = manage.STEPS.index(step)
    if place == 0:
        return text
    gain, low, high = records.difference(accuracies(step), accuracies(manage.STEPS[place - 1]))
    text += f" Step {place} → {place + 1}: **{gain:+.3f} points** ({low:+.3f} to {high:+.3f})."
    if low <= 0 <= high:
        text += " The interval contains zero: no difference in accuracy is shown."
    purpose = IDEAS[step][1]
    return text + (f" What the idea is for: {purpose}." if low <= 0 and purpose else "")
