"""Reference of ``add_noise_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._reference import write_sum


def add_noise_(
    params: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    check_memory(params, params, coefficients)
    write_sum(params, params, seeds, coefficients, streams, kind, decay)
