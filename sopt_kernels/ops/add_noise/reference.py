"""Reference of ``add_noise_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._arguments import Sum
from ..._reference import write_sum


def add_noise_(params: list[Tensor], *terms: Any) -> None:
    write_sum(params, params, Sum(*terms))
