"""Launchers of the C kernels of ``int8_conv2d`` (csrc/include/sopt.h)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..._native_int8_layers import backward_cpu, backward_cuda, forward_cpu, forward_cuda
from .reference import check, check_backward


def _forward(
    run: Callable,
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
    return run(image, codes, scales, bias, stride, padding, activations).permute(0, 3, 1, 2)


def _backward(
    run: Callable,
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
    return run(image, codes, scales, height, width, stride, padding).permute(0, 3, 1, 2)


int8_conv2d = {"cpu": partial(_forward, forward_cpu), "cuda": partial(_forward, forward_cuda)}
int8_conv2d_backward = {
    "cpu": partial(_backward, backward_cpu),
    "cuda": partial(_backward, backward_cuda),
}
