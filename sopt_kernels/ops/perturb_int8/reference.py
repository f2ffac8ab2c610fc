"""Reference of ``perturb_int8_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from typing import Any

import torch

from ..._codes import Perturbation, check_code_memory, pieces_of


def perturb_int8_(*arguments: Any) -> None:
    terms = Perturbation(*arguments)
    check_code_memory(terms)
    pairs = list(zip(terms.seeds.tolist(), terms.coefficients.tolist(), strict=True))
    for piece in pieces_of(terms):
        change = piece.delta(pairs, terms.kind, terms.headroom, int(terms.rounding_seed))
        piece.codes.add_(change.to(torch.int8))  # wraps
