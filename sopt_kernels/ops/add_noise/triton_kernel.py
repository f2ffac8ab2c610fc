"""Launcher of the Triton kernel of ``add_noise_``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._triton_add_noise import add_noise as _add_noise


def add_noise_(params: list[Tensor], *terms: Any) -> None:
    _add_noise(params, params, Sum(*terms))
