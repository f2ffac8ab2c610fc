"""Noise, version 1, in plain PyTorch: ``z = noise(seed, stream, index)`` defined bit by bit.

The same arithmetic, operation by operation, as csrc/common/noise.h, which also says how the
polynomials were made. PyTorch has no float32 fused multiply-add, so :func:`fma` emulates one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._philox import philox_words

KINDS = ("gaussian", "rademacher")  # position = sopt_noise in csrc/include/sopt.h
BLOCK = {"gaussian": 4, "rademacher": 128}  # elements that one counter block gives

_hex = float.fromhex
MINUS_2_LN_2 = _hex("-0x1.62e43p+0")
PI_4_HIGH, PI_4_LOW = _hex("0x1.921fb6p-1"), _hex("-0x1.777a5cp-26")
# -2 log1p(-g / 2) = g + g^2 sum_k LOG[k] g^k on [0, 1], with y = x^2 and x in [-1, 1]:
# sin(pi x / 4) = x (pi / 4 + y sum_k SIN[k] y^k), cos(pi x / 4) = 1 + y sum_k COS[k] y^k
LOG = (
    *map(_hex, ("0x1.00001ep-2", "0x1.5542f6p-4", "0x1.01e9dap-5", "0x1.6830eap-7")),
    *map(_hex, ("0x1.5c3ad8p-7", "-0x1.2f3ddep-7", "0x1.f88efcp-7", "-0x1.3cfc58p-7")),
    _hex("0x1.be5234p-9"),
)
SIN = tuple(map(_hex, ("-0x1.4abbbep-4", "0x1.465facp-9", "-0x1.2db5c8p-15")))
COS = tuple(map(_hex, ("-0x1.3bd3ccp-2", "0x1.03c1b0p-6", "-0x1.55b2b2p-12", "0x1.d4f47ap-19")))


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """``a * b + c`` rounded once to float32, for float32 values.

    The product of two float32 is exact in float64. Their sum with ``c`` is rounded to odd there
    (two-sum gives the error's sign), after which the rounding to float32 is the only one that
    shows: Boldo & Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57(4), 2008.
    """
    product = a.double() * b
    addend = torch.as_tensor(c, dtype=torch.float64, device=a.device)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)  # NaN where total is not finite
    bits = total.view(torch.int64)
    # The bits of a float64 are ordered by magnitude: +1 is the neighbour away from zero.
    step = torch.where((error > 0) == (total > 0), 1, -1)
    inexact_and_even = ((error < 0) | (error > 0)) & (bits & 1 == 0)
    return torch.where(inexact_and_even, bits + step, bits).view(torch.float64).float()


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, one fma a step."""
    value: Tensor | float = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = fma(x, value, coefficient)
    assert isinstance(value, Tensor)
    return value


def _radius(w: Tensor) -> Tensor:
    """``sqrt(-2 ln u)``, ``u = (w + 1/2) 2^-32``, for words in int64."""
    upper = w >= 2**31
    m = torch.where(upper, 0xFFFFFFFF - w, w).float()  # the distance to the nearer end, < 2^31
    f = fma(m, 2.0**-31, 2.0**-32)  # 2 u, or 2 (1 - u) in the upper half
    bits = f.view(torch.int32)
    mantissa = (bits & 0x7FFFFF | 0x3F800000).view(torch.float32)  # in [1, 2)
    exponent = torch.where(upper, 0, (bits >> 23) - 127).float()
    g = torch.where(upper, f, 2.0 - mantissa)
    square = fma(_polynomial(g, LOG), g * g, fma(exponent, MINUS_2_LN_2, g))
    return square.double().sqrt().float()  # correctly rounded: float64 has more than 2 * 24 bits


def _cosine_and_sine(w: Tensor) -> tuple[Tensor, Tensor]:
    """Of the angle ``2 pi (w + 1/2) 2^-32``, for words in int64."""
    quadrant = (w + 2**29 >> 30) & 3
    turn = w + 2**29 & 2**30 - 1  # offset from it, still an integer, as 0 .. 2^30 - 1
    x = (turn * 4 + 2 - 2**31).float() * 2.0**-31  # in units of pi / 4, in (-1, 1)
    y = x * x
    sine = fma(x, PI_4_HIGH, x * fma(y, _polynomial(y, SIN), PI_4_LOW))
    cosine = fma(y, _polynomial(y, COS), 1.0)
    odd = quadrant & 1 == 1
    cos, sin = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return (
        torch.where((quadrant + 1) & 2 == 2, -cos, cos),
        torch.where(quadrant & 2 == 2, -sin, sin),
    )


def gaussian(words: Tensor) -> Tensor:
    """Normal samples by Box-Muller from (..., 2 n) words in int64, same shape, float32."""
    radius = _radius(words[..., 0::2])
    cosine, sine = _cosine_and_sine(words[..., 1::2])
    return torch.stack((radius * cosine, radius * sine), dim=-1).flatten(-2)


def rademacher(words: Tensor) -> Tensor:
    """+1 for each bit 0, -1 for each bit 1, lowest bit first: (n,) words to (n, 32) float32."""
    places = torch.arange(32, dtype=torch.int64, device=words.device)
    bits = words[..., None] >> places & 1
    return 1.0 - 2.0 * bits.float()


def noise(kind: str, seed: int, stream: int, begin: int, end: int, device: torch.device) -> Tensor:
    """Elements ``[begin, end)``, ``begin`` a multiple of 128, as a flat float32 tensor."""
    first, last = begin // BLOCK[kind], -(-end // BLOCK[kind])
    words = philox_words(seed, stream, first, last - first, device)  # (blocks, 4)
    samples = gaussian(words) if kind == "gaussian" else rademacher(words)
    return samples.flatten()[: end - begin]
