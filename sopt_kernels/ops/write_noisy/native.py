"""Launcher of the C kernel of ``write_noisy_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu


def write_noisy_cpu(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(out, base, coefficients)
    _add_noise_cpu(out, base, seeds, coefficients, streams, kind, decay)
