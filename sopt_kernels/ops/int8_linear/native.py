"""Launchers of the C kernels of ``int8_linear`` (csrc/include/sopt.h)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..._int8_layers import codes_of_rows, image_of_rows
from ..._native_int8_layers import backward_cpu, backward_cuda, forward_cpu, forward_cuda
from .reference import check, check_backward


def _forward(
    run: Callable,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activations: str,
) -> Tensor:
    check(x, codes, scales, bias, activations)
    layer = codes_of_rows(codes), scales, bias
    return run(image_of_rows(x), *layer, 1, 0, activations).view(*x.shape[:-1], len(codes))


def _backward(run: Callable, gradient: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    check_backward(gradient, codes, scales)
    rows = image_of_rows(gradient)
    result = run(rows, codes_of_rows(codes), scales, 1, rows.shape[2], 1, 0)
    return result.view(*gradient.shape[:-1], codes.shape[1])


int8_linear = {"cpu": partial(_forward, forward_cpu), "cuda": partial(_forward, forward_cuda)}
int8_linear_backward = {
    "cpu": partial(_backward, backward_cpu),
    "cuda": partial(_backward, backward_cuda),
}
