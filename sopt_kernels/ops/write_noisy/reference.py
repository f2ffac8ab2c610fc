"""Reference of ``write_noisy_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from torch import Tensor

from ..._arguments import check_memory
from ..._reference import write_sum


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
    write_sum(out, base, seeds, coefficients, streams, kind, decay)
