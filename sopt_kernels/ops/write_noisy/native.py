"""Launchers of the C kernels of ``write_noisy_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu
from ..._native_add_noise import add_noise_cuda as _add_noise_cuda


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


def write_noisy_cuda(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(out, base, coefficients)
    _add_noise_cuda(out, base, seeds, coefficients, streams, kind, decay)
