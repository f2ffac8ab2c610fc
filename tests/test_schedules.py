"""The schedules against the shares that follow from the paper's constants."""

import math

import pytest

from sopt.schedules import dtap, make_schedule, sigmoid, tap

STEPS = 1000


def share(schedule, steps, timesteps, run=STEPS, levels=1000):
    """Mean probability over integer steps and timesteps."""
    p = make_schedule(schedule, run, levels)
    values = [p(i, t) for i in steps for t in timesteps]
    return math.fsum(values) / len(values)


ALL_T = range(1000)
# Every 5th step from 3 is the midpoint rule over the run: p is smooth in the step, and the share of
# the whole run moves by less than 1e-6 against all 1000.
RUN = range(3, STEPS + 1, 5)

SHARES = [  # expected percentage, with half a unit of its last printed digit as tolerance
    ("dtap", RUN, ALL_T, 25.04, 0.005),
    ("dtap", [1], ALL_T, 1.386, 0.0005),
    ("dtap", [250], ALL_T, 12.45, 0.005),
    ("dtap", [500], ALL_T, 24.95, 0.005),
    ("dtap", [750], ALL_T, 37.45, 0.005),
    ("dtap", [1000], ALL_T, 49.95, 0.005),
    ("dtap", RUN, range(500), 0.13, 0.005),
    ("dtap", RUN, range(500, 750), 25.2, 0.05),
    ("dtap", RUN, range(750, 1000), 74.7, 0.05),
    ("tap", [1], ALL_T, 24.95, 0.005),
    ("reversed", RUN, ALL_T, 75.0, 0.05),
    ("reversed", [1], ALL_T, 98.6, 0.05),
    ("random", [1, 1000], ALL_T, 25, 0),
    (0.4, [1, 1000], ALL_T, 40, 1e-12),
]


@pytest.mark.parametrize("schedule, steps, timesteps, percent, tolerance", SHARES)
def test_expected_share_of_zeroth_order_steps(schedule, steps, timesteps, percent, tolerance):
    assert abs(100 * share(schedule, steps, timesteps) - percent) <= tolerance


@pytest.mark.slow
def test_whole_run_over_every_step():
    assert abs(100 * share("dtap", range(1, STEPS + 1), ALL_T) - 25.04) <= 0.005


@pytest.mark.parametrize("schedule", ["dtap", "tap", "reversed", "random"])
@pytest.mark.parametrize("steps, levels", [(100, 1000), (1000, 100), (37, 250)])
def test_shares_hold_for_other_lengths_and_noise_levels(schedule, steps, levels):
    # The means are Riemann sums of one function on the unit square: they differ by at most the
    # sums' steps (1 / levels in t, 1 / steps in i) times the function's range, which is 1.
    reference = share(schedule, RUN, range(0, 1000, 5))
    scaled = share(schedule, range(1, steps + 1), range(levels), run=steps, levels=levels)
    assert abs(scaled - reference) <= 1 / levels + 1 / steps + 1 / 200


def test_higher_timesteps_and_later_steps_are_more_often_zeroth_order():
    assert dtap(500, 900, STEPS) > dtap(500, 600, STEPS)
    assert dtap(900, 700, STEPS) > dtap(100, 700, STEPS)
    assert tap(900) > tap(600)


def test_callable_is_used_as_it_is():
    assert (
        make_schedule(lambda step, timestep: step / 10 + timestep / 1000, 10, 1000)(2, 30) == 0.23
    )


@pytest.mark.parametrize("x", [-1e308, -1e4, -1.0, 0.0, 1.0, 1e4, 1e308])
def test_sigmoid_never_overflows_and_is_symmetric(x):
    assert 0 <= sigmoid(x) <= 1
    assert abs(sigmoid(x) + sigmoid(-x) - 1) <= 2**-52
