"""bench/hollow_table.py: a simulated step takes what the same step of real tensors takes."""

from __future__ import annotations

import pytest

from bench.hollow_table import inference_peak, step_peak
from sopt.hollow.cuts import cut_of
from sopt.models import open_model

SMALL = 32 * 1024  # bytes: a simulation has no generator of random numbers, and no scalars' storage


@pytest.mark.parametrize(
    "rank, ours, cut",
    [(8, False, None), (8, True, "a10")],
    ids=["plain", "hollowed"],
)
def test_a_step(rank, ours, cut):
    model = open_model("tiny")
    cut = cut and cut_of(cut, model)
    simulated, measured = (
        step_peak(model, 64, rank=rank, cut=cut, ours=ours, measured=real) for real in (False, True)
    )
    assert simulated == pytest.approx(measured, abs=SMALL)
    assert measured > inference_peak(model, 64)


def test_a_forward():
    model = open_model("tiny")
    simulated, measured = inference_peak(model, 64), inference_peak(model, 64, measured=True)
    assert simulated == pytest.approx(measured, abs=SMALL)
