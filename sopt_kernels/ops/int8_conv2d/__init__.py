"""``int8_conv2d``: a convolution on int8 weights that are never dequantized in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._int8_layers import check_no_gradient, image_samples, layer_sample
from ..._registry import Op, register, triton_body
from .native import int8_conv2d as _native
from .native import int8_conv2d_backward as _native_backward
from .reference import check, check_backward, result_sides
from .reference import int8_conv2d as _reference
from .reference import int8_conv2d_backward as _reference_backward


def int8_conv2d(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    activations: str = "int8",
) -> Tensor:
    r"""A convolution whose weight is ``scales`` times ``codes``, with a gradient for ``x``.

    With ``activations="int8"`` (W8A8) each pixel p of ``x`` is quantized by a scale of its own,
    ``m_p / 127`` with m its largest absolute value, as a row of ``int8_linear``; with k the
    elements of the kernel in row-major order and p(k) the pixel that each of them reads,

    .. math:: y_n = b_n + s_n \sum_k \frac{m_{p(k)}}{127} \sum_c q_{p(k) c}\, w_{nkc}.

    The inner sums are integers; the outer one is summed by fma in float32: every body gives the
    same bits. With ``"float"`` (weight-only) all sums are float32, in an order that depends on the
    body. One rounding of the result. No matrix of patches is made. The gradient is that of
    :func:`int8_linear`.

    Memory: as for :func:`int8_linear`.

    Args:
        x: ``(batch, inputs, height, width)``, float32, bfloat16 or float16; fast in the memory
            format ``channels_last``.
        codes: ``(outputs, kernel height, kernel width, inputs)``, int8 in [-127, 127], contiguous.
            Inputs are last, so that they are read in order.
        scales: ``(outputs,)``, float32.
        bias: ``(outputs,)``, float32, or None.
        stride: In both directions, in [1, 64].
        padding: Zeros on all four sides, in [0, 64].
        activations: ``"int8"`` or ``"float"``.

    Returns:
        ``(batch, outputs, ...)``, of the dtype of ``x``, in the memory format ``channels_last``.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes or devices that do not match, a number out of range, or another name of
            activations.
        RuntimeError: Scales or bias require grad in grad mode.

    Source:
        As :func:`int8_linear`; a scale for each pixel is this package's own choice.

    Example:
        >>> x, codes = torch.ones(1, 3, 8, 8), torch.ones(5, 3, 3, 3, dtype=torch.int8)
        >>> y = int8_conv2d(x, codes, torch.full((5,), 0.5), padding=1)
        >>> y.shape, round(y[0, 0, 4, 4].item(), 4)  # 27 products
        (torch.Size([1, 5, 8, 8]), 13.5)
    """
    check(x, codes, scales, bias, stride, padding, activations)
    check_no_gradient(scales=scales, bias=bias)
    return torch.ops.sopt.int8_conv2d.default(x, codes, scales, bias, stride, padding, activations)


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], height, width, channels)).permute(0, 3, 1, 2)


def _fake(x, codes, scales, bias, stride, padding, activations) -> Tensor:
    check(x, codes, scales, bias, stride, padding, activations)
    return _empty(x, codes.shape[0], *result_sides(x, codes, stride, padding))


def _fake_backward(gradient, codes, scales, height, width, stride, padding) -> Tensor:
    check_backward(gradient, codes, scales, height, width, stride, padding)
    return _empty(gradient, codes.shape[3], height, width)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, codes, scales, _, ctx.stride, ctx.padding, _ = inputs
    ctx.sides = x.shape[2:]
    ctx.save_for_backward(codes, scales)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    result = torch.ops.sopt.int8_conv2d_backward.default(
        gradient, *ctx.saved_tensors, *ctx.sides, ctx.stride, ctx.padding
    )
    return result, *[None] * 6


# Shape of x: outputs, kernel height and width, stride, padding.
_SIZES: dict[tuple[int, ...], tuple[int, ...]] = {
    (2, 64, 8, 8): (40, 3, 3, 1, 1),
    (1, 3, 9, 7): (5, 3, 3, 2, 1),
    (1, 131, 5, 6): (67, 1, 1, 1, 0),
    (1, 8, 6, 5): (3, 2, 3, 2, 0),
    (0, 4, 4, 4): (4, 3, 3, 1, 1),
}


def _samples(device):
    """Whole and partial words, panels and tiles; strides; kernels that are no squares; no image."""
    for k, x in enumerate(image_samples(device, list(_SIZES))):
        outputs, down, right, *rest = _SIZES[tuple(x.shape)]
        codes, scales, bias = layer_sample(device, outputs, down, right, x.shape[1])
        if k % 2:
            x = x.contiguous(memory_format=torch.channels_last)
        for activations in ("int8", "float"):
            yield x, codes, scales, bias if k % 2 else None, *rest, activations


def _samples_backward(device):
    for k, x in enumerate(image_samples(device, list(_SIZES))):
        outputs, down, right, stride, padding = _SIZES[tuple(x.shape)]
        codes, scales, _ = layer_sample(device, x.shape[1], down, right, outputs)
        # One more than the least size of which this is the result: the last row is not read
        height, width = (
            (size - 1) * stride - 2 * padding + kernel + (stride - 1) * (k % 2)
            for size, kernel in zip(x.shape[2:], (down, right), strict=True)
        )
        yield x, codes, scales, height, width, stride, padding


_ARGUMENTS = "Tensor codes, Tensor scales"
register(
    Op(
        name="int8_conv2d",
        schema=(
            f"(Tensor x, {_ARGUMENTS}, Tensor? bias, SymInt stride, SymInt padding, "
            "str activations) -> Tensor"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native=_native,
        best={"cuda": "triton"},
        triton=triton_body(__name__, "int8_conv2d"),
        autograd=(_backward, _setup_context),
    )
)
register(
    Op(
        name="int8_conv2d_backward",
        schema=(
            f"(Tensor gradient, {_ARGUMENTS}, SymInt height, SymInt width, SymInt stride, "
            "SymInt padding) -> Tensor"
        ),
        reference=_reference_backward,
        fake=_fake_backward,
        samples=_samples_backward,
        native=_native_backward,
        best={"cuda": "triton"},
        triton=triton_body(__name__, "int8_conv2d_backward"),
    )
)
