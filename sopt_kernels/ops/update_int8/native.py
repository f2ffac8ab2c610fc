"""Launchers of the C kernels of ``update_int8_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

import torch

from ..._codes import Update, check_code_memory
from ..._native import ENUM, I64, PTR, bind, codes_table, current_stream, pointer
from ..._native_cuda import addresses, reachable
from ..._noise import KINDS

_cpu = bind(
    "cpu", "sopt_update_int8_cpu",
    PTR, I64, PTR, PTR, PTR, I64, PTR, ENUM, I64, PTR, PTR,
)  # fmt: skip
_cuda = bind(
    "cuda", "sopt_update_int8_cuda",
    PTR, I64, PTR, ENUM, PTR, ENUM, PTR, ENUM, I64, PTR, ENUM, ENUM, I64, PTR, ENUM, PTR, PTR,
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


def update_int8_cuda(*arguments: Any) -> None:
    terms = Update(*arguments)
    check_code_memory(terms)
    each = (terms.seeds, terms.delta_rounding_seeds, terms.coefficients)
    with torch.cuda.device_of(terms.codes[0]):
        numbers = reachable(terms.codes[0].device, *each)
        _cuda(
            codes_table(terms.codes, terms.scales, terms.streams),
            len(terms.codes),
            *addresses(*numbers),
            len(terms.seeds),
            *addresses(terms.eps),
            KINDS.index(terms.kind),
            terms.headroom,
            *addresses(terms.rounding_seed),
            pointer(terms.clamped),
            current_stream(),
        )
