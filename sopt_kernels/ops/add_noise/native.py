"""Launchers of the C kernels of ``add_noise_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu
from ..._native_add_noise import add_noise_cuda as _add_noise_cuda


def add_noise_cpu(
    params: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(params, params, coefficients)
    _add_noise_cpu(params, params, seeds, coefficients, streams, kind, decay)


def add_noise_cuda(
    params: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(params, params, coefficients)
    _add_noise_cuda(params, params, seeds, coefficients, streams, kind, decay)
