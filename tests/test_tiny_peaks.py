"""No phase of a run on the bundled model takes 2 % more memory than it did."""

from __future__ import annotations

import json

import pytest

from bench.tiny_peaks import ALLOWED_GROWTH, BASELINE, WEIGHTS, grown, peaks


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_phase_takes_more(weights, tmp_path):
    known = json.loads(BASELINE.read_text())[weights]
    found = peaks(weights, tmp_path)
    assert set(found) == set(known) == {"load", "cache", "train-bp", "train-zo", "save", "sample"}
    assert not grown(known, found), (known, found)
    # What was saved must not be lost again unseen: then `python -m bench.tiny_peaks --update`.
    assert not grown(found, known), (known, found)


def test_growth_is_noticed():
    assert grown({"load": 100, "save": 100}, {"load": 103, "save": 102}) == ["load"]
    assert ALLOWED_GROWTH == 0.02
