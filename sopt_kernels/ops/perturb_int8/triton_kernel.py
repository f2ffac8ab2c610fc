"""Triton kernel of ``perturb_int8_``: a loop over seeds, one division, one rounding."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..._codes import Perturbation, check_code_memory
from ..._triton_codes import code_delta, code_launches, load_codes
from ..._triton_lists import locate, on_device
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
    check_code_memory(terms)
    device = terms.codes[0].device
    with torch.cuda.device_of(terms.codes[0]):
        for table, grid, constants in code_launches(terms):
            _perturb_int8_kernel[grid](
                table,
                *on_device(device, terms.seeds, terms.coefficients, terms.rounding_seed),
                len(terms.seeds),
                terms.headroom,
                GAUSSIAN=terms.kind == "gaussian",
                **constants,
            )
