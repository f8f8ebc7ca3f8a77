"""Trains for real: only with ``pytest --full``, minutes each."""

import os

import pytest

import manage
import utils

pytestmark = pytest.mark.full


def test_step_6_reaches_its_bar_from_scratch(tmp_path, monkeypatch):
    """The published seed, in a copy of the notebook; the notebook asserts 99.5 % itself too."""
    monkeypatch.setenv("SMOKE_TEST", "0")
    if os.environ.get("DATASET") == "digits":
        pytest.skip("needs MNIST")
    parameters = {"STUDY": "full-test"}
    path = manage.run("06_lr_schedule", parameters, tmp_path / "06.ipynb")
    text = manage.cell_output(path, "rules")
    if "not MNIST" in text:
        pytest.skip("no mirror answered")
    assert text.count("pass") == 5 and "FAIL" not in text
    record = utils.RESULTS / "full-test" / "06_lr_schedule-seed0.json"
    accuracy = utils.load_record(record)["test_accuracy"]
    for left in record.parent.iterdir():
        left.unlink()
    record.parent.rmdir()
    assert accuracy >= 99.5
