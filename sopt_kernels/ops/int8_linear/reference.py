"""Reference of ``int8_linear`` and of its gradient."""

from __future__ import annotations

from torch import Tensor

from ..._int8_layers import (
    backward_reference,
    check_activations,
    check_layer,
    codes_of_rows,
    forward_reference,
    image_of_rows,
)


def check(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activations: str) -> None:
    """TypeError or ValueError for arguments that the op rejects."""
    _check_codes(codes)
    check_activations(activations)
    check_layer("x", x, codes, scales, bias, channels=-1)


def check_backward(gradient: Tensor, codes: Tensor, scales: Tensor) -> None:
    """The same for the gradient."""
    _check_codes(codes)
    check_layer("gradient", gradient, codes, scales, None, channels=-1)


def _check_codes(codes: Tensor) -> None:
    if codes.dim() != 2:
        raise ValueError(f"codes must be (outputs, inputs), got shape {tuple(codes.shape)}")


def int8_linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activations: str
) -> Tensor:
    check(x, codes, scales, bias, activations)
    layer = codes_of_rows(codes), scales, bias
    result = forward_reference(image_of_rows(x), *layer, 1, 0, activations)
    return result.view(*x.shape[:-1], len(codes))


def int8_linear_backward(gradient: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    check_backward(gradient, codes, scales)
    rows = image_of_rows(gradient)
    result = backward_reference(rows, codes_of_rows(codes), scales, 1, rows.shape[2], 1, 0)
    return result.view(*gradient.shape[:-1], codes.shape[1])
