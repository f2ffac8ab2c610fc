"""When a step is zeroth-order: the probability of ZO-high as a function of step and timestep.

The constants of TAP and DTAP are the paper's (k = 0.05, t_mid = 750, t_max = 1000) for a model with
1000 noise levels. For T levels t is scaled by 1000 / T, so the shares below hold for any T; the
paper says nothing about other T.

Source: arXiv 2507.10029, equations 3 to 5. Its Algorithm 1 prints the two branches the other way
round; its text, its figures and equations 3 and 5 all make p the probability of the zeroth-order
step, as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

K = 0.05
T_MID = 750
T_MAX = 1000

Schedule = Callable[[int, int], float]


def sigmoid(x: float) -> float:
    """``1 / (1 + e^-x)`` without overflow for any finite ``x``."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def tap(timestep: float) -> float:
    r"""Timestep-aware probability :math:`\sigma(k (t - t_{mid}))` of a zeroth-order step.

    Example:
        >>> tap(750)
        0.5
    """
    return sigmoid(K * (timestep - T_MID))


def dtap(step: int, timestep: float, steps: int) -> float:
    r"""Dynamic timestep-aware probability :math:`\sigma(k (t - t_{dyn}(i)))`.

    .. math:: t_{dyn}(i) = t_{max} + \frac{i}{i_{max}} (t_{end} - t_{max}),
              \quad t_{end} = 2 t_{mid} - t_{max}

    From 1.4 % of zeroth-order steps at the start of a run to 50 % at its end, 25 % on the whole.

    Args:
        step: i, from 1.
        timestep: t in [0, 1000).
        steps: i_max, the steps of the run.

    Example:
        >>> dtap(1000, 500, steps=1000)
        0.5
    """
    t_end = 2 * T_MID - T_MAX
    return sigmoid(K * (timestep - (T_MAX + step / steps * (t_end - T_MAX))))


def make_schedule(schedule: str | float | Schedule, steps: int, num_timesteps: int) -> Schedule:
    """The function (step from 1, timestep) -> probability that a setting stands for.

    Args:
        schedule: ``"dtap"``, ``"tap"``, ``"random"`` (0.25 always, the mean of DTAP: our choice),
            ``"reversed"`` (1 - DTAP, the paper's negative control), a number, or a callable.
        steps: Steps of the run.
        num_timesteps: Noise levels T of the model; timesteps are in [0, T).
    """
    scale = 1000 / num_timesteps
    match schedule:
        case "dtap":
            return lambda step, timestep: dtap(step, timestep * scale, steps)
        case "tap":
            return lambda step, timestep: tap(timestep * scale)
        case "random":
            return lambda step, timestep: 0.25
        case "reversed":
            return lambda step, timestep: 1 - dtap(step, timestep * scale, steps)
        case int() | float() as share:
            return lambda step, timestep: share
    assert callable(schedule), schedule  # TrainConfig has refused everything else
    return schedule
