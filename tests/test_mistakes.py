"""Each deliberate mistake can be made, and makes a test fail (that only with ``pytest --full``)."""

import shutil
from pathlib import Path

import pytest

import mistakes


def test_each_mistake_can_still_be_made(tmp_path):
    """Or a line of the list would say nothing, unseen until the next full run."""
    for where, what, instead in mistakes.MISTAKES:
        steps = sorted((mistakes.ROOT / "notebooks").glob("0[1-6]_*.ipynb"))
        for path in steps if where.startswith("steps/") else [mistakes.ROOT / where]:
            copy = tmp_path / path.relative_to(mistakes.ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
        mistakes.apply(Path(tmp_path), where, what, instead)


@pytest.mark.full
def test_all_mistakes_are_caught(capsys):
    """About ten minutes."""
    assert len(mistakes.MISTAKES) >= 40
    unseen = mistakes.main([])
    assert unseen == 0, capsys.readouterr().out
