"""No phase of a run on the bundled model takes 2 % more memory than it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.tiny_peaks import ALLOWED_GROWTH, BASELINE, WEIGHTS, grown

PHASES = {"load", "cache", "train-bp", "train-zo", "save", "sample"}


def test_no_phase_takes_more():
    """In a process of its own: what other tests left in memory would count."""
    printed = subprocess.run(
        [sys.executable, "-m", "bench.tiny_peaks"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found, known = json.loads(printed.stdout), json.loads(BASELINE.read_text())
    assert set(found) == set(known) == set(WEIGHTS)
    for weights, peaks in found.items():
        assert set(peaks) == set(known[weights]) == PHASES
        assert not grown(known[weights], peaks), (known[weights], peaks)
        # What was saved must not be lost again unseen: then `python -m bench.tiny_peaks --update`.
        assert not grown(peaks, known[weights]), (known[weights], peaks)


def test_growth_is_noticed():
    assert grown({"load": 100, "save": 100}, {"load": 103, "save": 102}) == ["load"]
    assert ALLOWED_GROWTH == 0.02
