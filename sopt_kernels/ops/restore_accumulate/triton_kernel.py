"""Triton kernel of ``restore_accumulate_``: one program draws its noise once and uses it twice."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..._arguments import Restore, check_restore
from ..._native import pointer
from ..._triton_add_noise import DTYPES
from ..._triton_lists import NUMEL, POINTERS, launches, locate, on_device
from ..._triton_noise import add_scaled, noise


@triton.jit
def _restore_accumulate_kernel(
    table_ptr,
    seed_ptr,
    restore_coefficient_ptr,
    grad_coefficient_ptr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, stream, first = locate(table_ptr, STEPS, ROWS, COLUMNS, ELEMENTS)
    numel = tl.load(row + NUMEL)
    params_ptr = tl.load(row + POINTERS).to(tl.pointer_type(DTYPE))
    grads_ptr = tl.load(row + POINTERS + 1).to(tl.pointer_type(GRAD_DTYPE))

    z = noise(tl.load(seed_ptr), stream, first, GAUSSIAN, ELEMENTS)
    i = first + tl.arange(0, ELEMENTS)
    mask = i < numel
    p = tl.load(params_ptr + i, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grads_ptr + i, mask=mask, other=0.0).to(tl.float32)
    p = add_scaled(tl.load(restore_coefficient_ptr), z, p)
    g = add_scaled(tl.load(grad_coefficient_ptr), z, g)
    tl.store(params_ptr + i, p.to(DTYPE), mask=mask)
    tl.store(grads_ptr + i, g.to(GRAD_DTYPE), mask=mask)


def restore_accumulate_(*arguments: Any) -> None:
    terms = Restore(*arguments)
    check_restore(terms)
    params, grads, *scalars, streams, kind = terms
    device = params[0].device
    lists = launches(
        [(p.dtype, g.dtype) for p, g in zip(params, grads, strict=True)],
        [x.numel() for x in params],
        streams,
        tuple(map(pointer, params)),
        tuple(map(pointer, grads)),
        device=device,
    )
    with torch.cuda.device_of(params[0]):
        for (dtype, grad_dtype), table, grid, constants in lists:
            _restore_accumulate_kernel[grid](
                table,
                *on_device(device, *scalars),
                GAUSSIAN=kind == "gaussian",
                DTYPE=DTYPES[dtype],
                GRAD_DTYPE=DTYPES[grad_dtype],
                **constants,
            )
