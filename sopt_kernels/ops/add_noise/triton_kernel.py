"""Launcher of the Triton kernel of ``add_noise_``."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._triton_add_noise import add_noise as _add_noise


def add_noise_(
    params: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(params, params, coefficients)
    _add_noise(params, params, seeds, coefficients, streams, kind, decay)
