"""The Triton kernel that ``add_noise_`` and ``write_noisy_`` share, and its launcher.

Algorithm: one program writes ELEMENTS consecutive elements of one tensor, which it finds by binary
search in the table of tensors; the seeds are a loop over sums in registers. So one launch serves a
whole list of one dtype, and the result depends on neither ELEMENTS nor the grid.
Cost: 2 * itemsize bytes per element, whatever the number of seeds.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._native import pointer
from ._triton_noise import gaussian, rademacher

ELEMENTS = 1024  # per program, a multiple of 128; affects speed only
COLUMNS = 5  # of the table, int64: out, base, numel, stream, first program
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit(do_not_specialize=["terms"])
def _add_noise_kernel(
    table_ptr,
    seeds_ptr,
    coefficients_ptr,
    terms,
    decay,
    STEPS: tl.constexpr,  # of the binary search
    TENSORS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    DTYPE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    low = program * 0  # the last tensor whose first program is <= this one
    high = low + TENSORS
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        above = tl.load(table_ptr + middle * COLUMNS + 4) <= program
        low = tl.where(above, middle, low)
        high = tl.where(above, high, middle)
    row = table_ptr + low * COLUMNS
    out_ptr = tl.load(row).to(tl.pointer_type(DTYPE))
    base_ptr = tl.load(row + 1).to(tl.pointer_type(DTYPE))
    numel = tl.load(row + 2)
    stream = tl.load(row + 3)
    first = (program - tl.load(row + 4)) * ELEMENTS

    i = first + tl.arange(0, ELEMENTS)
    total = tl.load(base_ptr + i, mask=i < numel, other=0.0).to(tl.float32)
    total = total * tl.cast(decay, tl.float32)  # float64 when launched from Inductor
    k = 0
    while k < terms:  # range() of an argument breaks the interpreter of 3.6 with numpy 2.4
        seed = tl.load(seeds_ptr + k)
        coefficient = tl.load(coefficients_ptr + k)
        if GAUSSIAN:
            z = gaussian(seed, stream, first, ELEMENTS)
        else:
            z = rademacher(seed, stream, first, ELEMENTS)
        total = tl.fma(tl.zeros_like(z) + coefficient, z, total)
        k += 1
    tl.store(out_ptr + i, total.to(DTYPE), mask=i < numel)


def add_noise(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    device = out[0].device
    seeds, coefficients = (  # not waited for: the driver has read pageable memory on return
        x.to(device, non_blocking=True).contiguous() for x in (seeds, coefficients)
    )
    columns = (
        tuple(map(pointer, out)),
        tuple(map(pointer, base)),
        tuple(x.numel() for x in out),
        tuple(streams),
        tuple(x.dtype for x in out),
    )
    with torch.cuda.device_of(out[0]):
        for dtype, table, programs in _tables(columns, device):
            _add_noise_kernel[(programs,)](
                table,
                seeds,
                coefficients,
                len(seeds),
                decay,
                STEPS=len(table).bit_length(),
                TENSORS=len(table),
                GAUSSIAN=kind == "gaussian",
                DTYPE=DTYPES[dtype],
                ELEMENTS=ELEMENTS,
                COLUMNS=COLUMNS,
                enable_fp_fusion=False,
            )


@lru_cache(maxsize=64)  # a pure function of its argument: an address that was reused is no harm
def _tables(columns: tuple, device: torch.device) -> list[tuple[torch.dtype, Tensor, int]]:
    """For each dtype: the table of its tensors on ``device``, (tensors, COLUMNS), and the grid."""
    rows: dict[torch.dtype, list] = {}
    programs: dict[torch.dtype, int] = {}
    for out, base, numel, stream, dtype in zip(*columns, strict=True):
        if numel:
            first = programs.get(dtype, 0)
            rows.setdefault(dtype, []).append((out, base, numel, stream, first))
            programs[dtype] = first + triton.cdiv(numel, ELEMENTS)
    return [
        (d, torch.tensor(r, dtype=torch.int64).to(device), programs[d]) for d, r in rows.items()
    ]
