"""Launchers of the C kernels of ``write_noisy_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu
from ..._native_cuda import add_noise_cuda as _add_noise_cuda


def write_noisy_cpu(out: list[Tensor], base: list[Tensor], *terms: Any) -> None:
    _add_noise_cpu(out, base, Sum(*terms))


def write_noisy_cuda(out: list[Tensor], base: list[Tensor], *terms: Any) -> None:
    _add_noise_cuda(out, base, Sum(*terms))
