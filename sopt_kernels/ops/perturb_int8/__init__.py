"""``perturb_int8_``: int8 codes moved by whole numbers along noise, restored to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import Coefficients, Seeds, Streams
from ..._codes import check_codes, perturbation_of
from ..._registry import Op, register, triton_body
from ..._samples import code_samples, seeds_sample, terms_sample
from .native import perturb_int8_cpu, perturb_int8_cuda
from .reference import perturb_int8_ as _reference

Codes = TypeVar("Codes", Tensor, Sequence[Tensor])


def perturb_int8_(
    codes: Codes,
    scales: Tensor | Sequence[Tensor],
    seeds: Seeds,
    coefficients: Coefficients,
    headroom: int,
    *,
    streams: Streams,
    rounding_seed: int | Tensor,
    kind: str = "gaussian",
) -> Codes:
    r"""Move int8 codes by a rounded sum of noise, in place, never dequantized.

    .. math:: v_i = \frac{1}{s_{\mathrm{row}(i)}} \sum_{k=1}^{K} c_k\,
              z(\mathrm{seed}_k, \mathrm{stream}, i), \qquad
              q_i \leftarrow q_i + \mathrm{sgn}(v_i)
              \min(\lfloor |v_i| + u_i \rfloor, h)

    The rounding is stochastic, with the mean ``v`` below the head-room ``h``:
    ``u = (w >> 8) 2^-24``, with word i % 4 of block i // 4 of the generator under
    ``rounding_seed`` and the tensor's stream. As the change depends on the codes in nothing and
    is odd in the coefficients, the opposite coefficients restore every byte: +c, -c, -c, +c ends
    on the first bits. Codes in ±(127 - h) never leave ±127 (:func:`clamp_codes_` brings them
    there); others wrap, and come back as well. Memory: one read and one write of a byte; no
    scratch.

    Args:
        codes: A tensor or a list of them, int8, contiguous, on one device, none overlapping
            another. Modified in place.
        scales: One float32 tensor per tensor of codes, of any shape with one positive finite
            value per row: element i, in row-major order, is in row ``i // (numel / rows)``.
        seeds: K generator keys in ``[0, 2**64)``, an int64 tensor with the same bits, or one.
        coefficients: K finite factors in the units of the dequantized weights, ``q * scale``; or
            a float32 tensor, also on the device of ``codes``, where it is used without a sync.
        headroom: ``h`` in [1, 64]: the largest change of a code.
        streams: One noise stream per tensor: an id in ``[0, 2**64)``, or a name.
        rounding_seed: Generator key of the rounding, the same for +c and -c.
        kind: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        ``codes`` itself. An empty list and empty tensors are no-ops.

    Raises:
        TypeError: A dtype is not supported, or an argument is not of its kind.
        ValueError: A tensor is not contiguous or overlaps another, devices differ, lists do not
            match, scales do not divide the codes into rows, or a number is out of range. Nothing
            has been written then.

    Source:
        Head-room instead of a mask of saturated codes is this package's own. Stochastic rounding:
        Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015.

    Example:
        >>> q = torch.tensor([[5, -7, 0]], dtype=torch.int8)
        >>> arguments = dict(headroom=8, streams="w", rounding_seed=2, kind="rademacher")
        >>> perturb_int8_(q, torch.tensor([0.5]), 1, 1.0, **arguments)
        tensor([[ 7, -9, -2]], dtype=torch.int8)
        >>> perturb_int8_(q, torch.tensor([0.5]), 1, -1.0, **arguments)
        tensor([[ 5, -7,  0]], dtype=torch.int8)
    """
    terms = perturbation_of(
        codes, scales, seeds, coefficients, streams, kind, headroom, rounding_seed
    )
    if terms.codes:
        torch.ops.sopt.perturb_int8_.default(*vars(terms).values())
        increment_version(terms.codes)  # else a backward would use the new values in silence
    return codes


def _fake(codes: list[Tensor], scales: list[Tensor], *rest: object) -> None:
    check_codes(codes, scales)


def _samples(device):
    for codes, scales, streams, kind, headroom, terms in code_samples(device):
        yield codes, scales, *terms_sample(terms), streams, kind, headroom, seeds_sample(-7)


register(
    Op(
        name="perturb_int8_",
        schema=(
            "(Tensor(a!)[] codes, Tensor[] scales, Tensor seeds, Tensor coefficients, "
            "int[] streams, str kind, int headroom, Tensor rounding_seed) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": perturb_int8_cpu, "cuda": perturb_int8_cuda},
        triton=triton_body(__name__, "perturb_int8_"),
    )
)
