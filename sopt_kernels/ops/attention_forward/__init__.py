"""``attention_forward``: ``softmax(scale q k^T) v`` on the CPU, without the matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._registry import Op, register
from ..._samples import ramp
from .native import attention_forward_cpu
from .reference import attention_forward as _reference
from .reference import check, empty_output


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    r"""Scaled dot-product attention without mask, dropout and gradient, fast on the CPU.

    .. math:: o_i = \frac{\sum_j w_{ij} v_j}{\sum_j w_{ij}}, \qquad
              w_{ij} = \exp(s\, q_i \cdot k_j - \max_l s\, q_i \cdot k_l)

    Blocks of keys pass by blocks of queries, the softmax online, so no more than 128 scores of a
    query exist at a time. Sums and softmax are float32. On processors with AVX512_BF16 the weights
    of bfloat16 inputs are rounded to bfloat16, their exponentials by a polynomial of relative error
    7.5e-5, and products are exact; elsewhere bfloat16 inputs are computed in float32,
    exponentials within 7.5e-8 and their rounding. One rounding of the result. Threads do not change
    the bits, the processor's instruction set does.

    Memory: the result, and at most 320 KiB of each thread's stack.

    Args:
        query: ``(batch, heads, n, d)``, float32, bfloat16 or float16, with any strides; read where
            it lies if the elements of a row are adjacent, as in a linear layer's output
            ``(batch, n, heads * d)``, viewed and transposed.
        key: ``(batch, heads, m, d)``, m at least 1, of the dtype and device of ``query``.
        value: As ``key``.
        scale: ``s``, positive; None: ``1 / sqrt(d)``.

    Returns:
        A tensor of the shape and dtype of ``query`` that lies in memory as ``(batch, n, heads,
        d)``, so that ``transpose(1, 2).reshape(batch, n, heads * d)`` is a view.

    float16, other devices than the CPU, rows that are not adjacent, and d that is no multiple of 8
    or larger than 256 take the reference: PyTorch's attention in float32.

    Raises:
        TypeError: Another dtype, or tensors of different dtypes or devices.
        ValueError: Shapes that do not match, no keys, or a scale that is not positive and finite.
        RuntimeError: A tensor requires grad in grad mode.

    Source:
        Dao, Fu, Ermon, Rudra and Ré 2022, *FlashAttention*, arXiv 2205.14135; Milakov and
        Gimelshein 2018, *Online normalizer calculation for softmax*, arXiv 1805.02867.

    Example:
        >>> hidden = torch.zeros(2, 64, 8 * 40, dtype=torch.bfloat16)  # (batch, n, heads * d)
        >>> heads = hidden.view(2, 64, 8, 40).transpose(1, 2)
        >>> attention_forward(heads, heads, heads).transpose(1, 2).reshape(2, 64, 320).shape
        torch.Size([2, 64, 320])
    """
    check(query, key, value, scale)
    if torch.is_grad_enabled():
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.requires_grad:
                raise RuntimeError(
                    f"{name} requires grad, and attention_forward has no gradient: call it under "
                    "torch.no_grad()"
                )
    return torch.ops.sopt.attention_forward.default(query, key, value, scale)


def _fake(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    check(query, key, value, scale)
    return empty_output(query)


def _samples(device):
    """Tiles and blocks of keys, whole and not; nothing to do; what the C kernel does not take."""
    for dtype, shapes in {
        torch.float32: [(1, 2, 64, 64, 40), (2, 1, 33, 77, 64), (1, 1, 7, 9, 12)],
        torch.bfloat16: [(1, 1, 130, 300, 80), (1, 2, 3, 1, 160), (0, 2, 4, 4, 8), (1, 1, 0, 5, 8)],
        torch.float16: [(1, 1, 2, 35, 256)],
    }.items():
        for batch, heads, n, m, d in shapes:
            tensors = []
            for k, rows in enumerate((n, m, m)):
                x = ramp(-9, 7 + k, batch * rows * heads * d).mul(3).sin()
                x = x.view(batch, rows, heads, d).transpose(1, 2)
                tensors.append(x.to(device, dtype))
            yield *tensors, None if n % 2 else 0.5


register(
    Op(
        name="attention_forward",
        schema="(Tensor query, Tensor key, Tensor value, float? scale) -> Tensor",
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": attention_forward_cpu},
        triton="not written: PyTorch's own attention is fast on a GPU",
        exact=False,
    )
)
