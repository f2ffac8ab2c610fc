"""Launcher of the C kernel of ``write_noisy_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._native_add_noise import add_noise_cpu as _add_noise_cpu


def write_noisy_cpu(out: list[Tensor], base: list[Tensor], *terms: Any) -> None:
    _add_noise_cpu(out, base, Sum(*terms))
