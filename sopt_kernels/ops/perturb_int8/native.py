"""Launchers of the C kernels of ``perturb_int8_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

import torch

from ..._codes import Perturbation, check_code_memory
from ..._native import ENUM, I64, PTR, bind, codes_table, current_stream, pointer
from ..._native_cuda import addresses, reachable
from ..._noise import KINDS

_cpu = bind("cpu", "sopt_perturb_int8_cpu", PTR, I64, PTR, PTR, I64, ENUM, I64, PTR)
_cuda = bind(
    "cuda", "sopt_perturb_int8_cuda",
    PTR, I64, PTR, ENUM, PTR, ENUM, I64, ENUM, I64, PTR, ENUM, PTR,
)  # fmt: skip


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


def perturb_int8_cuda(*arguments: Any) -> None:
    terms = Perturbation(*arguments)
    check_code_memory(terms)
    with torch.cuda.device_of(terms.codes[0]):
        numbers = reachable(terms.codes[0].device, terms.seeds, terms.coefficients)
        _cuda(
            codes_table(terms.codes, terms.scales, terms.streams),
            len(terms.codes),
            *addresses(*numbers),
            len(terms.seeds),
            KINDS.index(terms.kind),
            terms.headroom,
            *addresses(terms.rounding_seed),
            current_stream(),
        )
