"""Each deliberate mistake makes a test fail: only with ``pytest --full``, about ten minutes."""

import pytest

import mistakes


@pytest.mark.full
def test_all_mistakes_are_caught(capsys):
    assert len(mistakes.MISTAKES) >= 40
    unseen = mistakes.main([])
    assert unseen == 0, capsys.readouterr().out
