"""One JSON file a run, its weights beside it; the five rules; the table of all runs; studies."""

import hashlib
import io
import json
import math
import os
import platform
import re
import statistics
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy import special
from torch import nn

import utils
from files import write_atomically
from mnist import HERE
from soundness import check, remedy
from utils import Evaluation, Loader, require

NOTEBOOKS = HERE / "notebooks"
RESULTS = NOTEBOOKS / "results"
IMAGES = HERE / "images"
# Test digits whose label people doubt: https://github.com/cleanlab/label-errors
LABEL_ERRORS = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527)
LABEL_ERRORS += (9679, 9729)
COLUMNS = ("study", "name", "seed", "epochs", "parameters", "dataset", "train_images", "val_images")
COLUMNS += ("batch_size", "test_accuracy", "test_correct", "seconds", "device", "threads")


def environment(device: torch.device | str) -> dict:
    """Where a run happens: ``device`` (name), ``threads`` and ``versions``."""
    device, cpuinfo = torch.device(device), Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1] if found else platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"torch": torch.__version__, "torchvision": version("torchvision")}
    threads = torch.get_num_threads()
    return {"device": f"{device.type}: {name}", "threads": threads, "versions": versions}


def make_run(
    run: dict,
    model: nn.Module,
    history: dict[str, list[float]],
    loaders: tuple[Loader, Loader],
    test: Evaluation | None,
    **extra: object,
) -> dict:
    """Everything about one run that a reader may ask for later; the result is the last epoch.

    ``run`` holds study, name, seed, epochs and hyperparameters; ``loaders`` are those of the
    training and the validation images; ``test`` is None where the test set was not looked at.
    Raises a ValueError if the history is empty.
    """
    require(bool(history.get("seconds")), "the history is empty: no epoch was completed")
    train, val = loaders
    record = run | {"parameters": utils.count_parameters(model), "dataset": train.data.name}
    record |= {"smoke_test": utils.is_smoke_test(), "batch_size": train.batch_size}
    record |= {"train_images": len(train.split), "val_images": len(val.split)}
    record |= {"seconds": sum(history["seconds"])}
    record |= dict.fromkeys(("test_images", "test_accuracy", "test_correct", "test_errors"))
    if test is not None:
        wrong = (test.logits.argmax(dim=1) != test.labels).nonzero().flatten().tolist()
        record |= {"test_images": len(test.labels), "test_errors": wrong}
        record |= {"test_accuracy": test.accuracy, "test_correct": test.correct}
    return record | environment(next(model.parameters()).device) | {"history": history} | extra


def make_measurement(study: str, name: str, rows: list[dict], loader: Loader) -> dict:
    """A measurement that is no training: its rows, and where they were measured."""
    where = environment(loader.split.images.device)
    identity = {"study": study, "name": name, "seed": 0, "dataset": loader.data.name}
    return identity | {"smoke_test": utils.is_smoke_test(), **where, "rows": rows}


def _file(record: dict, suffix: str = ".json") -> Path:
    """``<study>/<name>-seed<seed>``; what cannot be part of a file's name is refused."""
    for key, kind in {"study": str, "name": str, "seed": int}.items():
        good = isinstance(record.get(key), kind) and re.fullmatch(r"[\w-]{1,80}", str(record[key]))
        require(bool(good), f"{key} must be letters, digits, _ and -, got {record.get(key)!r}")
    return Path(record["study"], f"{record['name']}-seed{record['seed']}{suffix}")


def record_path(record: dict, results: Path = RESULTS) -> Path:
    """``results/<study>/<name>-seed<seed>.json``; under ``results/scratch/`` unless publishable.

    Publishable is a complete run on MNIST with the epochs and hyperparameters of the runs that are
    there under its name (in "steps" also their seed). What is there already, ``manage.py execute``
    alone replaces. Raises a ValueError if study, name or seed cannot be part of a file's name.
    """
    path, scratch = _file(record), results / "scratch"
    if record["study"] == "scratch":
        return results / path
    public = record["dataset"] == "MNIST" and not record.get("smoke_test")
    public = public and (not (results / path).exists() or bool(os.environ.get("PUBLISH")))
    if public and "rows" not in record:
        keys = ("epochs", "hyperparameters", *["seed"] * (record["study"] == "steps"))
        public = len(record["history"]["seconds"]) == record["epochs"]
        for there in (results / path).parent.glob(f"{record['name']}-seed*.json"):
            try:
                old = load_record(there)
            except ValueError:  # damaged: the new run is kept, and the old one stays to be mended
                public = False
            else:
                public = public and all(record[key] == old[key] for key in keys)
    return (results if public else scratch) / path


def save_record(record: dict, model: nn.Module | None = None, results: Path = RESULTS) -> Path:
    """Write a record, and its network's weights beside it as safetensors; return its path.

    The record then names the weights' file and SHA-256. Raises a ValueError if a field is missing,
    a number is not finite, or the numbers contradict each other.
    """
    path = record_path(record, results)
    check(record, path)
    if model is not None:
        state = model.state_dict()  # cloned: safetensors refuses kernels that are shared
        state = {key: value.cpu().contiguous().clone() for key, value in state.items()}
        content = save(state, metadata={"record": path.name})
        file = path.with_suffix(".safetensors")
        record["weights"] = {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
        write_atomically(file, content)
    text = json.dumps(record, indent=1, allow_nan=False)
    # Lists of numbers on one line: a history stays readable, a diff small.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)
    write_atomically(path, text.encode() + b"\n")
    return path


def load_record(path: Path) -> dict:
    """Read one record; raise a ValueError that names file and remedy if it is not sound."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check(record, path)
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is not a record: {error}. {remedy(path)}") from error
    return record


def load_records(
    study: str, name: str | None = None, dataset: str = "MNIST", results: Path = RESULTS
) -> list[dict]:
    """A study's records, or those of one name, by name and seed; no smoke test, none superseded."""
    folder = (results if dataset == "MNIST" else results / "scratch") / study
    records = [load_record(path) for path in folder.glob("*.json")]
    records = [r for r in records if r["dataset"] == dataset and not r.get("smoke_test")]
    records = [r for r in records if r.get("status") != "superseded" and name in (None, r["name"])]
    return sorted(records, key=lambda r: (r["name"], r["seed"]))


def load_weights(model: nn.Module, record: dict, results: Path = RESULTS) -> nn.Module:
    """Load the weights that belong to a record, published or not, into ``model``; return it.

    Raises a FileNotFoundError or ValueError if they are missing, damaged, or another network's.
    """
    path, *other = (root / _file(record, ".safetensors") for root in (results, results / "scratch"))
    found = [file.read_bytes() for file in (path, *other) if file.is_file()]
    if not found:
        raise FileNotFoundError(f"{path} is missing. {remedy(path)}")
    wanted = record.get("weights", {}).get("sha256")
    own = [content for content in found if hashlib.sha256(content).hexdigest() == wanted]
    require(bool(own), f"{path} does not belong to its record (SHA-256). {remedy(path)}")
    try:
        model.load_state_dict(load(own[0]))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} holds another network: {error}") from error
    return model


def judge(record: dict, model: nn.Module) -> pd.DataFrame:
    """The five rules as rule, what the run has, verdict; accuracy only on MNIST in full."""
    layers = list(model.modules())
    norm, linear = (any(isinstance(m, k) for m in layers) for k in (nn.BatchNorm2d, nn.Linear))
    dropout = max((m.p for m in layers if isinstance(m, nn.Dropout | nn.Dropout2d)), default=0.0)
    gap = any(m.output_size in (1, (1, 1)) for m in layers if isinstance(m, nn.AdaptiveAvgPool2d))
    # A 1 x 1 convolution to ten channels beside GAP computes what an FC layer behind it does.
    heads = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    linear = linear or any(m.out_channels == 10 for m in heads)
    no = {True: "", False: "no "}
    words = f"{no[norm]}batch norm, dropout {dropout:g}"
    accuracy, parameters, epochs = (record[k] for k in ("test_accuracy", "parameters", "epochs"))
    rows = {
        ">= 99.4 % on the test set": (f"{accuracy:.2f} %", accuracy >= 99.4),
        "< 20,000 parameters": (f"{parameters:,}", parameters < 20_000),
        "< 20 epochs": (f"{epochs}", epochs < 20),
        "batch norm and dropout": (words, norm and 0 < dropout < 1),
        "GAP and FC": (f"{no[gap]}GAP, {no[linear]}FC", gap and linear),
    }
    rows = [(rule, has, "pass" if good else "FAIL") for rule, (has, good) in rows.items()]
    reasons = ["not MNIST"] * (record["dataset"] != "MNIST") + ["smoke test"] * record["smoke_test"]
    reasons += ["stopped early"] * (len(record["history"]["seconds"]) < epochs)
    if reasons:
        rows[0] = (*rows[0][:2], f"not judged: {reasons[0]}")
    return pd.DataFrame(rows, columns=["rule", f"this run on {record['dataset']}", "verdict"])


def save_figure(name: str, dataset: str, figure: Figure) -> None:
    """Save a figure as ``images/<name>.png``: MNIST in full, and by ``manage.py execute`` alone."""
    if dataset == "MNIST" and os.environ.get("PUBLISH") and not utils.is_smoke_test():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
        write_atomically(IMAGES / f"{name}.png", picture.getvalue())


def summary(values: Sequence[float]) -> dict[str, float]:
    """n, mean with its 95 % interval (Student's t, over seeds), std, min and max of some runs."""
    n, mean = len(values), statistics.mean(values)
    std = statistics.stdev(values) if n > 1 else math.nan
    half = special.stdtrit(n - 1, 0.975) * std / n**0.5
    row = {"n": n, "mean": mean, "low": mean - half, "high": mean + half}
    return row | {"std": std, "min": min(values), "max": max(values)}


def difference(after: Sequence[float], before: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ``after`` minus mean of ``before``, and its 95 % interval (Welch's t)."""
    from scipy import stats  # takes more than a second: not for those who compare nothing

    interval = stats.ttest_ind(after, before, equal_var=False).confidence_interval()
    return statistics.mean(after) - statistics.mean(before), interval.low, interval.high


def table(results: Path = RESULTS) -> pd.DataFrame:
    """All runs, one a row: what, how good, how long, where, with which hyperparameters."""
    rows = []
    for record in map(load_record, sorted(results.glob("*/*.json"))):
        if "rows" in record or record["study"] == "scratch":  # no run, or not published
            continue
        row = {k: record[k] for k in COLUMNS}
        row["val_loss"] = (record["history"].get("val_loss") or [record.get("val_loss")])[-1]
        row |= {"status": record.get("status", "valid"), "reason": record.get("reason", "")}
        own = record["hyperparameters"].items()
        own = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in own if k not in row}
        rows.append(row | record["versions"] | own)
    return pd.DataFrame(rows)


def run_study(
    plan: list[tuple[str, int]],
    run: Callable[[str, int], object],
    have: set[tuple[str, int]],
    scheduler: str | None = None,
) -> list[str]:
    """Call ``run(name, seed)`` for all of the plan that has no record; return what failed, and why.

    In turn in this process; with ``scheduler="local"`` on a Dask cluster of this machine's cores,
    with an address (``tcp://host:8786``) on one that is running. ``run`` saves its record: what was
    interrupted goes on where it stopped. A run that fails does not stop the others.
    """
    todo = plan[:1] if utils.is_smoke_test() else [job for job in plan if job not in have]
    print(f"{len(set(plan) & have)} of {len(plan)} runs have a record; to run now: {len(todo)}")
    failed = []
    if scheduler is None or (scheduler == "local" and len(todo) == 1):  # one needs no cluster
        for job in todo:
            try:
                run(*job)
            except Exception:
                failed.append(f"{job} failed:\n{traceback.format_exc()}")
    elif todo:
        from distributed import Client, as_completed  # only who runs a study needs it

        workers = min(len(todo), os.cpu_count() or 1)  # any port: another study may be under way
        local = {"threads_per_worker": 1, "n_workers": workers, "dashboard_address": "127.0.0.1:0"}
        try:
            client = Client(**local) if scheduler == "local" else Client(scheduler, timeout=10)
        except (OSError, ValueError, OverflowError) as error:
            raise ValueError(f"SCHEDULER: no Dask cluster at {scheduler!r}: {error}") from error
        with client:
            # Once more if it fails: two kernels that start at once may draw one port.
            runs = {client.submit(run, *job, pure=False, retries=1): job for job in todo}
            for done in as_completed(runs):
                print(*runs[done], done.status, flush=True)
                if done.status != "finished":
                    failed.append(f"{runs[done]} failed:\n{done.exception()}")
    require(not (failed and utils.is_smoke_test()), "\n".join(failed))
    return failed


def run_notebook(notebook: Path, values: dict, copy: Path, cwd: Path = NOTEBOOKS) -> None:
    """Execute ``copy`` of a notebook with these parameters, on one thread; raise what it raises."""
    import papermill  # only who runs a study needs it

    # Two runs side by side do more than one on two threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    copy.parent.mkdir(parents=True, exist_ok=True)
    how = {"cwd": cwd, "kernel_name": "python3", "progress_bar": False}
    papermill.execute_notebook(notebook, copy, values, **how)
