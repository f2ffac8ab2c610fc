"""Launchers of the Triton kernels of ``int8_conv2d``."""

from __future__ import annotations

from torch import Tensor

from ..._triton_int8_layers import backward_triton, forward_triton
from .reference import check, check_backward


def int8_conv2d(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activations: str,
) -> Tensor:
    check(x, codes, scales, bias, stride, padding, activations)
    image = x.permute(0, 2, 3, 1)
    result = forward_triton(image, codes, scales, bias, stride, padding, activations)
    return result.permute(0, 3, 1, 2)


def int8_conv2d_backward(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> Tensor:
    check_backward(gradient, codes, scales, height, width, stride, padding)
    image = gradient.permute(0, 2, 3, 1)
    result = backward_triton(image, codes, scales, height, width, stride, padding)
    return result.permute(0, 3, 1, 2)
