"""Notebook 16: what a student learns from, that one teacher stands for all; then the claims."""

from functools import partial
from statistics import mean

import pytest
import torch
from scipy import stats
from torch import nn

import records
import utils
from claims import claim, prose, run_cells

NAME = "16_taught"
with pytest.MonkeyPatch.context() as patch:  # the stand-in: nothing here needs MNIST
    patch.setenv("DATASET", "digits")
    SHOWN = run_cells(NAME, "teachers", "taught", "students")
LESSON, STUDENTS, CONTROLS = (SHOWN[key] for key in ("LESSON", "STUDENTS", "CONTROLS"))


@pytest.mark.parametrize("number", [1, 3])
def test_a_student_learns_from_labels_and_from_a_few_teachers_of_each_batch(
    digits, monkeypatch, number
):
    asked = []

    class Teacher(nn.Module):
        def __init__(self, digit: int):
            super().__init__()
            self.digit = digit

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            asked.append((self.digit, images.clone()))
            return 4.0 * nn.functional.one_hot(torch.full((len(images),), self.digit), 10)

    monkeypatch.setitem(SHOWN, "teachers", [Teacher(digit) for digit in range(10)])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    start = model[1].weight.detach().clone()
    split = utils.Split(digits.train.images[:64], digits.train.labels[:64])
    loader = digits.loader(split, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    still = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    utils.seed_everything(1)
    epoch = partial(SHOWN["taught_epoch"], LESSON | {"teachers": number})
    found = epoch(model, loader, optimizer, still, 1)
    drawn = [{digit for digit, _ in asked[place : place + number]} for place in (0, number)]
    assert len(asked) == 2 * number and [len(some) for some in drawn] == [number] * 2
    assert drawn[0] != drawn[1]
    expected = []
    for place, (some, (images, labels)) in enumerate(zip(drawn, loader, strict=True)):
        seen = asked[number * place : number * (place + 1)]
        assert all(torch.equal(one, images) for _, one in seen)
        logits = model(images)
        hot = [4.0 / 2 * nn.functional.one_hot(torch.tensor(d), 10).double() for d in some]
        soft = torch.stack([one.softmax(0) for one in hot]).mean(0)
        cold = -(soft * (logits.double() / 2).log_softmax(1)).sum(1).mean()  # at temperature 2
        labelled = nn.functional.cross_entropy(logits.double(), labels)
        expected.append((0.3 * labelled + 0.7 * 4 * cold).item())
    right = (model(torch.cat([images for images, _ in loader])).argmax(1) == split.labels).sum()
    assert found == pytest.approx((mean(expected), 100 * right.item() / 64), rel=1e-5)
    assert torch.equal(model[1].weight, start)


def test_a_run_trains_by_its_recipe_with_its_lesson(monkeypatch, digits):
    """The student is the recipe's, its loss the lesson's, and the record says both."""
    scope, kept, asked = SHOWN | {"STUDY": "mine"}, [], []
    exec(SHOWN["manage"].code_cells(NAME)["run"]["source"].split("names =")[0], scope)

    def loss(lesson, logits, labels, soft):
        asked.append((lesson["teachers"], lesson["share"]))
        return SHOWN["F"].cross_entropy(logits, soft)

    monkeypatch.setitem(SHOWN, "lesson_loss", loss)
    monkeypatch.setattr(records, "save_record", lambda record, model: kept.append(record))
    scope["run"]("taught_4354", 3)
    (record,) = kept
    assert (record["study"], record["name"], record["seed"]) == ("mine", "taught_4354", 3)
    assert record["parameters"] == 4_354 and set(asked) == {(3, 0.7)}
    assert record["history"]["train_accuracy"][-1] > 30
    asked.clear()
    scope["run"]("alone_3700", 1)  # a control has no teacher
    assert not asked and kept[1]["hyperparameters"]["spec"] == STUDENTS["taught_3700"]["spec"]
    assert "teachers" not in kept[1]["hyperparameters"]


# --- The records, and what the text says about them -----------------------------------------------

TAUGHT = {name: records.load_records("taught", name) for name in (*STUDENTS, *CONTROLS)}
ALONE = {f"taught_{name[6:]}": TAUGHT.pop(name) for name in CONTROLS}
ALONE |= {"taught_2170": records.load_records("smallest", "one_2170")}
ALONE |= {"taught_4354": records.load_records("smallest", "hard_4354")}
ALONE |= {"taught_separable_96": records.load_records("best", "separable_96")}
ACCURACY = {name: [r["test_accuracy"] for r in runs] for name, runs in TAUGHT.items()}
BEFORE = {name: [r["test_accuracy"] for r in runs] for name, runs in ALONE.items()}
MORE = {name: records.difference(ACCURACY[name], BEFORE[name]) for name in STUDENTS}
ROWS = {name: records.summary(values) for name, values in ACCURACY.items()}
ROW, WIDE = ROWS["taught_3700"], ROWS["taught_8020"]
AT_ONCE = {  # for all five comparisons (Bonferroni)
    name: stats.ttest_ind(ACCURACY[name], BEFORE[name], equal_var=False).confidence_interval(0.99)
    for name in STUDENTS
}
ONE_SPREAD = {
    name: stats.ttest_ind(ACCURACY[name], BEFORE[name]).confidence_interval()
    for name in ("taught_separable_96", "taught_4354")
}


def gain(name: str, words: str = "{:+.3f} ({:+.3f} to {:+.3f})") -> str:
    """What teachers add to a student, and its interval, in words."""
    return words.format(*MORE[name])


def of_five(row: dict) -> str:
    """The interval of a mean that holds for five students at once (Bonferroni)."""
    ends = stats.t.interval(0.99, row["n"] - 1, row["mean"], row["std"] / row["n"] ** 0.5)
    return "{:.3f} to {:.3f}".format(*ends)


ALONE_ROW = records.summary(BEFORE["taught_3700"])
LEVENE = {  # do the runs lie closer together with teachers?
    name: stats.levene(ACCURACY[name], BEFORE[name]).pvalue
    for name in ("taught_3700", "taught_8020")
}
POINTS = "{:+.3f} points ({:+.3f} to {:+.3f}"
WITHOUT = {name: mean(values) for name, values in BEFORE.items()}
RUNS = {name: len(values) for name, values in BEFORE.items()}


@claim(
    NAME,
    "reads {mean:.3f} % of MNIST's 10,000 test digits on average** (n = {n} seeds, last epoch, "
    "std {std:.3f}, min {min:.2f}; 95 % interval over seeds {low:.3f} to {high:.3f})".format(**ROW),
    "one of 8,020 parameters {mean:.3f} % (n = {n}, std {std:.3f}, min {min:.2f}; {low:.3f} to "
    "{high:.3f}).".format(**WIDE),
    "With 8,020 parameters yes, as a comparison alone: the same network without them reads "
    f"{WITHOUT['taught_8020']:.3f} %, {gain('taught_8020', POINTS)}, ten runs with "
    "and ten without). With 3,700 it is not "
    f"shown: {WITHOUT['taught_3700']:.3f} % without, {gain('taught_3700', POINTS)}, ten and ten).",
    f"is nearly shown, {gain('taught_separable_96', POINTS)}, three and thirty).",
    f"show no gain: {ROW['mean']:.3f} against {WITHOUT['taught_3700']:.3f} %, "
    f"{gain('taught_3700')}.** The interval of {ROW['mean']:.3f} is {ROW['low']:.3f} to "
    f"{ROW['high']:.3f}; for the five students at once it is {of_five(ROW)}. If teachers help "
    f"this student's mean, it is probably by less than {MORE['taught_3700'][2]:.2f} points. With "
    f"them the runs lie closer together, std {ROW['std']:.3f} against {ALONE_ROW['std']:.3f}; but "
    f"that hangs on one run without them that ended at {ALONE_ROW['min']:.2f} (Levene's test: "
    f"p = {LEVENE['taught_3700']:.2f}).",
    "**For 8,020 it is {mean:.3f} (n = {n}, {low:.3f} to {high:.3f}; for all five at once ".format(
        **WIDE
    )
    + f"{of_five(WIDE)}) against {WITHOUT['taught_8020']:.3f} % (n = {RUNS['taught_8020']}): "
    f"{gain('taught_8020')}.**",
    *(
        f"{ROWS[name]['mean']:.3f} % (n = {n}) instead of {WITHOUT[name]:.3f}: "
        f"{gain(name, POINTS)})."
        for name, n in (("taught_separable_96", 3), ("taught_4354", 2))
    ),
    "With one spread for both groups the intervals are {:+.3f} to {:+.3f} and {:+.3f} to "
    "{:+.3f}.".format(*ONE_SPREAD["taught_separable_96"], *ONE_SPREAD["taught_4354"]),
    "for all five students at once (99 % each, Welch) it is {:+.3f} to {:+.3f}.".format(
        *AT_ONCE["taught_separable_96"]
    ),
    "So a gain is nearly shown for `separable 96` alone",
    f"ends lower with a teacher in three runs: {ROWS['taught_2170']['mean']:.3f} against "
    f"{WITHOUT['taught_2170']:.3f} %, {gain('taught_2170')}: not shown either.",
    f"{sum(value < 99.52 for value in ACCURACY['taught_3700'])} of our {ROW['n']} runs end below",
    f"With {99.52 - ROW['mean']:.3f} points between a mean and a single run",
    "The diamonds of 3,700 parameters and more lie below the line, that of 2,170 lies above it.",
    f"3,700 parameters reach {ROW['mean']:.3f} % with teachers, which looks like their merit; "
    f"without them it is {WITHOUT['taught_3700']:.3f} %, and ten runs each show no gain. With "
    f"8,020 parameters it is {WIDE['mean']:.3f} and {WITHOUT['taught_8020']:.3f} %, and the "
    "gain is shown, as a comparison alone.",
    "for all five at once it is {:+.3f} to {:+.3f}, so it just misses. The ten runs lie closer "
    "together, too, std {:.3f} against {:.3f}; that is not shown either (p = {:.2f}).".format(
        *AT_ONCE["taught_8020"],
        WIDE["std"],
        records.summary(BEFORE["taught_8020"])["std"],
        LEVENE["taught_8020"],
    ),
)
def test_what_teachers_bring():
    for name in ("taught_2170", "taught_3700", "taught_4354"):
        assert MORE[name][1] < 0 < MORE[name][2], "not shown"
    assert all(gain > 0 for gain, *_ in list(MORE.values())[1:]) and MORE["taught_2170"][0] < 0
    assert MORE["taught_separable_96"][1] > 0 > AT_ONCE["taught_separable_96"].low
    assert RUNS["taught_separable_96"] == 30 and RUNS["taught_2170"] == RUNS["taught_4354"] == 10
    text = prose(NAME)
    assert MORE["taught_8020"][1] > 0 > AT_ONCE["taught_8020"].low > -0.002, "just misses"
    assert RUNS["taught_8020"] == RUNS["taught_3700"] == ROW["n"] == 10
    points = [(r["parameters"], r["test_accuracy"]) for runs in TAUGHT.values() for r in runs]
    assert 3_700 in dict(points) and 3_700 < 3_762 and WIDE["mean"] > 99.6 and WIDE["n"] == 10
    assert WIDE["low"] > 99.57
    assert ("contains 99.60" in text) == (WIDE["low"] < 99.6)
    assert ("So does the same network alone." in text) == (WITHOUT["taught_8020"] > 99.6)
    said = f"the same network, {WITHOUT['taught_8020']:.3f} %, is not as good as either."
    assert said in text and WITHOUT["taught_8020"] < 99.57 and min(LEVENE.values()) > 0.05
    published = {p: v for _, row in SHOWN["nine"]["PUBLISHED"].values() for p, v in row.items()}
    assert [published[size] for size in (3_762, 8_172, 9_994)] == [99.52, 99.57, 99.60]
    said = "With teachers a network of 8,020 parameters gets below the last two: [step 16]"
    assert said in prose("09_smallest_network")
    for name in STUDENTS:  # above and below the line of the same networks alone
        assert (ROWS[name]["mean"] > WITHOUT[name]) == (name != "taught_2170")


@claim(
    NAME,
    "1.49 times the arithmetic for 3,700 parameters and 1.30 times for 8,020 (one teacher a "
    "batch), 2.35 times for 4,354 and 1.33 times for `separable 96` (three teachers).",
    "The runs of the students with 2,170, 3,700 and 8,020 parameters draw one teacher a batch, the "
    "earlier ones of the other two three.",
)
def test_each_student_keeps_its_recipe_and_what_the_lesson_costs():
    assert LESSON == {"teachers": 1, "temperature": 2, "share": 0.7}
    (small, *_), (best, *_) = (ALONE[name] for name in ("taught_4354", "taught_separable_96"))
    three = LESSON | {"teachers": 3}
    assert STUDENTS["taught_4354"] == small["hyperparameters"] | three
    assert STUDENTS["taught_separable_96"] == best["hyperparameters"] | three
    for name, width in (("taught_3700", 34), ("taught_8020", 66)):
        own = {"spec": f"8-8-8-P-{width}sp-{width}s-=-="} | LESSON
        assert STUDENTS[name] == small["hyperparameters"] | own
    assert STUDENTS["taught_2170"] == ALONE["taught_2170"][0]["hyperparameters"] | LESSON
    for name, recipe in CONTROLS.items():
        taught = STUDENTS[f"taught_{name[6:]}"]
        assert taught == recipe | LESSON and not set(LESSON) & set(recipe)
    of_controls = {name: ALONE[f"taught_{name[6:]}"] for name in CONTROLS}
    for name, runs in (TAUGHT | of_controls).items():
        seeds = SHOWN["MORE_SEEDS"].get(name, SHOWN["SEEDS"])
        assert [r["seed"] for r in runs] == [*range(seeds)], "none left out"
        for run in runs:
            found = [run[key] for key in ("hyperparameters", "train_images", "epochs")]
            assert found == [(STUDENTS | CONTROLS)[name], 60_000, 19] and run["val_images"] == 0
    macs = {}
    for name, recipe in STUDENTS.items():
        model = SHOWN["nine"]["network"](recipe["spec"])
        assert {r["parameters"] for r in TAUGHT[name]} == {utils.count_parameters(model)}
        macs[name] = utils.layer_table(model)["MACs"].sum()
    six = utils.layer_table(SHOWN["six"]["make_model"]())["MACs"].sum()
    passes, sorting = 8 + 11 * 0.5, 2 / 3  # sorting only reads: a third of a step
    work = [
        1 + six * k * passes / (3 * macs[name] * (passes + sorting))
        for name, k in (("taught_3700", 1), ("taught_8020", 1), ("taught_4354", 3))
    ]
    work.append(1 + six / macs["taught_separable_96"])
    assert work == pytest.approx([1.49, 1.30, 2.35, 1.33], abs=0.005)
    assert len(SHOWN["weights"]) == len({r["seed"] for r in SHOWN["weights"]}) == 30
