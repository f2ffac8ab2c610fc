"""Reference of ``write_noisy_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._reference import write_sum


def write_noisy_(out: list[Tensor], base: list[Tensor], *terms: Any) -> None:
    write_sum(out, base, Sum(*terms))
