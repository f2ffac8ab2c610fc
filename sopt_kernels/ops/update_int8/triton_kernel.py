"""Triton kernel of ``update_int8_``: perturbations computed again in a loop, and one rounding."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..._codes import Update
from ..._triton_codes import code_delta, launch_on_codes, load_codes
from ..._triton_lists import locate
from ..._triton_noise import add_scaled, element_words, noise
from ..._triton_rounding import stochastic_integer


@triton.jit(do_not_specialize=["terms", "headroom"])
def _update_int8_kernel(
    table_ptr,
    seeds_ptr,
    coefficients_ptr,
    delta_rounding_seeds_ptr,
    eps_ptr,
    rounding_seed_ptr,
    clamped_ptr,
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

    eps = tl.load(eps_ptr)
    total = tl.zeros((ELEMENTS,), tl.float32)
    n = 0
    while n < terms:
        z = noise(tl.load(seeds_ptr + n), stream, first, GAUSSIAN, ELEMENTS)
        seed = tl.load(delta_rounding_seeds_ptr + n)
        delta = code_delta(z * eps, scales, headroom, seed, stream, first, ELEMENTS)
        total = add_scaled(tl.load(coefficients_ptr + n), delta, total)
        n += 1
    words = element_words(tl.load(rounding_seed_ptr), stream, first, ELEMENTS)
    moved = codes + stochastic_integer(total, 255.0, words)
    limit = tl.cast(127 - headroom, tl.float32)
    outside = (tl.abs(moved) > limit) & mask
    moved = tl.where(moved > limit, limit, tl.where(moved < -limit, -limit, moved))
    tl.store(codes_ptr, moved.to(tl.int32).to(tl.int8), mask=mask)
    tl.atomic_add(clamped_ptr, tl.sum(outside.to(tl.int32)).to(tl.int64))


def update_int8_(*arguments: Any) -> None:
    terms = Update(*arguments)
    each = (terms.seeds, terms.coefficients, terms.delta_rounding_seeds)
    numbers = (*each, terms.eps, terms.rounding_seed, terms.clamped)
    launch_on_codes(_update_int8_kernel, terms, *numbers)
