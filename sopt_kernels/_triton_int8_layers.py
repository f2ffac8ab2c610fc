"""Triton kernels of int8 layers, on images as in ``_int8_layers``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._int8_layers import ACTIVATIONS, result_size

PIXELS, OUTPUTS, CHANNELS = 64, 64, 64  # of a program, and of a step; not tuned on any GPU
_LEAST_QUANTIZED = tl.constexpr(2.0**-100)


@triton.jit
def _quantize_pixels_kernel(x_ptr, codes_ptr, scales_ptr, channels, BLOCK: tl.constexpr):
    """One pixel: its largest absolute value first, then its codes."""
    pixel = tl.program_id(0).to(tl.int64)
    x_ptr += pixel * channels
    codes_ptr += pixel * channels
    most = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, channels, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < channels, other=0.0).to(tl.float32)
        # As integers, the bits of NaN are above those of infinity.
        most = tl.maximum(most, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    bits = tl.max(most, axis=0)
    largest = bits.to(tl.float32, bitcast=True)
    finite = bits < 0x7F800000
    kept = finite & (largest >= _LEAST_QUANTIZED)
    inverse = tl.where(kept, tl.div_rn(127.0, tl.where(kept, largest, 1.0)), 0.0)
    scale = tl.where(kept, tl.div_rn(largest, 127.0), 0.0)
    tl.store(scales_ptr + pixel, tl.where(finite, scale, float("nan")))
    for begin in range(0, channels, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < channels, other=0.0).to(tl.float32)
        x = tl.where(kept, x, 0.0)
        rounded = (x * inverse + 12582912.0) - 12582912.0  # 1.5 * 2^23: ties to even
        tl.store(codes_ptr + at, rounded.to(tl.int32).to(tl.int8), mask=at < channels)


@triton.jit
def _source(at, k, stride, padding, size, TRANSPOSED: tl.constexpr):
    """The row of x that row ``at`` of the result reads for row k of the kernel, and if there is."""
    if TRANSPOSED:
        moved = at + padding - k
        row = moved // stride
        inside = (moved >= 0) & (moved % stride == 0) & (row < size)
    else:
        row = at * stride + k - padding
        inside = (row >= 0) & (row < size)
    return row, inside


@triton.jit
def _int8_layer_kernel(
    x_ptr,
    pixel_scales_ptr,
    codes_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    pixels,
    height,
    width,
    out_height,
    out_width,
    depth,
    columns,
    down,
    right,
    stride,
    padding,
    TRANSPOSED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Pixels by channels of the result; x is (batch, height, width, depth), contiguous."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = m // (out_width * out_height)
    y, x = m // out_width % out_height, m % out_width
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for element in range(down * right):
        row, has_row = _source(y, element // right, stride, padding, height, TRANSPOSED)
        column, has_column = _source(x, element % right, stride, padding, width, TRANSPOSED)
        inside = has_row & has_column & (m < pixels)
        pixel = ((batch * height + row) * width + column).to(tl.int64)
        if QUANTIZED:
            sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        else:
            sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, depth, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            a = tl.load(
                x_ptr + pixel[:, None] * depth + k[None, :],
                mask=inside[:, None] & (k < depth)[None, :],
                other=0,
            )
            if TRANSPOSED:  # (outputs, kernel, inputs): depth counts outputs, columns inputs
                at = (k[:, None].to(tl.int64) * down * right + element) * columns + n[None, :]
            else:
                at = (n[None, :].to(tl.int64) * down * right + element) * depth + k[:, None]
            b = tl.load(codes_ptr + at, mask=(k < depth)[:, None] & (n < columns)[None, :], other=0)
            if QUANTIZED:
                sums = tl.dot(a, b, sums, out_dtype=tl.int32)
            else:
                a = a.to(tl.float32)
                if TRANSPOSED:
                    a *= tl.load(scales_ptr + k, mask=k < depth, other=0.0)[None, :]
                sums = tl.dot(a, b.to(tl.float32), sums, input_precision="ieee")
        if QUANTIZED:
            scale = tl.load(pixel_scales_ptr + pixel, mask=inside, other=0.0)
            total = tl.fma(sums.to(tl.float32), tl.broadcast_to(scale[:, None], total.shape), total)
        else:
            total += sums
    if not TRANSPOSED:
        scale = tl.load(scales_ptr + n, mask=n < columns, other=0.0)[None, :]
        shift = tl.zeros((1, BLOCK_N), tl.float32)
        if BIAS:
            shift = tl.load(bias_ptr + n, mask=n < columns, other=0.0)[None, :]
        total = tl.fma(
            total, tl.broadcast_to(scale, total.shape), tl.broadcast_to(shift, total.shape)
        )
    at = m[:, None].to(tl.int64) * columns + n[None, :]
    mask = (m < pixels)[:, None] & (n < columns)[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


def forward_triton(
    image: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activations: str,
) -> Tensor:
    outputs, down, right, inputs = codes.shape
    height = result_size(image.shape[1], down, stride, padding)
    width = result_size(image.shape[2], right, stride, padding)
    x = image.contiguous()
    out = x.new_empty((x.shape[0], height, width, outputs))
    elements, pixel_scales = x, scales
    quantized = activations == ACTIVATIONS[0]
    pixels = x.numel() // inputs
    if quantized and pixels:
        elements = torch.empty_like(x, dtype=torch.int8)
        pixel_scales = torch.empty(pixels, dtype=torch.float32, device=x.device)
        _quantize_pixels_kernel[(pixels,)](x, elements, pixel_scales, inputs, BLOCK=1024)
    _launch(elements, pixel_scales, codes, scales, bias, out, stride, padding, False, quantized)
    return out


def backward_triton(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> Tensor:
    x = gradient.contiguous()
    out = x.new_empty((x.shape[0], height, width, codes.shape[3]))
    _launch(x, scales, codes, scales, None, out, stride, padding, True, False)
    return out


def _launch(
    x: Tensor,
    pixel_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    out: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    quantized: bool,
) -> None:
    batch, out_height, out_width, columns = out.shape
    pixels = batch * out_height * out_width
    if pixels == 0:
        return
    grid = (triton.cdiv(pixels, PIXELS), triton.cdiv(columns, OUTPUTS))
    _int8_layer_kernel[grid](
        x,
        pixel_scales,
        codes,
        scales,
        scales if bias is None else bias,
        out,
        pixels,
        *x.shape[1:3],
        out_height,
        out_width,
        x.shape[3],
        columns,
        *codes.shape[1:3],
        stride,
        padding,
        TRANSPOSED=transposed,
        QUANTIZED=quantized,
        BIAS=bias is not None,
        BLOCK_M=PIXELS,
        BLOCK_N=OUTPUTS,
        BLOCK_K=CHANNELS,
        enable_fp_fusion=False,
    )
