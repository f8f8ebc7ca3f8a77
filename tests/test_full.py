"""Trains for real: only with ``pytest --full``, minutes each."""

import os
import shutil

import pytest

import manage
import utils

pytestmark = pytest.mark.full


def test_step_6_reaches_its_bar_from_scratch(tmp_path, monkeypatch):
    """The published seed, in a copy of the notebook (which asserts the rule of 99.4 % itself)."""
    monkeypatch.setenv("SMOKE_TEST", "0")
    if os.environ.get("DATASET") == "digits":
        pytest.skip("needs MNIST")
    folder = utils.RESULTS / "full-test"
    try:
        path = manage.run("06_lr_schedule", {"STUDY": folder.name}, tmp_path / "06.ipynb")
        text = manage.cell_output(path, "rules")
        if "not MNIST" in text:
            pytest.skip("no mirror answered")
        assert text.count("pass") == 5 and "FAIL" not in text
        assert utils.load_record(folder / "06_lr_schedule-seed0.json")["test_accuracy"] >= 99.5
    finally:
        shutil.rmtree(folder, ignore_errors=True)
