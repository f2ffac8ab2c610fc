"""Reference of ``int8_conv2d`` and of its gradient."""

from __future__ import annotations

from torch import Tensor

from ..._int8_layers import (
    backward_reference,
    check_activations,
    check_layer,
    forward_reference,
    result_size,
)


def check(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activations: str,
) -> None:
    """TypeError or ValueError for arguments that the op rejects."""
    _check_shapes("x", x, codes, stride, padding)
    check_activations(activations)
    check_layer("x", x, codes, scales, bias, channels=1)
    result_sides(x, codes, stride, padding)


def check_backward(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> None:
    """The same for the gradient."""
    _check_shapes("gradient", gradient, codes, stride, padding)
    check_layer("gradient", gradient, codes, scales, None, channels=1)
    sides = tuple(
        result_size(size, kernel, stride, padding)
        for size, kernel in zip((height, width), codes.shape[1:3], strict=True)
    )
    if sides != tuple(gradient.shape[2:]):
        raise ValueError(
            f"gradient must be of the result's size {sides}, got shape {tuple(gradient.shape)}"
        )


def _check_shapes(name: str, x: Tensor, codes: Tensor, stride: int, padding: int) -> None:
    if x.dim() != 4:
        raise ValueError(
            f"{name} must be (batch, channels, height, width), got shape {tuple(x.shape)}"
        )
    if codes.dim() != 4 or max(codes.shape[1:3]) > 64:
        raise ValueError(
            "codes must be (outputs, kernel height, kernel width, inputs) with a kernel of at most "
            f"64 elements a side, got shape {tuple(codes.shape)}"
        )
    if not 1 <= stride <= 64:
        raise ValueError(f"stride must be in [1, 64], got {stride}")
    if not 0 <= padding <= 64:
        raise ValueError(f"padding must be in [0, 64], got {padding}")


def result_sides(x: Tensor, codes: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the result."""
    height, width = (
        result_size(size, kernel, stride, padding)
        for size, kernel in zip(x.shape[2:], codes.shape[1:3], strict=True)
    )
    return height, width


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
    result = forward_reference(image, codes, scales, bias, stride, padding, activations)
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
    result = backward_reference(image, codes, scales, height, width, stride, padding)
    return result.permute(0, 3, 1, 2)
