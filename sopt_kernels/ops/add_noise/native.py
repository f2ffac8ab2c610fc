"""Launchers of the C kernels of ``add_noise_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu
from ..._native_cuda import add_noise_cuda as _add_noise_cuda


def add_noise_cpu(params: list[Tensor], *terms: Any) -> None:
    _add_noise_cpu(params, params, Sum(*terms))


def add_noise_cuda(params: list[Tensor], *terms: Any) -> None:
    _add_noise_cuda(params, params, Sum(*terms))
