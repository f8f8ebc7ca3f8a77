"""The door of every notebook: bad parameters and missing packages end in a sentence, at once."""

import math
import subprocess
import sys

import pytest

import manage
import parameters

BAD = {
    "SEED": [-1, 2**32, 1.5, "3", None, True, math.nan],
    "EPOCHS": [0, -1, 2.5, "3", None, True, 10**9],
    "DROPOUT": [math.nan, 1.0, -0.1, "0.1", None, math.inf],
    "AUGMENT": [-1, 100, math.nan, "strong"],
    "PEAK_LR": [0, 1e-12, -0.1, math.inf, math.nan, "0.1"],
    "BAR": [-1, 101, "99", math.nan],
    "TEST_EVERY_EPOCH": [1, "no", None],
    "NAME": ["../x", "", "a b", "a/b", "a\\b"],
    "STUDY": ["../x", "", "a b", "a" * 300, "/tmp", "con.json", None, 3, "a\nb", "é"],
    "ABLATION": ["../../x", "", None],
    "SAVE": ["../x", "", 3],
    "SEEDS": [-1, 0, "3", 2.0, True, 10**9],
    "OUR_SEEDS": [-1, "1"],
    "ABLATION_SEEDS": [0, None],
    "MORE_SEEDS": [{"a": 0}, {"a": "3"}, {3: 1}, ["a"], None],
    "NETWORKS": ["mixed_2922", None, ("a/b",), [1]],
    "LEAVE_OUT": ["without_dropout", None],
    "TRICKS": ["dropout by gaps", None],
    "SCHEDULER": ["cluster", "tcp://", "tcp://host", "http://host:80", 8786, True],
    "KIND": ["gpu", "", None],
    "REPETITIONS": [1, 0, 2.5],
    "DRAWS": [0, "many"],
    "DAMAGED": [0, -5],
    "LOOK_AT": [-1, 10_000, "four", 4.0],
    "MY_DIGIT": ["", None, 3],
    "NETWORK": ["../06_lr_schedule", "", None],
}


def published() -> dict[str, dict]:
    """The parameters of each notebook, as they are published."""
    found = {}
    for name in manage.names():
        exec(manage.code_cells(name)["parameters"]["source"], values := {})
        found[name] = {key: value for key, value in values.items() if key.isupper()}
    return found


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, bad in BAD.items() for v in bad])
def test_a_bad_parameter_is_named_with_what_is_expected(name, value):
    with pytest.raises(ValueError) as caught:
        parameters.check({name: value})
    assert str(caught.value).startswith(f"{name} must be ")
    assert str(caught.value).endswith(f"got {value!r}")


def test_each_parameter_of_each_notebook_has_a_rule_and_obeys_it():
    used = set()
    for name, values in published().items():
        assert values.keys() <= parameters.RULES.keys(), name
        parameters.check(values)
        used |= values.keys()
    assert parameters.RULES.keys() - {"NAME", "BAR"} == used == BAD.keys() - {"NAME", "BAR"}


@pytest.mark.parametrize("name", manage.names())
def test_the_notebook_checks_before_it_loads_data(name):
    """In the first code cell after the parameters, before a device, data or a model are there."""
    cells = list(manage.code_cells(name).values())
    place = [cell["id"] for cell in cells].index("parameters")
    before, found, _ = cells[place + 1]["source"].partition("parameters.check(globals()")
    assert found and "load_mnist" not in before and "pick_device" not in before


@pytest.mark.parametrize(
    ("injected", "strange"),
    [("EPOCHS = 3", None), ("EPOCH = 3", "EPOCH"), ("SEED = 1\nDROPOUT = 0.1", "DROPOUT")],
)
def test_an_injected_parameter_must_exist_in_that_notebook(injected, strange):
    own = "SEED = 0\nEPOCHS = 19"
    scope = {"In": ["", "import os", own, f"# Parameters\n{injected}\n", "check"]}
    exec(f"{own}\n{injected}", scope)
    if strange is None:
        parameters.check(scope)
    else:
        with pytest.raises(
            ValueError, match=f"^{strange} is no parameter of this notebook; it has"
        ):
            parameters.check(scope)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("NETWORKS", ("R1", "R9"), ("R1", "R2")),
        ("MORE_SEEDS", {"R9": 3}, {"R1": "8-P-8"}),
        ("NETWORK", "R9", ("R1",)),
        ("LOOK_AT", 500, range(500)),
    ],
)
def test_a_choice_that_is_none_is_named(name, value, known):
    with pytest.raises(ValueError, match=f"^{name}: ('R9'|500) is none of "):
        parameters.check({name: value}, **{name: known})


def test_records_that_cannot_be_kept_are_told_before_the_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(parameters, "RESULTS", tmp_path / "file")
    with pytest.raises(OSError, match="records cannot be kept in"):
        parameters.check({"STUDY": "steps"})


def test_a_missing_package_ends_in_a_command_that_installs_it(tmp_path):
    parameters.require_packages()
    file = tmp_path / "requirements.txt"
    file.write_text("torch>=2\n# a remark\nno-such-package>=1 # why\nnor_this\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        parameters.require_packages(file)
    text = f"Not installed: no-such-package, nor_this. In a terminal, in {tmp_path}: "
    assert str(caught.value) == f"{text}python -m pip install -r requirements.txt"


@pytest.mark.parametrize(("own", "expected"), [(None, parameters.SPINS), ("7", "7")])
def test_threads_that_wait_spin_for_a_short_while_only(own, expected, monkeypatch):
    """Set before PyTorch is loaded, which reads it once; a value of one's own is kept."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    code = "import os, sys, parameters; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=manage.ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == [expected, "False"], done.stderr
    for name in manage.names():
        key, first = next(iter(manage.code_cells(name).items()))
        assert key == "setup" and "import parameters" in first["source"], name
