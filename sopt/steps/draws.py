"""What a step is: the number of its sample, its timestep and its kind, all from the run's seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .seeds import Tag, integer, seed64, uniform


@dataclass(frozen=True)
class Draw:
    """A step before anything is computed."""

    sample: int  # whose seeds the picture, its latents, noise and timestep come from
    timestep: int
    p_zo: float
    zeroth_order: bool


def draw_step(
    seed: int,
    step: int,
    schedule: Callable[[int, int], float],
    timesteps: range,
    pool: int | None = None,
) -> Draw:
    """What step ``step``, from 1, of a run does.

    Args:
        timesteps: That steps draw from.
        pool: Samples that the steps draw from; None for a sample of its own for each step.
    """
    sample = sample_number(seed, step, pool)
    timestep = sample_timestep(seed, sample, timesteps)
    p_zo = schedule(step, timestep)
    # p is that of ZO-high
    zeroth_order = uniform(seed64(seed, step, 0, Tag.BRANCH)) < p_zo
    return Draw(sample, timestep, p_zo, zeroth_order)


def sample_number(seed: int, step: int, pool: int | None) -> int:
    """The sample of a step, from 1: its own, or one of a pool of so many."""
    return step if pool is None else 1 + integer(seed64(seed, step, 0, Tag.HOLLOW_POOL), 0, pool)


def sample_timestep(seed: int, sample: int, timesteps: range) -> int:
    """The timestep of a sample: any of them, with equal chances."""
    return integer(seed64(seed, sample, 0, Tag.TIMESTEP), timesteps.start, timesteps.stop)
