"""Reference of ``update_int8_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from typing import Any

import torch

from ..._codes import Update, check_code_memory, pieces_of
from ..._noise import fma
from ..._rounding import stochastic_integer


def update_int8_(*arguments: Any) -> None:
    terms = Update(*arguments)
    check_code_memory(terms)
    each = (terms.seeds, terms.delta_rounding_seeds, terms.coefficients)
    directions = list(zip(*(x.tolist() for x in each), strict=True))
    eps, limit = float(terms.eps), 127 - terms.headroom
    for piece in pieces_of(terms):
        total = torch.zeros_like(piece.scales)
        for seed, rounding, coefficient in directions:
            delta = piece.delta([(seed, eps)], terms.kind, terms.headroom, rounding)
            total = fma(delta, coefficient, total)
        change = stochastic_integer(total, 255, piece.uniform(int(terms.rounding_seed)))
        moved = piece.codes.float() + change
        terms.clamped.add_((moved.abs() > limit).sum())
        piece.codes.copy_(moved.clamp(-limit, limit))
