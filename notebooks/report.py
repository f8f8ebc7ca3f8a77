"""What the records say, as Markdown: each step's result, README's tables."""

import itertools
import statistics
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
        "the rules ask for it; it costs time ([step 11](11_cost_of_a_step.ipynb))",
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
QUESTIONS = {
    "07_reference_networks": "How good are the five networks that set this task?",
    "08_many_seeds": "What will *you* get, and what is each idea worth?",
    "09_smallest_network": "How few parameters are enough?",
    "10_time_to_994": "How fast can it be on a CPU?",
    "11_cost_of_a_step": "Where does the time of a training step go?",
    "12_best_under_20k": "How good can it get with fewer than 20,000 parameters?",
    "13_look_inside": "What does the network see?",
    "14_can_it_be_believed": "When is it right to be sure, and what breaks it?",
    "15_your_own_digit": "Can it read your handwriting?",
    "16_taught": "Can large networks teach a small one?",
    "17_glances": "What does a second look at the same digit bring?",
    "18_every_grid": "What does max pooling throw away?",
}


def step_runs(step: str) -> list[dict]:
    """The runs of a step, one a seed: those of the study of many seeds."""
    return records.load_records("seeds", step)


def accuracies(found: list[dict]) -> list[float]:
    """Test accuracies (%) after the last epoch."""
    return [record["test_accuracy"] for record in found]


def readings(*names: str, reading: str = "every grid") -> list[float]:
    """Test accuracies (%) that notebook 18 measured: of these networks, read so."""
    rows = itertools.chain.from_iterable(
        r["rows"] for name in names for r in records.load_records("every_grid", name)
    )
    return [r["right"] / 100 for r in rows if (r["part"], r["reading"]) == ("test", reading)]


def every_grid() -> dict[int, dict]:
    """Parameters, and the summary of that network's accuracies on every grid (notebook 18)."""
    names = {2_194: ("hard_2194", "again_2194"), 3_700: ("taught_3700", "again_3700")}
    names[8_020] = ("taught_8020",)
    return {size: records.summary(readings(*names[size])) for size in names}


def step_result(step: str) -> str:
    """The sentence that opens a step's notebook: its runs, and the difference to the step before.

    The result is the last epoch; intervals are Student's and Welch's, over seeds.
    """
    own = accuracies(step_runs(step))
    row = records.summary(own)
    misread = 100 * (100 - row["mean"])
    text = (
        f"**Result of this step: {row['mean']:.3f} %** on average over {row['n']} runs, last epoch "
        f"(95 % interval {row['low']:.3f} to {row['high']:.3f}, std {row['std']:.3f}, "
        f"min {row['min']:.2f}): {misread:.0f} of 10,000 test digits misread."
    )
    place = manage.STEPS.index(step)
    if place == 0:
        return text
    before = accuracies(step_runs(manage.STEPS[place - 1]))
    gain, low, high = records.difference(own, before)
    text += f" Step {place} → {place + 1}: **{gain:+.3f} points** ({low:+.3f} to {high:+.3f})."
    both = step_runs(step) + step_runs(manage.STEPS[place - 1])
    if len({run["device"] for run in both}) > 1:
        text += " (The runs come from more than one processor: results/runs.csv names each.)"
    if low <= 0 <= high:
        text += " The interval contains zero: this does not show an effect on accuracy."
    purpose = IDEAS[step][1]
    return text + (f" What the idea is for: {purpose}." if purpose else "")


def groups(study: str) -> dict[str, list[dict]]:
    """The runs of a study by their name; measurements are left out."""
    found: dict[str, list[dict]] = {}
    for record in records.load_records(study):
        if "rows" not in record:
            found.setdefault(record["name"], []).append(record)
    return found


def reached(values: list[float], bar: float = 99.4) -> bool:
    """Whether a mean over at least ten seeds clears the bar by two standard errors."""
    row = records.summary(values)
    return row["n"] >= 10 and row["mean"] - 2 * row["std"] / row["n"] ** 0.5 >= bar


def smallest(bar: float = 99.4) -> list[dict]:
    """The runs of the smallest network whose mean over at least ten seeds is at the bar."""
    found = [
        runs
        for runs in groups("smallest").values()
        if len(runs) >= 10 and statistics.mean(accuracies(runs)) >= bar
    ]
    return min(found, key=lambda runs: runs[0]["parameters"])


def timed() -> tuple[dict[str, float], str]:
    """Median seconds of a whole run of each recipe, timed in turns (tests/race.py); and where.

    By the pace of 60 batches; for the recipes whose whole runs were timed, too, by these.
    """
    seconds = {}
    for study in ("in_turns", "pairs"):
        (measured,) = records.load_records("speed", study)
        found: dict[str, list[float]] = {}
        for row in measured["rows"]:
            found.setdefault(row["name"], []).append(row["seconds"])
        seconds |= {name: statistics.median(values) for name, values in found.items()}
    return seconds, measured["device"].removeprefix("cpu: ")


def fastest() -> list[dict]:
    """The runs of the recipe that reached 99.4 in the fewest seconds; of those within a tenth of
    them, which equal work may differ by, the most accurate.
    """
    seconds, _ = timed()
    found = {}
    for runs in groups("speed").values():
        own = [run for run in runs if run["seed"] < 100]
        if own and own[0].get("recipe") in seconds and reached(accuracies(own)):
            found[own[0]["recipe"]] = own
    limit = 1.1 * min(seconds[recipe] for recipe in found)
    near = [runs for recipe, runs in found.items() if seconds[recipe] <= limit]
    return max(near, key=lambda runs: statistics.mean(accuracies(runs)))


def best_reference() -> tuple[str, list[dict]]:
    """The reference network with the best mean after the last epoch of its own recipe."""
    found = {name: runs for name, runs in groups("references").items() if "as_pub" in name}
    name = max(found, key=lambda name: statistics.mean(accuracies(found[name])))
    return name.split("_")[0], found[name]


def best() -> list[dict]:
    """The runs of notebook 12's network and recipe with the highest mean."""
    return max(groups("best").values(), key=lambda runs: statistics.mean(accuracies(runs)))


def results_table() -> str:
    """README's table of results: means over seeds at the last epoch, beside the best known."""
    reference, theirs = best_reference()
    link = f"[{reference}](notebooks/07_reference_networks.ipynb)"
    rival = f"{link}, highest mean of five reference networks"
    rows = {
        "[step 6](notebooks/06_lr_schedule.ipynb), the series' network": step_runs(
            manage.STEPS[-1]
        ),
        "[smallest](notebooks/09_smallest_network.ipynb) with a mean of 99.4": smallest(),
        "[fastest](notebooks/10_time_to_994.ipynb) to a mean of 99.4": fastest(),
        "[best](notebooks/12_best_under_20k.ipynb), highest of three means": best(),
        rival: theirs,
    }
    lines = [
        "| recipe | parameters | epochs | mean (%) | std | n | min | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    seconds, where = timed()
    learned = sorted({runs[0]["train_images"] for runs in rows.values()})  # ours fewer
    names = ("step6", "smallest", fastest()[0]["recipe"], "", reference)  # as they are timed
    for name, (label, runs) in zip(names, rows.items(), strict=True):
        row, first = records.summary(accuracies(runs)), runs[0]
        spent = f"{float(f'{seconds[name]:.2g}'):,.0f}" if name else ""  # best: not in turns
        lines.append(
            f"| {label} | {first['parameters']:,} | {first['epochs']} | **{row['mean']:.3f}** | "
            f"{row['std']:.3f} | {row['n']} | {row['min']:.2f} | {spent} |"
        )
    known = "https://github.com/cdeotte/MNIST-CNN-99.75"
    lines += [
        f"| [cdeotte]({known}), 17 times as large | 326,410 | 30 | 99.641 | 0.047 | 1,500 | | |",
        "",
        "Test accuracy after the *last* epoch, over seeds. Seconds: training alone, one thread of "
        f"{where}, in turns, two significant digits (by the pace of 60 batches; "
        f"*fastest*: whole runs). {reference}, as published, and *best* learn from "
        f"{learned.pop():,} images (the others from {learned.pop():,}), {reference} for one epoch "
        "more than the rules allow.",
    ]
    return "\n".join(lines)


def answers() -> dict[str, str]:
    """One line a notebook, from the records."""
    found = {}
    for step in manage.STEPS:
        row = records.summary(accuracies(step_runs(step)))
        found[step] = f"{row['mean']:.2f} % (n = {row['n']})"
    ours = [accuracies(runs) for name, runs in groups("references").items() if "our_" in name]
    theirs = [accuracies(runs) for name, runs in groups("references").items() if "as_p" in name]
    means = [sorted(map(statistics.mean, some)) for some in (theirs, ours)]
    published, with_ours = (f"{row[0]:.2f} to {row[-1]:.2f} % on average" for row in means)
    found["07_reference_networks"] = f"{published} as published, {with_ours} with our recipe"
    row = records.summary(accuracies(step_runs(manage.STEPS[-1])))
    found["08_many_seeds"] = (
        f"{row['mean']:.3f} ± {row['std']:.3f} % over {row['n']} seeds; the schedule is worth most"
    )
    two = [
        f"{runs[0]['parameters']:,} for {statistics.mean(accuracies(runs)):.3f} %"
        + " (from all 60,000 images)" * (runs[0]["train_images"] == 60_000)
        for runs in (smallest(), smallest(99.5))
    ]
    found["09_smallest_network"] = " on average, ".join(two)
    quick = fastest()
    seconds = timed()[0][quick[0]["recipe"]]
    found["10_time_to_994"] = (
        f"about {seconds:.0f} s on one thread for "
        f"{statistics.mean(accuracies(quick)):.3f} % on average"
    )
    (pipeline,) = [r for r in records.load_records("speed") if r.get("family") == "pipeline"]
    pairs = [pair for row in pipeline["rows"] for pair in row["images_per_second"]]
    ratio = statistics.median(ours / usual for usual, ours in pairs)
    found["11_cost_of_a_step"] = (
        f"batches on the device train {ratio:.1f} times as many images per second as the usual "
        "loader"
    )
    searched, before = accuracies(best()), accuracies(step_runs(manage.STEPS[-1]))
    more = "{:+.3f} points from step 6 ({:+.3f} to {:+.3f})".format(
        *records.difference(searched, before)
    )
    found["12_best_under_20k"] = (
        f"{statistics.mean(searched):.3f} % (n = {len(searched)}, from all 60,000 images), the "
        f"highest of three means: {more}"
    )
    (step_6,) = records.load_records("steps", manage.STEPS[-1])
    doubtful = len(set(step_6["test_errors"]) & set(records.LABEL_ERRORS))
    found["13_look_inside"] = (
        "edges first, more than by chance, and to the end roughly where; of "
        f"{len(step_6['test_errors'])} digits that it misreads {doubtful} have a doubtful label"
    )
    found["14_can_it_be_believed"] = (
        "its confidence nearly fits on digits like MNIST's; letters and noise fool it"
    )
    (believed,) = [r for r in records.load_records("inside") if r["name"].startswith("14")]
    (other,) = [r for r in believed["rows"] if r.get("source") == "scikit-learn's, prepared"]
    share = other[manage.STEPS[-1].replace("_", " ")]
    found["15_your_own_digit"] = (
        f"scikit-learn's digits to {share:.0f} % on average; photos were not measured"
    )
    taught, alone = (records.load_records("taught", f"{k}_8020") for k in ("taught", "alone"))
    found["16_taught"] = (
        f"{taught[0]['parameters']:,} parameters read {statistics.mean(accuracies(taught)):.3f} % "
        f"with teachers, {statistics.mean(accuracies(alone)):.3f} % without (n = {len(taught)} "
        f"and {len(alone)}); for smaller students no gain is shown"
    )
    means = []
    for name in ("hard_2194", manage.STEPS[-1]):
        (looks,) = records.load_records("glances", name)
        rows = [r for r in looks["rows"] if r["part"] == "test"]
        for n in (13, 1):
            means.append(statistics.mean(r["right"] / 100 for r in rows if r["glances"] == n))
    found["17_glances"] = (
        "2,194 parameters read {:.3f} instead of {:.3f} %, step 6 {:.3f} instead of {:.3f} %, for "
        "thirteen times the arithmetic".format(*means)
    )
    before = statistics.mean(readings("hard_2194", "again_2194", reading="one grid"))
    found["18_every_grid"] = (
        "three of four places: with all of them 2,194 parameters read {mean:.3f} instead of "
        "{before:.3f} % (n = {n}), for 1.6 times the arithmetic"
    ).format(before=before, **every_grid()[2_194])
    return found


def notebooks_table() -> str:
    """README's table of all notebooks: question, answer, badge."""
    lines = ["| notebook | question or idea | answer | |", "| --- | --- | --- | --- |"]
    found = answers()
    for name in [name for name in manage.names() if "/" not in name]:
        question = IDEAS[name][0] if name in IDEAS else QUESTIONS[name]
        badge = manage.badges(name).split(") [!")[0] + ")"
        lines.append(f"| [{name}](notebooks/{name}.ipynb) | {question} | {found[name]} | {badge} |")
    return "\n".join(lines)


def render_readme(text: str) -> str:
    """README with what stands between its markers made anew."""
    row = records.summary(accuracies(step_runs(manage.STEPS[-1])))
    title = (
        f"# MNIST: {row['mean']:.2f} % on average with 19,066 parameters, "
        f"{statistics.mean(accuracies(smallest())):.2f} % with {smallest()[0]['parameters']:,}"
    )
    text = manage.between(text, "title", title)
    text = manage.between(text, "results", results_table())
    return manage.between(text, "notebooks", notebooks_table())
