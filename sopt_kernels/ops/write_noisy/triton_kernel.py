"""Launcher of the Triton kernel of ``write_noisy_``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._triton_add_noise import add_noise as _add_noise


def write_noisy_(out: list[Tensor], base: list[Tensor], *terms: Any) -> None:
    _add_noise(out, base, Sum(*terms))
