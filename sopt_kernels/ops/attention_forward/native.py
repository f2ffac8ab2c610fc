"""Launcher of the C kernel of ``attention_forward`` (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor, float16

from ..._native import DTYPE_CODE, ENUM, F32, I64, PTR, bind, rows
from .reference import attention_forward as _reference
from .reference import check, empty_output

MAX_SIZE = 256  # SOPT_ATTENTION_MAX_SIZE

_cpu = bind("cpu", "sopt_attention_forward_cpu", *[PTR] * 4, *[I64] * 5, F32, ENUM)


def attention_forward_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Falls to the reference where the C kernel does not apply."""
    check(query, key, value, scale)
    batch, heads, n, size = query.shape
    apart = any(x.stride(3) != 1 for x in (query, key, value))
    if query.dtype == float16 or size % 8 or size > MAX_SIZE or apart:
        return _reference(query, key, value, scale)
    out = empty_output(query)
    _cpu(
        *(rows(x) for x in (query, key, value)),
        out.data_ptr(),
        *(batch, heads, n, key.shape[2], size),
        size**-0.5 if scale is None else scale,
        DTYPE_CODE[query.dtype],
    )
    return out
