"""``update_int8_``: int8 codes updated along the perturbations that they really made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._arguments import (
    Coefficients,
    Seeds,
    Streams,
    check_one,
    coefficients_of,
    seeds_of,
    tensors_of,
)
from ..._codes import check_codes, perturbation_of
from ..._registry import Op, register, triton_body
from ..._samples import code_samples, seeds_sample, terms_sample
from .native import update_int8_cpu, update_int8_cuda
from .reference import update_int8_ as _reference


def update_int8_(
    codes: Tensor | Sequence[Tensor],
    scales: Tensor | Sequence[Tensor],
    seeds: Seeds,
    coefficients: Coefficients,
    headroom: int,
    *,
    streams: Streams,
    eps: float | Tensor,
    delta_rounding_seeds: Seeds,
    rounding_seed: int | Tensor,
    kind: str = "gaussian",
) -> Tensor:
    r"""Update int8 codes along N realised perturbations, in place, in one pass.

    .. math:: w_i = \sum_{n=1}^{N} c_n\, \delta_{n,i}, \qquad
              q_i \leftarrow \mathrm{clamp}\bigl(q_i + \mathrm{sgn}(w_i)
              \lfloor |w_i| + u_i \rfloor,\ \pm(127 - h)\bigr)

    ``delta_n`` is what :func:`perturb_int8_` added under seed n, coefficient ``eps`` and rounding
    seed n: the direction in which the loss was really measured, rounding and head-room included,
    computed again and never stored. It is in code units, so for the projected gradients
    ``g_n = (L+ - L-) / (2 eps)``, ``c_n = -lr g_n / (N eps)`` is the step ``-lr g z`` on the
    dequantized weights. The sum is float32, by fma in the order of n; ``u`` is as in
    :func:`perturb_int8_`, under ``rounding_seed``. Memory: one read and one write of a byte; no
    scratch.

    Args:
        codes, scales, headroom, streams, kind: As in :func:`perturb_int8_`.
        seeds: N generator keys, those of the perturbations.
        coefficients: N finite factors ``c_n`` in code units per unit of ``delta``; or a float32
            tensor, also on the device of ``codes``, where it is used without a sync.
        eps: The coefficient that all perturbations had.
        delta_rounding_seeds: The N rounding seeds of the perturbations.
        rounding_seed: Generator key for the rounding of the update itself.

    Returns:
        How many codes were clamped, an int64 tensor without dimensions on the device of the
        codes. An empty list and empty tensors are no-ops.

    Raises:
        TypeError, ValueError: As :func:`perturb_int8_`. Nothing has been written then.

    Source:
        As :func:`perturb_int8_`.

    Example:
        >>> q, scale = torch.tensor([[5, -7, 0]], dtype=torch.int8), torch.tensor([0.5])
        >>> update_int8_(q, scale, 1, -1.5, 8, streams="w", eps=1.0, delta_rounding_seeds=2,
        ...              rounding_seed=3, kind="rademacher")
        tensor(0)
        >>> q
        tensor([[ 2, -4,  3]], dtype=torch.int8)
    """
    terms = perturbation_of(
        codes, scales, seeds, coefficients, streams, kind, headroom, rounding_seed
    )
    device = terms.codes[0].device if terms.codes else torch.device("cpu")
    deltas = seeds_of("delta_rounding_seeds", delta_rounding_seeds, device)
    if len(deltas) != len(terms.seeds):
        raise ValueError(
            f"delta_rounding_seeds must be one per seed ({len(terms.seeds)}), got {len(deltas)}"
        )
    size = coefficients_of("eps", eps, device)
    check_one("eps", size)
    clamped = torch.zeros((), dtype=torch.int64, device=device)
    if terms.codes:
        torch.ops.sopt.update_int8_.default(*vars(terms).values(), deltas, size, clamped)
        increment_version(terms.codes)  # else a backward would use the new values in silence
    return clamped


def clamp_codes_(codes: Tensor | Sequence[Tensor], headroom: int) -> Tensor:
    """Bring int8 codes into ±(127 - headroom), in place: once, when codes are loaded.

    After that, :func:`perturb_int8_` with this head-room never leaves ±127.

    Args:
        codes: A tensor or a list of them, as in :func:`perturb_int8_`.
        headroom: In [1, 64].

    Returns:
        How many codes were changed, an int64 tensor without dimensions on their device.

    Raises:
        TypeError, ValueError: As :func:`perturb_int8_`.

    Source:
        As :func:`perturb_int8_`.

    Example:
        >>> q = torch.tensor([127, -128, 119, -3], dtype=torch.int8)
        >>> clamp_codes_(q, headroom=8), q
        (tensor(2), tensor([ 119, -119,  119,   -3], dtype=torch.int8))
    """
    tensors = tensors_of("codes", codes)
    scales = [torch.ones(1, dtype=torch.float32, device=x.device) for x in tensors]
    streams = [0] * len(tensors)
    return update_int8_(  # no terms: the update is zero
        tensors, scales, [], [], headroom, streams=streams, eps=0.0, delta_rounding_seeds=[],
        rounding_seed=0,
    )  # fmt: skip


def _fake(codes: list[Tensor], scales: list[Tensor], *rest: object) -> None:
    check_codes(codes, scales)


def _samples(device):
    for codes, scales, streams, kind, headroom, terms in code_samples(device):
        seeds, coefficients = terms_sample(terms)
        rounding = seeds_sample(11), seeds * 3 + 1, coefficients_of("eps", 0.4, device)
        clamped = torch.tensor(5, dtype=torch.int64, device=device)
        yield codes, scales, seeds, -9 * coefficients, streams, kind, headroom, *rounding, clamped


register(
    Op(
        name="update_int8_",
        schema=(
            "(Tensor(a!)[] codes, Tensor[] scales, Tensor seeds, Tensor coefficients, "
            "int[] streams, str kind, int headroom, Tensor rounding_seed, "
            "Tensor delta_rounding_seeds, Tensor eps, Tensor(b!) clamped) -> ()"
        ),
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": update_int8_cpu, "cuda": update_int8_cuda},
        triton=triton_body(__name__, "update_int8_"),
    )
)
