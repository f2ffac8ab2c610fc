"""``restore_accumulate_``: ``p += r z`` and ``g += c z`` in one pass, the noise drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import (
    Streams,
    check_kind,
    check_one,
    check_pairs,
    check_tensors,
    check_writable,
    coefficients_of,
    seeds_of,
    stream_bits,
    tensors_of,
)
from ..._registry import Op, register, triton_body
from ..._samples import noise_samples, terms_sample
from .native import restore_accumulate_cpu, restore_accumulate_cuda
from .reference import restore_accumulate_ as _reference

Params = TypeVar("Params", Tensor, Sequence[Tensor])


def restore_accumulate_(
    params: Params,
    grads: Tensor | Sequence[Tensor],
    seed: int | Tensor,
    restore_coefficient: float | Tensor,
    grad_coefficient: float | Tensor,
    *,
    streams: Streams,
    kind: str = "gaussian",
) -> Params:
    r"""Take a perturbation back and add its gradient estimate to the gradients, in one pass.

    .. math:: p_i \leftarrow \mathrm{round}(p_i + r\, z_i), \qquad
              g_i \leftarrow \mathrm{round}(g_i + c\, z_i), \qquad
              z_i = z(\mathrm{seed}, \mathrm{stream}, i)

    For optimizers that want a gradient: after ``p += eps z`` and two losses, ``r = -eps`` restores
    the parameters and ``c = (L+ - L-) / (2 eps)`` accumulates the estimate. Both are one ``fma``
    in float32 and one rounding to nearest: the bits that :func:`add_noise_` leaves in each, at
    half the noise. As there, bfloat16 and float16 parameters need not come back exactly. Memory:
    two reads and two writes per element; no scratch.

    Args:
        params: A tensor or a list of them, any shapes, float32, bfloat16 or float16, contiguous,
            on one device. Modified in place.
        grads: As many, each of the shape and device of its parameter, of any of these dtypes; no
            tensor may overlap another. Modified in place.
        seed: Generator key in ``[0, 2**64)``, or an int64 tensor with the same bits.
        restore_coefficient: ``r``, in the units of ``params``: a finite number, or a float32
            tensor of one element, also on the device of ``params``, where it is used without a
            sync.
        grad_coefficient: ``c``, in the units of ``grads``, in the same forms.
        streams: One noise stream per pair: an id in ``[0, 2**64)``, or a name.
        kind: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        ``params`` itself. Empty lists and empty tensors are no-ops.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`add_noise_`; ValueError also where
            ``params`` and ``grads`` do not match. Nothing has been written then.

    Source:
        As :func:`add_noise_`.

    Example:
        >>> w, g = torch.ones(3), torch.zeros(3)
        >>> add_noise_(w, 1, 0.5, streams="w", kind="rademacher")
        tensor([1.5000, 0.5000, 0.5000])
        >>> restore_accumulate_(w, g, 1, -0.5, 2.0, streams="w", kind="rademacher"), g
        (tensor([1., 1., 1.]), tensor([ 2., -2., -2.]))
    """
    tensors, gradients = tensors_of("params", params), tensors_of("grads", grads)
    _check(tensors, gradients)
    check_writable("params", tensors)
    check_writable("grads", gradients)
    check_kind(kind)
    bits = stream_bits(streams, len(tensors))
    if not tensors:
        return params
    device = tensors[0].device
    scalars = (
        seeds_of("seed", seed, device),
        coefficients_of("restore_coefficient", restore_coefficient, device),
        coefficients_of("grad_coefficient", grad_coefficient, device),
    )
    for name, x in zip(("seed", "restore_coefficient", "grad_coefficient"), scalars, strict=True):
        check_one(name, x)
    torch.ops.sopt.restore_accumulate_.default(tensors, gradients, *scalars, bits, kind)
    increment_version(tensors)  # else a backward that saved one would use the new values in silence
    increment_version(gradients)
    return params


def _check(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    check_tensors("params", params)
    check_tensors("grads", grads)
    check_pairs("params", params, "grads", grads, same_dtype=False)


def _fake(params: list[Tensor], grads: list[Tensor], *rest: object) -> None:
    _check(params, grads)


def _samples(device):
    seeds, coefficients = terms_sample(2)
    for tensors, _, _, streams, kind, _, round_after, rounding in noise_samples(device):
        if not round_after and rounding is None:
            dtypes = [x.dtype for x in reversed(tensors)]
            grads = [x.cos().to(d) for x, d in zip(tensors, dtypes, strict=True)]
            scalars = (seeds[1:], -coefficients[:1], coefficients[1:])
            yield tensors, grads, *scalars, streams, kind


register(
    Op(
        name="restore_accumulate_",
        schema=(
            "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor seed, Tensor restore_coefficient, "
            "Tensor grad_coefficient, int[] streams, str kind) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": restore_accumulate_cpu, "cuda": restore_accumulate_cuda},
        triton=triton_body(__name__, "restore_accumulate_"),
    )
)
