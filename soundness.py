"""When a record is believed, and how a damaged one comes back."""

import json
import math
import shlex
import subprocess
from pathlib import Path

from mnist import HERE
from utils import require

IDENTITY = {"study": str, "name": str, "seed": int, "dataset": str, "device": str, "threads": int}
FIELDS = IDENTITY | {"epochs": int, "parameters": int, "train_images": int, "val_images": int}
FIELDS |= {"batch_size": int, "seconds": float, "hyperparameters": dict, "history": dict}
FIELDS |= {"versions": dict, "test_accuracy": float, "test_correct": int, "test_errors": list}
EXTRA = {"rows": list, "weights": dict, "smoke_test": bool, "status": str, "reason": str}


def check(record: object, path: Path) -> None:
    """Raise a ValueError unless a record has all fields and its numbers agree with each other."""
    require(isinstance(record, dict), f"it holds a {type(record).__name__}, not fields")
    fields = IDENTITY if "rows" in record else FIELDS
    missing = sorted(set(fields) - set(record) - {"test_errors"})
    require(not missing, f"it lacks {missing}")
    for key, kind in (fields | EXTRA).items():
        value = record.get(key)
        absent = value is None and (key in EXTRA or key.startswith("test_"))
        good = absent or type(value) is kind or (kind is float and type(value) is int)
        require(good, f"{key} must be {kind.__name__}, not {type(value).__name__}")
    own = f"{record['study']}/{record['name']}-seed{record['seed']}.json"
    require(f"{path.parent.name}/{path.name}" == own, f"its place is {own}")
    try:
        json.dumps(record, allow_nan=False)
    except ValueError:
        raise ValueError("one of its numbers is not finite") from None
    if "rows" in record:
        return
    columns = record["history"].values()
    good = all(isinstance(c, list) and {type(v) for v in c} <= {int, float} for c in columns)
    require(good, "its history must be lists of numbers")
    lengths, epochs = {len(values) for values in columns}, record["epochs"]
    early = "scratch" in path.parts[-3:-1] or "history_note" in record
    good = epochs >= 1 and (lengths == {epochs} or (early and len(lengths) == 1))
    require(good, f"it has {epochs} epochs, but {lengths} in its history")
    if record["test_accuracy"] is not None:
        images, correct, wrong = (record.get(f"test_{k}") for k in ("images", "correct", "errors"))
        good = type(images) is int and type(correct) is int and 0 <= correct <= images > 0
        good = good and math.isclose(record["test_accuracy"], 100 * correct / images)
        require(good, f"{correct} of {images} are not {record['test_accuracy']} %")
        found = {i for i in wrong or () if type(i) is int and 0 <= i < images}
        good = len(found) == len(wrong or ()) == images - correct
        require(good, "its mistakes do not add up")


def remedy(path: Path) -> str:
    """How a damaged or missing file comes back: if git has it, by a command for any folder."""
    first = "Move the folder away. " if path.is_dir() else ""
    git = ["git", "-C", str(HERE)]
    try:
        known = subprocess.run([*git, "ls-files", "--error-unmatch", path], capture_output=True)
    except OSError:  # no git here
        known = None
    if known and known.returncode == 0:
        return f"{first}Restore it: {shlex.join([*git, 'checkout', 'HEAD', '--', str(path)])}"
    return f"{first}Delete it if it is there, and repeat the run that made it."
