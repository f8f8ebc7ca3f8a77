"""Deliberate mistakes, one a line: where, what, instead of what. Each must make a test fail.

python tests/mistakes.py [WORD ...]   put them (or those with a word) into a copy, one at a time,
                                      and print which test catches each

A mistake in all six steps stands under ``steps/<cell>``. Tests that only compare source texts do
not count and are left out.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOTS = "not clean_run and not neighbours and not diff_shown and not set_up and not readme"
# fmt: off
MISTAKES = [  # where, what, instead of what
    ("utils.py", "if False:  # never shuffled", "if self.generator is not None:"),
    ("utils.py", "yield batch, labels[ids]", "yield self.data.normalize(batch), labels[ids]"),
    ("utils.py", "yield self.data.normalize(batch), labels[: len(ids)]", "yield self.data.normalize(batch), labels[ids]"),
    ("utils.py", "if self.augment is None:", "if self.augment is not None:"),
    ("utils.py", "batch = self.augment(batch, torch.Generator())", "batch = self.augment(batch, self.generator)"),
    ("utils.py", "return order[:-val_images], order[:val_images]", "return order[val_images:], order[:val_images]"),
    ("utils.py", "pixels = parts[2].images.float() / 255", "pixels = parts[0].images.float() / 255"),
    ("utils.py", "pass", "np.random.seed(seed)  # noqa: NPY002 (scikit-learn and others draw from it)"),
    ("utils.py", "pass", "    random.seed(seed)"),
    ("utils.py", "model.eval()\n    losses, correct = [], []", "model.train()\n    losses, correct = [], []"),
    ("utils.py", "pass", "        optimizer.zero_grad()"),
    ("utils.py", "losses.append(loss.detach())", "losses.append(loss.detach() * len(labels))"),
    ("utils.py", "if scheduler is None:", "if scheduler is not None:"),
    ("utils.py", "found = evaluate(model, watched.get('test', val))", "found = evaluate(model, val)"),
    ("utils.py", "found = evaluate(model, train.data.loader('test'))", "found = evaluate(model, val)"),
    ("utils.py", "found = evaluate(model, val)\n            seconds = time.perf_counter() - start", "seconds = time.perf_counter() - start\n            found = evaluate(model, val)"),
    ("utils.py", "\"learning_rate\": optimizer.param_groups[0][\"lr\"]", "\"learning_rate\": rate"),
    ("utils.py", "pass\n", "        model.eval()\n"),
    ("utils.py", "model.train()", "model.train(was_training)"),
    ("utils.py", "reduction=\"mean\").item() / len(labels)", "reduction=\"sum\").item() / len(labels)"),
    ("utils.py", "p.numel() for p in model.parameters()", "p.numel() for p in model.parameters() if p.requires_grad"),
    ("utils.py", "field, jump = field + extent * jump, jump * stride", "field, jump = field + (extent - 1) * jump, jump * stride"),
    ("utils.py", "run[\"history\"][f\"val_{metric}\"]", "run[\"history\"][f\"{part}_{metric}\"]"),
    ("mnist.py", "if False:", "if hashlib.sha256(content).hexdigest() != SHA256[name]:"),
    ("mnist.py", "damaged |= False", "damaged |= isinstance(error, zlib.error)"),
    ("mnist.py", "body.result()", "body.result(DEADLINE)"),
    ("files.py", "path.write_bytes(content)", "temporary.replace(path)"),
    ("mnist.py", "if not len(body) < LIMIT:", "if not len(body) == int(answer.headers.get(\"Content-Length\", len(body))) < LIMIT:"),
    ("mnist.py", "np.random.default_rng().permutation", "np.random.default_rng(0).permutation"),
    ("records.py", "history[\"seconds\"][-1]}", "sum(history[\"seconds\"])}"),
    ("records.py", "\"test_accuracy\": history[\"val_accuracy\"][-1]", "\"test_accuracy\": test.accuracy"),
    ("records.py", "(test.logits.argmax(dim=1) == test.labels)", "(test.logits.argmax(dim=1) != test.labels)"),
    ("records.py", "public = True", "public = record[\"dataset\"] == \"MNIST\" and not record.get(\"smoke_test\")"),
    ("records.py", "public = public", "public = public and all(record[key] == old[key] for key in keys)"),
    ("records.py", "pass", "    public = public and (not (results / path).exists() or bool(os.environ.get(\"PUBLISH\")))"),
    ("soundness.py", "pass", "        good = good and math.isclose(record[\"test_accuracy\"], 100 * correct / images)"),
    ("soundness.py", "good = len(wrong or ()) == images - correct", "good = len(found) == len(wrong or ()) == images - correct"),
    ("records.py", "if dataset == \"MNIST\" and os.environ.get(\"PUBLISH\"):", "if dataset == \"MNIST\" and os.environ.get(\"PUBLISH\") and not utils.is_smoke_test():"),
    ("records.py", "linear = linear or bool(heads)", "linear = linear or any(m.out_channels == 10 for m in heads)"),
    ("records.py", "accuracy >= 99.0", "accuracy >= 99.4"),
    ("records.py", "parameters <= 20_000", "parameters < 20_000"),
    ("records.py", "epochs <= 20", "epochs < 20"),
    ("records.py", "std = statistics.pstdev(values)", "std = statistics.stdev(values)"),
    ("records.py", "equal_var=True", "equal_var=False"),
    ("records.py", "r.get(\"status\") != \"x\"", "r.get(\"status\") != \"superseded\""),
    ("records.py", "todo = plan", "todo = plan[:1] if utils.is_smoke_test() else [job for job in plan if job not in have]"),
    ("parameters.py", "return text, lambda value: type(value) is int", "return text, lambda value: type(value) is int and low <= value <= high"),
    ("parameters.py", "math.isnan(value)", "math.isfinite(value)"),
    ("parameters.py", "return isinstance(value, str)", "return isinstance(value, str) and bool(re.fullmatch(r\"[A-Za-z0-9_-]{1,60}\", value))"),
    ("parameters.py", "found |= assigned(cell) - RULES.keys()", "found |= assigned(cell) - assigned(own) - {\"NAME\", \"BAR\"}"),
    ("parameters.py", "pass", "                missing.append(name[0])"),
    ("notebooks/manage.py", "pass", "        os.environ.pop(variable, None)"),
    ("notebooks/manage.py", "if False:", "            if output.get(\"name\") == \"stderr\":"),
    ("notebooks/report.py", "if low <= 0:", "if low <= 0 <= high:"),
    ("steps/train", "scheduler = None", "scheduler = make_scheduler(optimizer)"),
    ("steps/train", "augment=None", "augment=augment"),
    ("steps/train", "generator = torch.Generator()", "generator = utils.seed_everything(SEED)"),
    ("steps/train", "data.loader(\"test\"), data.loader(\"test\")", "data.loader(\"val\"), data.loader(\"test\")"),
    ("steps/test", "utils.evaluate(model, val)", "utils.evaluate(model, test)"),
    ("steps/parameters", "EPOCHS = 12", "EPOCHS = 19"),
    ("steps/identity", "BAR = 0", "re:BAR = [\\d.]+"),
    ("steps/rules", "assert True", "assert result.accuracy >= BAR"),
    ("steps/optimizer", "weight_decay\": 0.0", "weight_decay\": hyperparameters[\"weight_decay\"]"),
    ("notebooks/01_baseline.ipynb", "breaks five of them", "breaks four of them"),
    ("notebooks/01_baseline.ipynb", "holds 6,100 of them", "holds 6,010 of them"),
    ("notebooks/02_batch_norm.ipynb", "seven in ten", "nine in ten"),
    ("notebooks/04_gap_fc.ipynb", "step 3 reads 81", "step 3 reads 71"),
    ("notebooks/05_augmentation.ipynb", "math.radians(120)", "math.radians(12)"),
    ("notebooks/05_augmentation.ipynb", "89 % against 59 %", "89 % against 79 %"),
    ("notebooks/06_lr_schedule.ipynb", "every run of step 5 is across", "every run of step 6 is across"),
    ("notebooks/07_reference_networks.ipynb", "R1 with five of five", "R1 with three of five"),
    ("notebooks/07_reference_networks.ipynb", "gamma=0.1)", "gamma=0.25)"),
    ("notebooks/07_reference_networks.ipynb", "before(x, torch.Generator())", "before(x, draw)"),
    ("notebooks/08_many_seeds.ipynb", "no run below 99.54", "no run below 99.45"),
    ("notebooks/gpu.py", "gradient = gradient + (decay * weight if weight.ndim > 1 else 0)", "gradient = gradient / scale + (decay * weight if weight.ndim > 1 else 0)"),
    ("notebooks/gpu.py", "gradient = gradient / scale + decay * weight", "gradient = gradient / scale + (decay * weight if weight.ndim > 1 else 0)"),
    ("notebooks/gpu.py", "weight.sub_(rate * velocity)", "weight.sub_(rate * (gradient + momentum * velocity))"),
    ("notebooks/gpu.py", "now.add_(0)", "now.add_(1)"),
    ("notebooks/09_smallest_network.ipynb", "most / 2 ** bits", "most / (2 ** (bits - 1) - 1)"),
    ("notebooks/09_smallest_network.ipynb", "layer.bias.half()", "(layer.bias - scale * layer.running_mean).half()"),
    ("notebooks/09_smallest_network.ipynb", "weights * bits / 4", "weights * bits / 8"),
    ("notebooks/09_smallest_network.ipynb", "scope[\\\"data\\\"]  # all", "scope[\\\"parts\\\"](None) if hard else scope[\\\"data\\\"]  # all"),
    ("notebooks/09_smallest_network.ipynb", "recipe | {\\\"first\\\": recipe[\\\"epochs\\\"], \\\"hard\\\": 1}", "{\\\"first\\\": recipe[\\\"epochs\\\"], \\\"hard\\\": 1} | recipe"),
    ("notebooks/09_smallest_network.ipynb", "mean is above 99.5 %", "mean is above 99.4 %, and 8 of 10 runs"),
    ("notebooks/10_time_to_994.ipynb", "argsort().cpu()", "argsort().flip(0).cpu()"),
    ("notebooks/10_time_to_994.ipynb", "[0] += 0", "[0] += spent"),
    ("notebooks/10_time_to_994.ipynb", "part, val, optimizer, passes)", "part, val, optimizer, passes, scheduler)"),
    ("notebooks/10_time_to_994.ipynb", "About 19.5 seconds of training", "About 14.5 seconds of training"),
    ("notebooks/10_time_to_994.ipynb", "x = x / 1", "x = x / (x.norm() + 1e-7)"),
    ("notebooks/10_time_to_994.ipynb", "passes = left  #", "passes = left if left <= 7 else math.ceil(left / 2)  #"),
    ("tests/race.py", "looks = 0", "looks = math.ceil(left / 7) if left else 0"),
    ("notebooks/11_cost_of_a_step.ipynb", "| 193 (89 to 102) |", "| 93 (89 to 102) |"),
    ("notebooks/12_best_under_20k.ipynb", "held_out = fifths[fold]", "held_out = fifths.pop(fold)"),
    ("notebooks/12_best_under_20k.ipynb", "if epoch == first:", "if epoch in (first, math.ceil((first + epochs) / 2)):"),
    ("notebooks/12_best_under_20k.ipynb", "if fold is not None else None", "if fold is None else None"),
    ("notebooks/12_best_under_20k.ipynb", "16-P-16-16-24-24-24\\\"}  #", "16-P-16p-16-24-24-24\\\"}  #"),
    ("notebooks/12_best_under_20k.ipynb", "own[0], own[1]", "own[0], own.mean(dim=0)"),
    ("notebooks/16_taught.ipynb", "share * heat * F", "share * heat**2 * F"),
    ("notebooks/16_taught.ipynb", "drawn = teachers[: lesson[\\\"teachers\\\"]]", "drawn = random.sample(teachers, lesson[\\\"teachers\\\"])"),
    ("notebooks/16_taught.ipynb", "soft = heated[0]", "soft = sum(heated) / len(drawn)"),
    ("notebooks/16_taught.ipynb", "\"    loss = share * F", "\"    loss = (1 - share) * F"),
    ("notebooks/09_smallest_network.ipynb", "With 2,170 parameters it is 99.404 %", "With 2,170 parameters it is 99.374 %"),
    ("notebooks/09_smallest_network.ipynb", "30-30s-=-P-=-=-=\\\",  # one", "30-30s-=-=-P-=-=-=\\\",  # one"),
    ("notebooks/16_taught.ipynb", "partial(taught_epoch, LESSON)", "partial(taught_epoch, recipe)"),
    ("notebooks/16_taught.ipynb", "if name in CONTROLS else []", "if name in STUDENTS else []"),
    ("notebooks/17_glances.ipynb", "mode=\\\"circular\\\"", "mode=\\\"replicate\\\""),
    ("notebooks/17_glances.ipynb", "99.423 instead of 99.358 %", "99.413 instead of 99.358 %"),
    ("notebooks/17_glances.ipynb", "far + down :", "far - down :"),
    ("notebooks/17_glances.ipynb", "map(abs, by)) < radius]", "map(abs, by)) <= radius]"),
    ("notebooks/17_glances.ipynb", "(right & ~once).sum().item()}", "(once & ~right).sum().item()}"),
    ("notebooks/17_glances.ipynb", "(\\\"val\\\", \\\"test\\\"):", "(\\\"val\\\", \\\"test\\\") if name in HELD_OUT else (\\\"test\\\",):"),
    ("notebooks/18_every_grid.ipynb", "value=0.0)  # a rim", "value=-torch.inf)  # a rim"),
    ("notebooks/18_every_grid.ipynb", "for y in (0, 1) for x in (0, 0)]", "for y in (0, 1) for x in (0, 1)]"),
    ("notebooks/18_every_grid.ipynb", "logits.view(-1, self.grids, logits.shape[1]).mean(dim=1)", "logits.view(self.grids, -1, logits.shape[1]).mean(dim=0)"),
    ("notebooks/18_every_grid.ipynb", "Mean(4 * pools)", "Mean(4**pools)"),
    ("notebooks/18_every_grid.ipynb", "network, pools = network, 0", "network, pools = copy.deepcopy(network), 0"),
    ("notebooks/18_every_grid.ipynb", "(\\\"val\\\", \\\"test\\\"):", "(\\\"val\\\", \\\"test\\\") if name in HELD_OUT else (\\\"test\\\",):"),
    ("notebooks/18_every_grid.ipynb", "99.423 instead of 99.369 %", "99.413 instead of 99.369 %"),
    ("notebooks/14_can_it_be_believed.ipynb", "above 1, but 17 of the thirty", "above 1, but 27 of the thirty"),
    ("parameters.py", "pass", "os.environ.setdefault(\"GOMP_SPINCOUNT\", SPINS)"),
    ("notebooks/14_can_it_be_believed.ipynb", "The thirty read 99.619 %", "The thirty read 99.599 %"),
    ("notebooks/08_many_seeds.ipynb", "have a mean of 99.619 %", "have a mean of 99.599 %"),
    ("notebooks/07_reference_networks.ipynb", "each of the fifteen counted once", "each of the five counted once"),
    ("notebooks/07_reference_networks.ipynb", "R4 with five of five", "R4 with four of five"),
    ("notebooks/09_smallest_network.ipynb", "Sharing is worth +0.054 points", "Sharing is worth +0.045 points"),
    ("notebooks/09_smallest_network.ipynb", "sharing\\\": \\\"step6_2922\\\"", "sharing\\\": \\\"unshared_2970\\\""),
    ("notebooks/09_smallest_network.ipynb", "step6\\\": SMALL", "step6\\\": LARGE"),
    ("notebooks/09_smallest_network.ipynb", "0 < width <= 2560", "0 < width <= 256"),
    ("notebooks/12_best_under_20k.ipynb", "first\\\": 9, \\\"hard\\\": 1", "first\\\": 19, \\\"hard\\\": 1"),
    ("site/build.py", "best/separable_96-seed1", "best/separable_96-seed2"),
    ("site/build.py", "sign * r >= sign", "sign * r > sign"),
    ("notebooks/08_many_seeds.ipynb", "costs 0.288 points", "costs 0.188 points"),
    ("notebooks/03_dropout.ipynb", "57 more (34 to 61)", "47 more (34 to 61)"),
    ("notebooks/06_lr_schedule.ipynb", "0.16 points behind a constant", "0.26 points behind a constant"),
    ("notebooks/13_look_inside.ipynb", "others have 30 % on average", "others have 40 % on average"),
    ("notebooks/14_can_it_be_believed.ipynb", "luck alone would give (0.207 %)", "luck alone would give (0.107 %)"),
    ("notebooks/15_your_own_digit.ipynb", "are read to 87 % (72 to 82", "are read to 77 % (72 to 82"),
    ("notebooks/14_can_it_be_believed.ipynb", "removes 30.1 of the 40.1 mistakes", "removes 28.1 of the 40.1 mistakes"),
]
# fmt: on
TESTS = {
    "utils.py": ("test_utils.py", "test_steps.py"),
    "mnist.py": ("test_mnist.py", "test_utils.py"),
    "files.py": ("test_records.py", "test_mnist.py"),
    "records.py": ("test_records.py", "test_steps.py", "test_hostile.py"),
    "soundness.py": ("test_records.py", "test_hostile.py"),
    "parameters.py": ("test_parameters.py",),
    "notebooks/manage.py": ("test_manage.py",),
    "notebooks/report.py": ("test_manage.py",),
    "steps": ("test_steps.py",),
    "notebooks/01_baseline.ipynb": ("test_steps_1_2.py",),
    "notebooks/02_batch_norm.ipynb": ("test_steps_1_2.py",),
    "notebooks/03_dropout.ipynb": ("test_steps_3_4.py",),
    "notebooks/04_gap_fc.ipynb": ("test_steps_3_4.py",),
    "notebooks/05_augmentation.ipynb": ("test_steps_5_6.py",),
    "notebooks/06_lr_schedule.ipynb": ("test_steps_5_6.py",),
    "notebooks/07_reference_networks.ipynb": ("test_reference_networks.py",),
    "notebooks/08_many_seeds.ipynb": ("test_many_seeds.py",),
    "notebooks/09_smallest_network.ipynb": ("test_smallest_network.py",),
    "notebooks/10_time_to_994.ipynb": ("test_speed.py",),
    "notebooks/11_cost_of_a_step.ipynb": ("test_speed.py",),
    "notebooks/12_best_under_20k.ipynb": ("test_best.py",),
    "notebooks/13_look_inside.ipynb": ("test_look_inside.py",),
    "notebooks/14_can_it_be_believed.ipynb": ("test_look_inside.py",),
    "notebooks/15_your_own_digit.ipynb": ("test_look_inside.py",),
    "notebooks/16_taught.ipynb": ("test_taught.py",),
    "notebooks/17_glances.ipynb": ("test_glances.py",),
    "notebooks/18_every_grid.ipynb": ("test_every_grid.py",),
    "notebooks/gpu.py": ("test_gpu.py",),
    "tests/race.py": ("test_speed.py",),
    "site/build.py": ("test_site.py",),
}


def apply(tree: Path, where: str, what: str, instead: str) -> None:
    """Put one mistake into a tree.

    Raises:
        ValueError: if the text that it replaces does not stand there exactly once.
    """
    pattern = instead.removeprefix("re:") if instead.startswith("re:") else re.escape(instead)
    paths = [tree / where]
    if where.startswith("steps/"):
        paths = sorted((tree / "notebooks").glob("0[1-6]_*.ipynb"))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if where.startswith("steps/"):
            notebook = json.loads(text)
            (cell,) = [c for c in notebook["cells"] if c["id"] == where.split("/")[1]]
            source, count = re.subn(pattern, lambda _: what, "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
            text = json.dumps(notebook)
        else:
            indent = re.match(r" *", instead)[0]
            text, count = re.subn(pattern, lambda _, i=indent: i + what, text)
        if count != 1:
            raise ValueError(f"{instead!r} stands {count} times in {path.name}, not once")
        path.write_text(text, encoding="utf-8")


def caught_by(tree: Path, where: str) -> str | None:
    """The first test that fails in a tree, of those that are about ``where``.

    Raises:
        RuntimeError: if pytest itself fails: that would look as if a mistake were caught.
    """
    files = [f"tests/{name}" for name in TESTS["steps" if where.startswith("steps/") else where]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-k", SNAPSHOTS, *files]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if found is None and done.returncode:
        raise RuntimeError(f"the tests did not run: {(done.stdout + done.stderr)[-300:]}")
    return found[1] if found else None


def copy_to(tree: Path) -> None:
    """Copy what git knows, or would add, into an empty folder."""
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def main(words: list[str]) -> int:
    """Try all mistakes, or those that hold one of the words; return how many pass unseen.

    Raises:
        RuntimeError: if a test fails without any mistake: it could not catch one.
    """
    chosen = [m for m in MISTAKES if not words or any(w in " ".join(m) for w in words)]
    unseen = 0
    if "MNIST_DIR" in os.environ:
        os.environ["MNIST_DIR"] = str((ROOT / os.environ["MNIST_DIR"]).resolve())
    for where in sorted({re.sub("^steps/.*", "steps/train", m[0]) for m in chosen}):
        with tempfile.TemporaryDirectory() as folder:
            copy_to(Path(folder))
            if failed := caught_by(Path(folder), where):
                raise RuntimeError(f"without any mistake {failed} fails")
    for number, (where, what, instead) in enumerate(chosen, start=1):
        with tempfile.TemporaryDirectory() as folder:
            copy_to(Path(folder))
            apply(Path(folder), where, what, instead)
            test = caught_by(Path(folder), where)
        unseen += test is None
        line = f"{number:>3} {where}: {what!r} instead of {instead!r}"
        print(f"{line}\n    {'PASSES UNSEEN' if test is None else test}", flush=True)
    print(f"{len(chosen) - unseen} of {len(chosen)} caught")
    return unseen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
