"""The Triton kernel that ``add_noise_`` and ``write_noisy_`` share, and its launcher.

Algorithm: the seeds are a loop over sums in registers, so one launch serves a whole list of one
dtype. Cost: 2 * itemsize bytes per element, whatever the number of seeds.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._arguments import Sum, check_memory
from ._native import pointer
from ._triton_lists import NUMEL, POINTERS, launches, locate, on_device
from ._triton_noise import add_scaled, element_words, noise
from ._triton_rounding import round_stochastically

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit(do_not_specialize=["parts"])
def _add_noise_kernel(
    table_ptr,
    seeds_ptr,
    coefficients_ptr,
    ends_ptr,  # of the parts: after each, the sum is rounded
    rounding_seeds_ptr,
    parts,
    decay,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DTYPE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, stream, first = locate(table_ptr, STEPS, ROWS, COLUMNS, ELEMENTS)
    numel = tl.load(row + NUMEL)
    out_ptr = tl.load(row + POINTERS).to(tl.pointer_type(DTYPE))
    base_ptr = tl.load(row + POINTERS + 1).to(tl.pointer_type(DTYPE))

    i = first + tl.arange(0, ELEMENTS)
    total = tl.load(base_ptr + i, mask=i < numel, other=0.0).to(tl.float32)
    k = 0
    part = 0
    while part < parts:  # range() of an argument breaks the interpreter of 3.6 with numpy 2.4
        total = total * tl.cast(decay, tl.float32)  # float64 when launched from Inductor
        end = tl.load(ends_ptr + part)
        while k < end:
            z = noise(tl.load(seeds_ptr + k), stream, first, GAUSSIAN, ELEMENTS)
            total = add_scaled(tl.load(coefficients_ptr + k), z, total)
            k += 1
        if STOCHASTIC:
            words = element_words(tl.load(rounding_seeds_ptr + part), stream, first, ELEMENTS)
            total = round_stochastically(total, words, DTYPE)
        total = total.to(DTYPE).to(tl.float32)
        part += 1
    tl.store(out_ptr + i, total.to(DTYPE), mask=i < numel)


def add_noise(out: list[Tensor], base: list[Tensor], terms: Sum) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    check_memory(out, base, coefficients=terms.coefficients)
    device = out[0].device
    seeds, coefficients = on_device(device, terms.seeds, terms.coefficients)
    ends = _ends((*terms.round_after, len(seeds)), device)
    stochastic, roundings = False, ends  # something to point to, not read
    if terms.rounding_seeds is not None:
        stochastic, (roundings,) = True, on_device(device, terms.rounding_seeds)
    lists = launches(
        [x.dtype for x in out],
        [x.numel() for x in out],
        terms.streams,
        tuple(map(pointer, out)),
        tuple(map(pointer, base)),
        device=device,
    )
    with torch.cuda.device_of(out[0]):
        for dtype, table, grid, constants in lists:
            _add_noise_kernel[grid](
                table,
                seeds,
                coefficients,
                ends,
                roundings,
                len(ends),
                terms.decay,
                GAUSSIAN=terms.kind == "gaussian",
                STOCHASTIC=stochastic and dtype != torch.float32,
                DTYPE=DTYPES[dtype],
                **constants,
            )


@lru_cache(maxsize=64)
def _ends(ends: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ends, dtype=torch.int64, device=device)
