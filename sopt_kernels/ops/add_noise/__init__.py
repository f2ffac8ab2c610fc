"""``add_noise_``: ``p += sum_k c_k z(seed_k)`` over a list of tensors, the noise never stored."""

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
    check_tensors,
    check_writable,
    sum_of,
    tensors_of,
)
from ..._registry import Op, register, triton_body
from ..._samples import noise_samples
from .native import add_noise_cpu, add_noise_cuda
from .reference import add_noise_ as _reference

Params = TypeVar("Params", Tensor, Sequence[Tensor])


def add_noise_(
    params: Params,
    seeds: Seeds,
    coefficients: Coefficients,
    *,
    streams: Streams,
    kind: str = "gaussian",
    decay: float = 1.0,
    round_after: Sequence[int] = (),
    rounding: str = "nearest",
    rounding_seed: Seeds | None = None,
) -> Params:
    r"""Add a sum of K reproducible noise tensors to each parameter, in place, in one pass.

    .. math:: p_i \leftarrow \mathrm{round}_{\mathrm{dtype}}\Bigl(
              d\,p_i + \sum_{k=1}^{K} c_k\, z(\mathrm{seed}_k, \mathrm{stream}, i)\Bigr)

    Perturb, flip the sign, restore, update along K directions and replay a log are all this op.
    The sum is float32, ``acc = float32(p) * decay``, then ``acc = fma(c_k, z_k, acc)`` in the
    order given, and is rounded once at the end: in float32, one call with K seeds equals K calls
    with one. Noise is a pure function of (seed, stream, logical element index), the same bits on
    every backend, device and thread count. Memory: one read and one write per element, whatever
    K; no scratch.

    In floating point ``p + c z - c z`` need not be ``p`` again: use :func:`write_noisy_` where a
    parameter must come back exactly.

    Args:
        params: A tensor or a list of them, any shapes, float32, bfloat16 or float16, contiguous,
            on one device, none overlapping another. Modified in place.
        seeds: K generator keys in ``[0, 2**64)``, an int64 tensor with the same bits, or one.
        coefficients: K factors in the units of ``params``, rounded to float32, finite; or a
            float32 tensor, also on the device of ``params``, where it is used without a sync.
        streams: One noise stream per tensor: an id in ``[0, 2**64)``, or a name that
            :func:`stream_id` turns into one.
        kind: ``"gaussian"``: standard normal. ``"rademacher"``: -1 or +1.
        decay: Factor of ``p``, for weight decay: ``1 - lr * weight_decay``. Rounded to float32.
        round_after: Increasing counts in [1, K - 1]: after so many seeds the sum is rounded to
            the dtype and decays again. So the replay of many steps in bfloat16 is one pass, with
            the bits that a call for each step leaves.
        rounding: ``"nearest"``: ties to even. ``"stochastic"``: to the neighbour away from zero
            where the fraction that is discarded is > u, ``u = (w >> 8) 2^-24``, with word i % 4 of
            block i // 4 of the generator under the rounding seed and the tensor's stream; so the
            mean is exact, and updates below half an ulp are not lost. Past the largest finite
            value to nearest. float32 needs no rounding.
        rounding_seed: With stochastic rounding, one generator key per rounding, of which there
            are ``len(round_after) + 1``.

    Returns:
        ``params`` itself. An empty list and empty tensors are no-ops.

    Raises:
        TypeError: A dtype is not supported, or an argument is not of its kind.
        ValueError: A tensor is not contiguous or overlaps another, devices differ, lists do not
            match, or a number is out of range or not finite. Nothing has been written then.
        RuntimeError: A tensor requires grad and grad mode is on.

    Source:
        Perturbation from a stored seed: Malladi et al., "Fine-Tuning Language Models with Just
        Forward Passes" (MeZO), 2023. Generator: Salmon et al., "Parallel random numbers: as easy
        as 1, 2, 3", SC'11. Gaussian: Box & Muller, Ann. Math. Stat. 29(2), 1958. Stochastic
        rounding: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015.

    Example:
        >>> w = torch.zeros(3)
        >>> add_noise_(w, seeds=[1, 2], coefficients=[0.5, 0.5], streams="w", kind="rademacher")
        tensor([1., 0., 0.])
    """
    tensors = tensors_of("params", params)
    check_tensors("params", tensors)
    check_writable("params", tensors)
    terms = sum_of(
        tensors, seeds, coefficients, streams, kind, decay, round_after, rounding, rounding_seed
    )
    if not tensors:
        return params
    torch.ops.sopt.add_noise_.default(tensors, *terms)
    increment_version(tensors)  # else a backward that saved one would use the new values in silence
    return params


def noise(
    shape: int | Sequence[int],
    seed: int,
    stream: int | str,
    kind: str = "gaussian",
    device: torch.device | str = "cpu",
) -> Tensor:
    """A tensor of reproducible noise: element i (row-major) is ``z(seed, stream, i)``.

    Exactly what ``add_noise_`` adds with coefficient 1. No generator of PyTorch is used or moved.

    Args:
        shape: Shape of the result.
        seed: Generator key in ``[0, 2**64)``.
        stream: Id in ``[0, 2**64)``, or a name that :func:`stream_id` turns into one.
        kind: ``"gaussian"``: standard normal, within 4 ulp of max(abs(z), 2**-10) of the exact
            Box-Muller transform. ``"rademacher"``: -1 or +1.
        device: Where the result lies; the bits are the same everywhere.

    Returns:
        A contiguous float32 tensor.

    Raises:
        TypeError, ValueError: As :func:`add_noise_`.

    Source:
        As :func:`add_noise_`.

    Example:
        >>> noise((2, 2), seed=0, stream="example", kind="rademacher").abs()
        tensor([[1., 1.],
                [1., 1.]])
    """
    zeros = torch.zeros(shape, dtype=torch.float32, device=device)
    return add_noise_(zeros, seed, 1.0, streams=stream, kind=kind)


def _fake(params: list[Tensor], *terms: object) -> None:
    check_tensors("params", params)


def _samples(device):
    for tensors, *rest in noise_samples(device):
        yield tensors, *rest


register(
    Op(
        name="add_noise_",
        schema=(
            "(Tensor(a!)[] params, Tensor seeds, Tensor coefficients, int[] streams, str kind, "
            "float decay, int[] round_after, Tensor? rounding_seeds) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": add_noise_cpu, "cuda": add_noise_cuda},
        triton=triton_body(__name__, "add_noise_"),
    )
)
