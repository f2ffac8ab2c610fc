"""Noise, version 1, in Triton: the arithmetic of csrc/common/noise.h, line by line.

Compiled, it gives the same bits as the other bodies: fused multiply-add only where the source says
so (``enable_fp_fusion=False``). Triton's interpreter has no fma and comes within 2 ulp of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import _noise

MINUS_2_LN_2 = tl.constexpr(_noise.MINUS_2_LN_2)
PI_4_HIGH = tl.constexpr(_noise.PI_4_HIGH)
PI_4_LOW = tl.constexpr(_noise.PI_4_LOW)
LOG0, LOG1, LOG2, LOG3, LOG4, LOG5, LOG6, LOG7, LOG8 = map(tl.constexpr, _noise.LOG)
SIN0, SIN1, SIN2 = map(tl.constexpr, _noise.SIN)
COS0, COS1, COS2, COS3 = map(tl.constexpr, _noise.COS)


@triton.jit
def horner(x, value, coefficient: tl.constexpr):
    """One step of Horner's scheme: ``x * value + coefficient``, rounded once."""
    return tl.fma(x, value, tl.full(x.shape, coefficient, tl.float32))


@triton.jit
def radius(w):
    """``sqrt(-2 ln u)``, ``u = (w + 1/2) 2^-32``."""
    upper = (w >> 31) == 1
    nearer = tl.where(upper, w ^ 0xFFFFFFFF, w).to(tl.int32).to(tl.float32)
    f = horner(nearer, tl.full(w.shape, 2.0**-31, tl.float32), 2.0**-32)
    bits = f.to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    exponent = tl.where(upper, 0, (bits >> 23) - 127).to(tl.float32)
    g = tl.where(upper, f, 2.0 - mantissa)
    p = horner(g, tl.full(w.shape, LOG8, tl.float32), LOG7)
    p = horner(g, p, LOG6)
    p = horner(g, p, LOG5)
    p = horner(g, p, LOG4)
    p = horner(g, p, LOG3)
    p = horner(g, p, LOG2)
    p = horner(g, p, LOG1)
    p = horner(g, p, LOG0)
    linear = tl.fma(exponent, tl.full(w.shape, MINUS_2_LN_2, tl.float32), g)
    return tl.sqrt_rn(tl.fma(p, g * g, linear))


@triton.jit
def cosine_and_sine(w):
    """Of the angle ``2 pi (w + 1/2) 2^-32``."""
    quadrant = w + 0x20000000
    x = ((w << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * (2.0**-31)
    y = x * x
    s = horner(y, tl.full(w.shape, SIN2, tl.float32), SIN1)
    s = horner(y, s, SIN0)
    s = horner(y, s, PI_4_LOW)
    s = tl.fma(x, tl.full(w.shape, PI_4_HIGH, tl.float32), x * s)
    c = horner(y, tl.full(w.shape, COS3, tl.float32), COS2)
    c = horner(y, c, COS1)
    c = horner(y, c, COS0)
    c = horner(y, c, 1.0)
    odd = ((quadrant >> 30) & 1) == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    cosine = tl.where(((quadrant + 0x40000000) >> 31) == 1, -cosine, cosine)
    sine = tl.where((quadrant >> 31) == 1, -sine, sine)
    return cosine, sine


@triton.jit
def block_words(seed, stream, block):
    """The four words of each block: uint32, each of the shape of ``block``, which is int64."""
    zero = tl.zeros_like(block)
    return tl.philox(
        seed,
        block.to(tl.uint32),
        (block >> 32).to(tl.uint32),
        (zero + stream).to(tl.uint32),
        (zero + (stream >> 32)).to(tl.uint32),
    )


@triton.jit
def in_order(a, b, c, d):
    """(n,) each to (4 n,): a0 b0 c0 d0 a1 b1 ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def element_words(seed, stream, first, ELEMENTS: tl.constexpr):
    """Word ``i % 4`` of block ``i // 4`` for ``first + [0, ELEMENTS)``, first a multiple of 4."""
    block = first // 4 + tl.arange(0, ELEMENTS // 4)
    w0, w1, w2, w3 = block_words(seed, stream, block)
    return in_order(w0, w1, w2, w3)


@triton.jit
def gaussian(seed, stream, first, ELEMENTS: tl.constexpr):
    """Elements ``first + [0, ELEMENTS)``, ``first`` a multiple of 4."""
    block = first // 4 + tl.arange(0, ELEMENTS // 4)
    w0, w1, w2, w3 = block_words(seed, stream, block)
    r0 = radius(w0)
    r1 = radius(w2)
    c0, s0 = cosine_and_sine(w1)
    c1, s1 = cosine_and_sine(w3)
    return in_order(r0 * c0, r0 * s0, r1 * c1, r1 * s1)


@triton.jit
def rademacher(seed, stream, first, ELEMENTS: tl.constexpr):
    """Elements ``first + [0, ELEMENTS)``, both multiples of 128."""
    block = first // 128 + tl.arange(0, ELEMENTS // 128)
    w0, w1, w2, w3 = block_words(seed, stream, block)
    words = in_order(w0, w1, w2, w3)
    bits = (words[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1
    return tl.where(tl.reshape(bits, (ELEMENTS,)) == 1, -1.0, 1.0)


@triton.jit
def noise(seed, stream, first, GAUSSIAN: tl.constexpr, ELEMENTS: tl.constexpr):
    """Elements ``first + [0, ELEMENTS)`` of either kind."""
    if GAUSSIAN:
        z = gaussian(seed, stream, first, ELEMENTS)
    else:
        z = rademacher(seed, stream, first, ELEMENTS)
    return z


@triton.jit
def add_scaled(coefficient, z, total):
    """``coefficient * z + total``, rounded once, with a scalar coefficient."""
    return tl.fma(tl.zeros_like(z) + coefficient, z, total)
