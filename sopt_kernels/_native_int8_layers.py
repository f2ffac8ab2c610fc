"""Launchers of the C kernels of int8 layers, on images as in ``_int8_layers``."""

from __future__ import annotations

import torch
from torch import Tensor

from ._int8_layers import ACTIVATIONS, result_size
from ._native import (
    DTYPE_CODE,
    ENUM,
    I64,
    PTR,
    bind,
    current_stream,
    image_entry,
    int8_layer_entry,
)

_forward = bind("cpu", "sopt_int8_conv2d_cpu", PTR, PTR, PTR, ENUM, ENUM, I64, PTR)
_forward_scratch = bind(
    "cpu", "sopt_int8_conv2d_scratch_cpu", PTR, PTR, ENUM, ENUM, I64, returns_bytes=True
)
_backward = bind("cpu", "sopt_int8_conv2d_backward_cpu", PTR, PTR, PTR, I64, I64, ENUM, I64, PTR)
_backward_scratch = bind(
    "cpu",
    "sopt_int8_conv2d_backward_scratch_cpu",
    PTR,
    PTR,
    I64,
    I64,
    ENUM,
    I64,
    returns_bytes=True,
)

_forward_cuda = bind("cuda", "sopt_int8_conv2d_cuda", PTR, PTR, PTR, ENUM, ENUM, PTR, PTR)
_backward_cuda = bind("cuda", "sopt_int8_conv2d_backward_cuda", PTR, PTR, PTR, I64, I64, ENUM, PTR)


def forward_cpu(
    image: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activations: str,
) -> Tensor:
    outputs, down, right, _ = codes.shape
    height = result_size(image.shape[1], down, stride, padding)
    width = result_size(image.shape[2], right, stride, padding)
    out = torch.empty((len(image), height, width, outputs), dtype=image.dtype, device="cpu")
    layer = int8_layer_entry(codes, scales, bias, stride, padding)
    x, dtype = image_entry(image), DTYPE_CODE[image.dtype]
    elements = int(activations == ACTIVATIONS[0])  # sopt_elements
    threads = torch.get_num_threads()
    size = _forward_scratch(layer, x, dtype, elements, threads)
    scratch = torch.empty(size, dtype=torch.uint8, device="cpu")
    _forward(layer, x, out.data_ptr(), dtype, elements, threads, scratch.data_ptr())
    return out


def backward_cpu(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> Tensor:
    inputs = codes.shape[3]
    out = torch.empty((len(gradient), height, width, inputs), dtype=gradient.dtype, device="cpu")
    layer = int8_layer_entry(codes, scales, None, stride, padding)
    x, dtype = image_entry(gradient), DTYPE_CODE[gradient.dtype]
    threads = torch.get_num_threads()
    size = _backward_scratch(layer, x, height, width, dtype, threads)
    scratch = torch.empty(size, dtype=torch.uint8, device="cpu")
    _backward(layer, x, out.data_ptr(), height, width, dtype, threads, scratch.data_ptr())
    return out


def forward_cuda(
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
    out = image.new_empty((image.shape[0], height, width, outputs))
    layer, x = int8_layer_entry(codes, scales, bias, stride, padding), image_entry(image)
    quantized = activations == ACTIVATIONS[0]
    size = image.shape[:3].numel() * (-(-inputs // 4) * 4 + 4) if quantized else 0
    with torch.cuda.device_of(image):
        scratch = image.new_empty(size, dtype=torch.uint8)
        dtype = DTYPE_CODE[image.dtype]
        pointers = scratch.data_ptr(), current_stream()
        _forward_cuda(layer, x, out.data_ptr(), dtype, int(quantized), *pointers)
    return out


def backward_cuda(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> Tensor:
    out = gradient.new_empty((gradient.shape[0], height, width, codes.shape[3]))
    layer, x = int8_layer_entry(codes, scales, None, stride, padding), image_entry(gradient)
    with torch.cuda.device_of(gradient):
        dtype = DTYPE_CODE[gradient.dtype]
        _backward_cuda(layer, x, out.data_ptr(), height, width, dtype, current_stream())
    return out
