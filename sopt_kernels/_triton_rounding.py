"""Stochastic rounding in Triton: the arithmetic of csrc/common/rounding.h, line by line.

``w`` holds a random word for each element, and u = (w >> 8) 2^-24.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_stochastically(x, w, DTYPE: tl.constexpr):
    """x as a float32 that DTYPE holds; past its largest finite value, x itself."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    word = (w >> 8).to(tl.int32)
    if tl.bfloat16 == DTYPE:
        away = ((bits & 0xFFFF) << 8) > word
        rounded = ((bits & -0x10000) + tl.where(away, 0x10000, 0)).to(tl.float32, bitcast=True)
        result = tl.where(magnitude > 0x7F7F0000, x, rounded)
    else:
        away = ((bits & 0x1FFF) << 11) > word
        rounded = ((bits & -0x2000) + tl.where(away, 0x2000, 0)).to(tl.float32, bitcast=True)
        small = magnitude < 0x38800000  # float16 holds the multiples of 2^-24 there
        multiple = tl.where(small, tl.abs(x) * (2.0**24), 0.0)
        whole = multiple.to(tl.int32).to(tl.float32)
        one_more = (multiple - whole) > word.to(tl.float32) * (2.0**-24)
        nearby = (whole + tl.where(one_more, 1.0, 0.0)) * (2.0**-24)
        subnormal = nearby.to(tl.int32, bitcast=True) | (bits - magnitude)
        rounded = tl.where(small, subnormal.to(tl.float32, bitcast=True), rounded)
        result = tl.where(magnitude > 0x477FE000, x, rounded)
    return result


@triton.jit
def stochastic_integer(v, most, w):
    """``sgn(v) min(floor(|v| + u), most)`` as float32, for an integer most <= 255."""
    size = tl.abs(v)
    size = tl.where(size < most, size, most)
    whole = size.to(tl.int32)
    fraction = ((size - whole.to(tl.float32)) * (2.0**24)).to(tl.int32)
    rounded = (whole + ((fraction + (w >> 8).to(tl.int32)) >> 24)).to(tl.float32)
    return tl.where(v < 0, -rounded, rounded)
