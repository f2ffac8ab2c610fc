"""Reference of ``attention_forward``, what it accepts, and its result's layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..._arguments import DTYPES


def check(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> None:
    """TypeError or ValueError for arguments that the op rejects."""
    if query.dtype not in DTYPES:
        raise TypeError(f"query must be float32, bfloat16 or float16, got {query.dtype}")
    if query.dim() != 4 or query.shape[3] == 0:
        raise ValueError(
            f"query must be (batch, heads, n, d) with d >= 1, got shape {tuple(query.shape)}"
        )
    for name, x in (("key", key), ("value", value)):
        if (x.dtype, x.device) != (query.dtype, query.device):
            raise TypeError(
                f"{name} must have the dtype and device of query, got {x.dtype} {x.device} and "
                f"{query.dtype} {query.device}"
            )
        if (
            x.dim() != 4
            or x.shape[2] == 0
            or (*x.shape[:2], x.shape[3])
            != (
                *query.shape[:2],
                query.shape[3],
            )
        ):
            raise ValueError(
                f"{name} must be (batch, heads, m, d) with m >= 1 and the other sizes of query, "
                f"got shapes {tuple(x.shape)} and {tuple(query.shape)}"
            )
    if key.shape[2] != value.shape[2]:
        raise ValueError(
            f"key and value must have as many rows, got {key.shape[2]} and {value.shape[2]}"
        )
    if scale is not None and not (0.0 < scale < math.inf):
        raise ValueError(f"scale must be positive and finite, got {scale}")


def empty_output(query: Tensor) -> Tensor:
    """Of the shape of ``query``, with the heads of a row side by side in memory."""
    batch, heads, n, d = query.shape
    return torch.empty((batch, n, heads, d), dtype=query.dtype, device=query.device).transpose(1, 2)


def attention_forward(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """In float32, rounded once; in blocks, as PyTorch does it: no score matrix either."""
    check(query, key, value, scale)
    with torch.no_grad():
        result = scaled_dot_product_attention(
            query.float(), key.float(), value.float(), scale=scale
        )
        return empty_output(query).copy_(result)
