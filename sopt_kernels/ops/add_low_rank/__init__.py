"""``add_low_rank_``: what a LoRA adapter adds to a linear layer's result, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import check_writable, tensors_of
from ..._registry import Op, register
from ..._samples import ramp
from .native import add_low_rank_cpu
from .reference import add_low_rank_ as _reference
from .reference import check

Results = TypeVar("Results", Tensor, Sequence[Tensor])


def add_low_rank_(
    y: Results,
    x: Tensor | Sequence[Tensor],
    a: Tensor | Sequence[Tensor],
    b: Tensor | Sequence[Tensor],
    *,
    scale: float = 1.0,
) -> Results:
    r"""Add the product of a LoRA adapter to a linear layer's result, in place, without gradient.

    .. math:: y \leftarrow \mathrm{round}(y + s\, (x A^\top) B^\top)

    In float32, whatever the dtype of the activations, and rounded once: an adapter perturbed by
    less than a unit of bfloat16 still acts. In plain PyTorch that takes a copy of x in float32 and
    three passes over y; here x is read once, y read and written once, and nothing else.

    Args:
        y: ``(..., out)``, float32, bfloat16 or float16, contiguous; or a list of such.
        x: ``(..., in)``, what the layer was given, of the dtype of ``y``, contiguous.
        a: ``(rank, in)``, float32: the weight of ``lora_A``.
        b: ``(out, rank)``, float32: the weight of ``lora_B``.
        scale: ``s``, alpha / rank; finite.

    Returns:
        ``y`` itself. Empty lists and empty tensors are no-ops.

    The order of the sums depends on the processor's instruction set, never on threads. Other
    devices than the CPU, and ranks above 256, take the reference: PyTorch's products.

    Raises:
        TypeError, ValueError: A dtype, shape, device or scale that is not as above.
        RuntimeError: A ``y`` that is a leaf requiring grad in grad mode.

    Source:
        Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.

    Example:
        >>> y, x = torch.zeros(1, 2), torch.tensor([[1.0, 2.0, 3.0]])
        >>> a, b = torch.ones(1, 3), torch.tensor([[1.0], [-1.0]])
        >>> add_low_rank_(y, x, a, b, scale=0.5)
        tensor([[ 3., -3.]])
    """
    results, given, down, up = (
        tensors_of(name, value) for name, value in (("y", y), ("x", x), ("a", a), ("b", b))
    )
    check(results, given, down, up, scale)
    check_writable("y", results)
    if results:
        torch.ops.sopt.add_low_rank_.default(results, given, down, up, scale)
        increment_version(results)
    return y


def _fake(y: list[Tensor], x: list[Tensor], a: list[Tensor], b: list[Tensor], scale: float) -> None:
    check(y, x, a, b, scale)


def _samples(device):
    """Tiles of rows, ranks and columns, whole and not; no rows; what the C kernel does not take."""
    shapes = [(64, 320, 64, 4), (33, 77, 130, 3), (1, 5, 1, 1), (0, 8, 8, 4), (7, 40, 70, 9)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensors = []
        for rows, width, size, rank in [*shapes, (3, 16, 16, 260)]:
            for k, shape in enumerate(((rows, size), (rows, width), (rank, width), (size, rank))):
                values = ramp(-9, 7 + k, shape[0] * shape[1]).mul(3).sin().view(shape)
                tensors.append(values.to(device, dtype if k < 2 else torch.float32))
        yield tensors[::4], tensors[1::4], tensors[2::4], tensors[3::4], 0.75


register(
    Op(
        name="add_low_rank_",
        schema="(Tensor(a!)[] y, Tensor[] x, Tensor[] a, Tensor[] b, float scale) -> ()",
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": add_low_rank_cpu},
        triton="not written: PyTorch's own products are fast on a GPU",
        exact=False,
    )
)
