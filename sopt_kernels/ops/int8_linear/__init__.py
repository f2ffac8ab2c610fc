"""``int8_linear``: a linear layer on int8 weights that are never dequantized in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._int8_layers import check_no_gradient, image_samples, layer_sample
from ..._registry import Op, register, triton_body
from .native import int8_linear as _native
from .native import int8_linear_backward as _native_backward
from .reference import check, check_backward
from .reference import int8_linear as _reference
from .reference import int8_linear_backward as _reference_backward


def int8_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    activations: str = "int8",
) -> Tensor:
    r"""A linear layer whose weight is ``scales[:, None] * codes``, with a gradient for ``x``.

    With ``activations="int8"`` (W8A8) each row of ``x`` is quantized by a scale of its own,

    .. math:: y_{in} = b_n + s_n \frac{m_i}{127} \sum_k q_{ik} c_{nk}, \qquad
              q_{ik} = \mathrm{round}(x_{ik} \tfrac{127}{m_i}), \quad m_i = \max_k |x_{ik}|,

    ties to even, the sum in integers: every body gives the same bits. Rows with m below 2^-100
    count as zero; those that are not finite give NaN. With ``"float"`` (weight-only) products are
    summed in float32, their order depends on the body, and ``s`` and ``b`` come last. One rounding
    of the result. The gradient is that of the unquantized ``x``, computed as with ``"float"`` from
    ``gradient * scales`` (rounded to bfloat16 first, on processors with AVX512_BF16, where it is
    bfloat16); it keeps neither ``x`` nor a weight.

    Memory of the native body on the CPU: the result, and as scratch at most an eighth of the weight
    in float32 or 48 KiB, whichever is more, and 768 KiB a thread. On a GPU the scratch is the
    quantized input. The reference, in plain PyTorch, converts the weight.

    Args:
        x: ``(..., inputs)``, float32, bfloat16 or float16.
        codes: ``(outputs, inputs)``, int8 in [-127, 127], contiguous.
        scales: ``(outputs,)``, float32.
        bias: ``(outputs,)``, float32, or None.
        activations: ``"int8"`` or ``"float"``.

    Returns:
        ``(..., outputs)``, of the dtype of ``x``, contiguous.

    Raises:
        TypeError: A dtype is not supported.
        ValueError: Shapes or devices that do not match, or another name of activations.
        RuntimeError: Scales or bias require grad in grad mode.

    Source:
        Scales per output and per token: Yao et al., *ZeroQuant*, arXiv 2206.01861.

    Example:
        >>> x = torch.tensor([[1.0, -0.5]])
        >>> codes = torch.tensor([[2, 4], [127, 0]], dtype=torch.int8)
        >>> int8_linear(x, codes, torch.tensor([0.5, 0.25]), activations="float")
        tensor([[ 0.0000, 31.7500]])
    """
    check(x, codes, scales, bias, activations)
    check_no_gradient(scales=scales, bias=bias)
    return torch.ops.sopt.int8_linear.default(x, codes, scales, bias, activations)


def _fake(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activations: str
) -> Tensor:
    check(x, codes, scales, bias, activations)
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _fake_backward(gradient: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    check_backward(gradient, codes, scales)
    return gradient.new_empty((*gradient.shape[:-1], codes.shape[1]))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, codes, scales, _, _ = inputs
    ctx.save_for_backward(codes, scales)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    result = torch.ops.sopt.int8_linear_backward.default(gradient, *ctx.saved_tensors)
    return result, None, None, None, None


_SIZES = {(9, 12): 5, (2, 3, 64): 40, (3, 131): 67, (0, 8): 3, (5,): 1}  # shape of x: outputs


def _samples(device):
    """Whole and partial words, panels and tiles; no rows; no batch dimension."""
    for k, x in enumerate(image_samples(device, list(_SIZES))):
        codes, scales, bias = layer_sample(device, _SIZES[tuple(x.shape)], x.shape[-1])
        for activations in ("int8", "float"):
            yield x, codes, scales, bias if k % 2 else None, activations


def _samples_backward(device):
    for x in image_samples(device, list(_SIZES)):
        yield x, *layer_sample(device, x.shape[-1], _SIZES[tuple(x.shape)])[:2]


register(
    Op(
        name="int8_linear",
        schema="(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str activations) -> Tensor",
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native=_native,
        best={"cuda": "triton"},
        triton=triton_body(__name__, "int8_linear"),
        autograd=(_backward, _setup_context),
    )
)
register(
    Op(
        name="int8_linear_backward",
        schema="(Tensor gradient, Tensor codes, Tensor scales) -> Tensor",
        reference=_reference_backward,
        fake=_fake_backward,
        samples=_samples_backward,
        native=_native_backward,
        best={"cuda": "triton"},
        triton=triton_body(__name__, "int8_linear_backward"),
    )
)
