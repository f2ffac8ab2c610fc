"""Launcher of the Triton kernel of ``write_noisy_``."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._triton_add_noise import add_noise as _add_noise


def write_noisy_(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(out, base, coefficients)
    _add_noise(out, base, seeds, coefficients, streams, kind, decay)
