"""Reference of ``add_low_rank_``, and what it accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._arguments import DTYPES, check_tensors


def check(
    y: Sequence[Tensor],
    x: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: float,
) -> None:
    """TypeError or ValueError for arguments that the op rejects."""
    for name, tensors in (("y", y), ("x", x), ("a", a), ("b", b)):
        check_tensors(name, tensors, DTYPES if name in "xy" else [torch.float32])
        if len(tensors) != len(y):
            raise ValueError(f"{name} must have as many tensors as y, got {len(tensors)}, {len(y)}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    for i, (result, given, down, up) in enumerate(zip(y, x, a, b, strict=True)):
        if given.dtype != result.dtype:
            raise TypeError(
                f"x must have the dtype of y, got {given.dtype} and {result.dtype} at {i}"
            )
        if len({t.device for t in (result, given, down, up)}) > 1:
            raise ValueError(f"y, x, a and b must be on one device, got several at {i}")
        shapes = [tuple(t.shape) for t in (result, given, down, up)]
        matching = (
            result.dim() >= 1
            and (result.dim(), down.dim(), up.dim()) == (given.dim(), 2, 2)
            and shapes[0][:-1] == shapes[1][:-1]
            and shapes[2] == (shapes[3][1], shapes[1][-1])
            and shapes[3][0] == shapes[0][-1]
            and min(*shapes[2], *shapes[3]) > 0
        )
        if not matching:
            raise ValueError(
                "y, x, a and b must be (..., out), (..., in), (rank, in) and (out, rank), got "
                f"shapes {shapes} at {i}"
            )


@torch.no_grad()
def add_low_rank_(
    y: Sequence[Tensor],
    x: Sequence[Tensor],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: float,
) -> None:
    """In float32, rounded once."""
    check(y, x, a, b, scale)
    for result, given, down, up in zip(y, x, a, b, strict=True):
        result.copy_(result.float() + scale * (given.float() @ down.mT) @ up.mT)
