"""The C function of ``add_noise_`` and ``write_noisy_`` on the CPU (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ._arguments import Sum, check_finite
from ._native import ENUM, F32, I64, PTR, bind, int64_array, pointer, tensor_table
from ._noise import KINDS

_cpu = bind("cpu", "sopt_add_noise_cpu", PTR, I64, PTR, PTR, I64, ENUM, F32, PTR, I64, PTR)


def add_noise_cpu(out: list[Tensor], base: list[Tensor], terms: Sum) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    check_finite("coefficients", terms.coefficients)
    seeds, coefficients = terms.seeds.contiguous(), terms.coefficients.contiguous()
    rounding, cuts = terms.rounding_seeds, terms.round_after
    if rounding is not None:
        rounding = rounding.contiguous()
    _cpu(
        tensor_table(out, base, terms.streams),
        len(out),
        pointer(seeds),
        pointer(coefficients),
        len(seeds),
        KINDS.index(terms.kind),
        terms.decay,
        int64_array(cuts),
        len(cuts),
        None if rounding is None else pointer(rounding),
    )
