"""Triton kernel of ``perturb_int8_``: a loop over seeds, one division, one rounding."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..._codes import Perturbation
from ..._triton_codes import code_delta, launch_on_codes, load_codes
from ..._triton_lists import locate
from ..._triton_noise import add_scaled, noise


@triton.jit(do_not_specialize=["terms", "headroom"])
def _perturb_int8_kernel(
    table_ptr,
    seeds_ptr,
    coefficients_ptr,
    rounding_seed_ptr,
    terms,
    headroom,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, stream, first = locate(table_ptr, STEPS, ROWS, COLUMNS, ELEMENTS)
    codes_ptr, mask, codes, scales = load_codes(row, first + tl.arange(0, ELEMENTS))

    total = tl.zeros((ELEMENTS,), tl.float32)
    k = 0
    while k < terms:
        z = noise(tl.load(seeds_ptr + k), stream, first, GAUSSIAN, ELEMENTS)
        total = add_scaled(tl.load(coefficients_ptr + k), z, total)
        k += 1
    rounding_seed = tl.load(rounding_seed_ptr)
    change = code_delta(total, scales, headroom, rounding_seed, stream, first, ELEMENTS)
    tl.store(codes_ptr, (codes + change).to(tl.int32).to(tl.int8), mask=mask)  # wraps


def perturb_int8_(*arguments: Any) -> None:
    terms = Perturbation(*arguments)
    numbers = (terms.seeds, terms.coefficients, terms.rounding_seed)
    launch_on_codes(_perturb_int8_kernel, terms, *numbers)
