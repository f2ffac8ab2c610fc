"""Launcher of the C kernel of ``add_low_rank_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..._native import DTYPE_CODE, ENUM, F32, I64, PTR, bind, pointer
from .reference import add_low_rank_ as _reference
from .reference import check

MAX_RANK = 256  # SOPT_LOW_RANK_MAX

_cpu = bind("cpu", "sopt_add_low_rank_cpu", *[PTR] * 4, *[I64] * 4, F32, ENUM)


def add_low_rank_cpu(
    y: Sequence[Tensor],
    x: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: float,
) -> None:
    """Falls to the reference for ranks above :data:`MAX_RANK`."""
    check(y, x, a, b, scale)
    if any(len(down) > MAX_RANK for down in a):
        return _reference(y, x, a, b, scale)
    for tensors in zip(y, x, a, b, strict=True):
        rank, width = tensors[2].shape
        size = len(tensors[3])
        rows = tensors[0].numel() // size
        _cpu(*map(pointer, tensors), rows, width, size, rank, scale, DTYPE_CODE[tensors[0].dtype])
    return None
