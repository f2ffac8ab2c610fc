"""Launcher of the C kernel of ``update_int8_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from ..._codes import Update, check_code_memory
from ..._native import ENUM, I64, PTR, bind, codes_table, pointer
from ..._noise import KINDS

_cpu = bind(
    "cpu", "sopt_update_int8_cpu",
    PTR, I64, PTR, PTR, PTR, I64, PTR, ENUM, I64, PTR, PTR,
)  # fmt: skip


def update_int8_cpu(*arguments: Any) -> None:
    terms = Update(*arguments)
    check_code_memory(terms)
    each = [x.contiguous() for x in (terms.seeds, terms.delta_rounding_seeds, terms.coefficients)]
    _cpu(
        codes_table(terms.codes, terms.scales, terms.streams),
        len(terms.codes),
        *map(pointer, each),
        len(terms.seeds),
        pointer(terms.eps),
        KINDS.index(terms.kind),
        terms.headroom,
        pointer(terms.rounding_seed),
        pointer(terms.clamped),
    )
