"""Stochastic rounding in plain PyTorch: to a dtype, and to integers.

Element i takes word ``i % 4`` of block ``i // 4`` under the rounding seed and the tensor's stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._philox import philox_words

ROUNDINGS = ("nearest", "stochastic")


def uniform(seed: int, stream: int, begin: int, end: int, device: torch.device) -> Tensor:
    """``u = (word >> 8) 2^-24`` of the elements ``[begin, end)``, float64; begin divides by 4."""
    first, last = begin // 4, -(-end // 4)
    words = philox_words(seed, stream, first, last - first, device)  # (blocks, 4)
    return (words >> 8).flatten()[: end - begin].double() * 2.0**-24


def round_stochastically(x: Tensor, dtype: torch.dtype, u: Tensor) -> Tensor:
    """The neighbour of ``x`` away from zero where the fraction discarded is > u, else the other.

    Past the largest finite value of ``dtype``, to nearest. ``x`` and the result are flat.
    """
    nearest, exact = x.to(dtype), x.double().abs()
    if dtype == x.dtype:
        return nearest
    bits = nearest.view(torch.int16)  # + 1 is the neighbour away from zero, whatever the sign
    bits = torch.where(nearest.double().abs() > exact, bits - 1, bits)
    low, high = (b.view(dtype).double().abs() for b in (bits, bits + 1))
    away = (exact - low) / (high - low) > u  # exact: high - low is a power of two
    rounded = torch.where(away, bits + 1, bits).view(dtype)
    return torch.where(exact <= torch.finfo(dtype).max, rounded, nearest)


def stochastic_integer(v: Tensor, most: int, u: Tensor) -> Tensor:
    """``sgn(v) min(floor(|v| + u), most)``: an integer with the mean ``v``, as float32."""
    size = (v.double().abs() + u).floor().clamp(max=most)  # float64 holds the sum exactly
    return size.copysign(v.double()).float()
