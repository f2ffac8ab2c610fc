"""``write_noisy_``: ``out = base + sum_k c_k z(seed_k)``, the base untouched."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import (
    Streams,
    check_decay,
    check_kind,
    check_tensors,
    check_writable,
    stream_bits,
    tensors_of,
    terms_of,
)
from ..._registry import Op, register
from ..._samples import noise_samples
from .native import write_noisy_cpu, write_noisy_cuda
from .reference import write_noisy_ as _reference

Tensors = TypeVar("Tensors", Tensor, Sequence[Tensor])


def write_noisy_(
    out: Tensors,
    base: Tensors,
    seeds: int | Sequence[int] | Tensor,
    coefficients: float | Sequence[float] | Tensor,
    *,
    streams: Streams,
    kind: str = "gaussian",
    decay: float = 1.0,
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
        seeds, coefficients, streams, kind, decay: As in :func:`add_noise_`.

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
    check_kind(kind)
    check_decay(decay)
    streams = stream_bits(streams, len(outs))
    if not outs:
        return out
    seeds, coefficients = terms_of(seeds, coefficients, outs[0].device)
    bases = [x.detach() for x in bases]  # a base that requires grad is only read
    torch.ops.sopt.write_noisy_.default(outs, bases, seeds, coefficients, streams, kind, decay)
    increment_version(outs)  # else a backward that saved one would use the new values in silence
    return out


def _check(outs: Sequence[Tensor], bases: Sequence[Tensor]) -> None:
    check_tensors("out", outs)
    check_tensors("base", bases)
    if len(outs) != len(bases):
        raise ValueError(f"out and base must be as many, got {len(outs)} and {len(bases)}")
    for k, (x, b) in enumerate(zip(outs, bases, strict=True)):
        if (x.shape, x.dtype, x.device) != (b.shape, b.dtype, b.device):
            raise ValueError(
                f"out[{k}] must have the shape, dtype and device of base[{k}], got "
                f"{tuple(x.shape)} {x.dtype} {x.device} and {tuple(b.shape)} {b.dtype} {b.device}"
            )


def _fake(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    _check(out, base)


def _samples(device):
    for tensors, *rest in noise_samples(device):
        yield [torch.full_like(x, float("nan")) for x in tensors], tensors, *rest


def _triton() -> Callable | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from .triton_kernel import write_noisy_ as launcher

    return launcher


register(
    Op(
        name="write_noisy_",
        schema=(
            "(Tensor(a!)[] out, Tensor[] base, Tensor seeds, Tensor coefficients, int[] streams, "
            "str kind, float decay) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": write_noisy_cpu, "cuda": write_noisy_cuda},
        triton=_triton(),
    )
)
