"""Launcher of the C kernel of ``perturb_int8_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from ..._codes import Perturbation, check_code_memory
from ..._native import ENUM, I64, PTR, bind, codes_table, pointer
from ..._noise import KINDS

_cpu = bind("cpu", "sopt_perturb_int8_cpu", PTR, I64, PTR, PTR, I64, ENUM, I64, PTR)


def perturb_int8_cpu(*arguments: Any) -> None:
    terms = Perturbation(*arguments)
    check_code_memory(terms)
    seeds, coefficients = terms.seeds.contiguous(), terms.coefficients.contiguous()
    _cpu(
        codes_table(terms.codes, terms.scales, terms.streams),
        len(terms.codes),
        pointer(seeds),
        pointer(coefficients),
        len(seeds),
        KINDS.index(terms.kind),
        terms.headroom,
        pointer(terms.rounding_seed),
    )
