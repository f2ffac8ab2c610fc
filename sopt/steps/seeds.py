"""Which 64 bits each step, draw and purpose gets: all the randomness of a run.

Every random number is a pure function of (run seed, step, index, purpose), so a run that continues
after a crash draws what it would have drawn, and nothing reads or advances torch's generators.
"""

from __future__ import annotations

from enum import IntEnum

import torch

import sopt_kernels


class Tag(IntEnum):
    """What a draw is for; part of the generator's counter, so purposes never overlap."""

    DIRECTION = 1
    ROUNDING = 2
    IMAGE = 3
    TIMESTEP = 4
    BRANCH = 5
    DIFFUSION_NOISE = 6
    VAE_LATENT = 7
    ADAPTER_INIT = 8
    HOLLOW_POOL = 9
    DROPOUT = 10


def seed64(run_seed: int, step: int, index: int, tag: Tag) -> int:
    """``w0 | w1 << 32`` of Philox4x32-10(key = run seed, counter = (step, index, 0, tag)).

    Args:
        run_seed: In [0, 2**64).
        step: Training step, from 1; 0 for what happens before the first. In [0, 2**32).
        index: Perturbation or draw within the step, from 0. In [0, 2**32).
        tag: Purpose.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    key = (run_seed & 0xFFFFFFFF, run_seed >> 32)
    w0, w1, *_ = sopt_kernels.philox4x32_10((step, index, 0, int(tag)), key)
    return w0 | w1 << 32


def uniform(seed: int) -> float:
    """A number in [0, 1), a multiple of 2^-24: ``(w0 >> 8) 2^-24`` of the seed's low word."""
    return ((seed & 0xFFFFFFFF) >> 8) * 2.0**-24


def integer(seed: int, low: int, high: int) -> int:
    """A whole number in [low, high): ``low + (w0 (high - low) >> 32)`` of the seed's low word.

    Example:
        >>> integer(2**31, 0, 10)
        5
    """
    return low + ((seed & 0xFFFFFFFF) * (high - low) >> 32)


def noise(shape: tuple[int, ...], seed: int, purpose: str, device: torch.device) -> torch.Tensor:
    """Standard normal float32 tensor for a purpose such as ``"diffusion_noise"``."""
    return sopt_kernels.noise(shape, seed, sopt_kernels.stream_id(purpose), device=device)
