"""Launchers of the C kernels of ``int8_conv2d`` (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ..._native_int8_layers import backward_cpu, forward_cpu
from .reference import check, check_backward


def int8_conv2d_cpu(
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
    result = forward_cpu(image, codes, scales, bias, stride, padding, activations)
    return result.permute(0, 3, 1, 2)


def int8_conv2d_backward_cpu(
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
    result = backward_cpu(image, codes, scales, height, width, stride, padding)
    return result.permute(0, 3, 1, 2)
