"""``write_noisy_``: ``out = base + sum_k c_k z(seed_k)``, the base untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import (
    Coefficients,
    Seeds,
    Streams,
    check_pairs,
    check_tensors,
    check_writable,
    sum_of,
    tensors_of,
)
from ..._registry import Op, register, triton_body
from ..._samples import noise_samples
from .native import write_noisy_cpu, write_noisy_cuda
from .reference import write_noisy_ as _reference

Tensors = TypeVar("Tensors", Tensor, Sequence[Tensor])


def write_noisy_(
    out: Tensors,
    base: Tensors,
    seeds: Seeds,
    coefficients: Coefficients,
    *,
    streams: Streams,
    kind: str = "gaussian",
    decay: float = 1.0,
    round_after: Sequence[int] = (),
    rounding: str = "nearest",
    rounding_seed: Seeds | None = None,
) -> Tensors:
    r"""Write each base tensor plus a sum of K reproducible noise tensors to ``out``, in one pass.

    .. math:: o_i \leftarrow \mathrm{round}_{\mathrm{dtype}}\Bigl(
              d\,b_i + \sum_{k=1}^{K} c_k\, z(\mathrm{seed}_k, \mathrm{stream}, i)\Bigr)

    The bits are those that :func:`add_noise_` would leave in a copy of ``base``. As ``base`` is
    never touched, going back from a perturbation is exact and free in every dtype. Memory: one
    read and one write per element, whatever K.

    Args:
        out: A tensor or a list of them, contiguous, on one device. Overwritten; what was in it
            does not matter.
        base: As many tensors, each of the shape, dtype and device of its ``out``; no ``out`` may
            overlap another tensor.
        seeds, coefficients, streams, kind, decay, round_after, rounding, rounding_seed: As in
            :func:`add_noise_`.

    Returns:
        ``out`` itself. Empty lists and empty tensors are no-ops.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`add_noise_`; ValueError also where ``out``
            and ``base`` do not match. Nothing has been written then.

    Source:
        As :func:`add_noise_`.

    Example:
        >>> base, out = torch.ones(3), torch.empty(3)
        >>> write_noisy_(out, base, seeds=[1, 2], coefficients=[0.5, 0.5], streams="w",
        ...              kind="rademacher")
        tensor([2., 1., 1.])
    """
    outs, bases = tensors_of("out", out), tensors_of("base", base)
    _check(outs, bases)
    check_writable("out", outs)
    terms = sum_of(
        outs, seeds, coefficients, streams, kind, decay, round_after, rounding, rounding_seed
    )
    if not outs:
        return out
    bases = [x.detach() for x in bases]  # a base that requires grad is only read
    torch.ops.sopt.write_noisy_.default(outs, bases, *terms)
    increment_version(outs)  # else a backward that saved one would use the new values in silence
    return out


def _check(outs: Sequence[Tensor], bases: Sequence[Tensor]) -> None:
    check_tensors("out", outs)
    check_tensors("base", bases)
    check_pairs("out", outs, "base", bases)


def _fake(out: list[Tensor], base: list[Tensor], *terms: object) -> None:
    _check(out, base)


def _samples(device):
    for tensors, *rest in noise_samples(device):
        yield [torch.full_like(x, float("nan")) for x in tensors], tensors, *rest


register(
    Op(
        name="write_noisy_",
        schema=(
            "(Tensor(a!)[] out, Tensor[] base, Tensor seeds, Tensor coefficients, int[] streams, "
            "str kind, float decay, int[] round_after, Tensor? rounding_seeds) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": write_noisy_cpu, "cuda": write_noisy_cuda},
        triton=triton_body(__name__, "write_noisy_"),
    )
)
