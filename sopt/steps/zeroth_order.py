"""The zeroth-order step: two forwards per direction, no gradient, no stored noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sopt_kernels import add_noise_

from ..optim.restore import Codes, CopiedWeights, Terms
from .loss import Loss


@dataclass(frozen=True)
class ZerothOrderUpdate:
    """What a step did: ``adapter += sum_n coefficients[n] * z(seeds[n])``."""

    loss: float  # mean of the 2 N losses
    seeds: list[int]
    coefficients: list[float]  # float32 values, as applied


# Evaluates the losses of so many forwards. It must call ``write(k, names)`` before forward ``k``
# computes with these parameters, which puts their perturbed values in place.
Write = Callable[[int, Sequence[str]], None]
Losses = Callable[[int, Write], list[Tensor]]

# Has the two losses along each of some seeds evaluated, (seeds, 2): perhaps some of them by other
# processes. Gives the seeds along which there are losses, and these.
Evaluate = Callable[[Sequence[int]], Tensor]
Share = Callable[[Sequence[int], Evaluate], tuple[list[int], Tensor]]


def _evaluate_all(seeds: Sequence[int], evaluate: Evaluate) -> tuple[list[int], Tensor]:
    return list(seeds), evaluate(seeds)


def zeroth_order_step(
    adapter: Mapping[str, Tensor],
    loss: Loss,
    seeds: Sequence[int],
    *,
    lr: float,
    eps: float,
    noise: str = "gaussian",
    share: Share = _evaluate_all,
    clip: float | None = None,
) -> ZerothOrderUpdate | None:
    r"""Update ``adapter`` by two-sided simultaneous perturbation along N random directions.

    .. math:: g_n = \frac{L(\theta + \epsilon z_n) - L(\theta - \epsilon z_n)}{2 \epsilon},
              \quad \theta \leftarrow \theta - \frac{\alpha}{N} \sum_{n=1}^{N} g_n z_n

    The perturbed weights are written from an untouched copy of the adapter, so they come back
    exactly, also when a loss raises. z is regenerated from its seed and the tensor's name wherever
    it is needed. Losses, their differences and g are float32 and stay on the device until the end.

    Args:
        adapter: Parameters by canonical name; the name is the stream of a parameter's noise.
        loss: Evaluates the loss at the current weights, without randomness of its own: same
            picture, latent sample, noise, timestep and prompt each time.
        seeds: N generator keys in [0, 2**64), one per direction.
        lr: :math:`\alpha`; any finite number. A negative one ascends.
        eps: :math:`\epsilon`, size of a perturbation in units of the weights.
        noise: ``"gaussian"`` or ``"rademacher"``.
        clip: Bound of :math:`|g_n|`; None for none.
        share: Who evaluates which losses. N is the number of seeds along which it gives some.

    Returns:
        The update; None if a loss or a coefficient was not finite, in which case the weights are
        bit for bit what they were.

    Source:
        Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
        approximation", IEEE TAC 37(3), 1992; arXiv 2507.10029, equation 2.

    Example:
        >>> weight = torch.tensor([3.0])
        >>> update = zeroth_order_step(
        ...     {"weight": weight}, lambda: weight.square().sum(), [1], lr=0.25, eps=1.0,
        ...     noise="rademacher")
        >>> update.loss, weight  # the mean of 4 and 16; 3 - 0.25 * 6
        (10.0, tensor([1.5000]))
    """

    return zeroth_order_step_together(
        adapter,
        one_after_the_other(adapter, loss),
        seeds,
        lr=lr,
        eps=eps,
        noise=noise,
        share=share,
        clip=clip,
    )


def one_after_the_other(adapter: Mapping[str, Tensor], loss: Loss) -> Losses:
    """What evaluates one forward after the other, each with the whole adapter perturbed."""

    def losses_of(count: int, write: Write) -> list[Tensor]:
        losses = []
        for number in range(count):
            write(number, list(adapter))
            losses.append(loss())
        return losses

    return losses_of


@torch.no_grad()
def zeroth_order_step_together(
    adapter: Mapping[str, Tensor],
    losses_of: Losses,
    seeds: Sequence[int],
    *,
    lr: float,
    eps: float,
    noise: str = "gaussian",
    share: Share = _evaluate_all,
    clip: float | None = None,
) -> ZerothOrderUpdate | None:
    """:func:`zeroth_order_step` where the 2 N forwards may take turns, one layer after the other.

    Args:
        losses_of: Called with 2 N and with what writes the perturbed values of some parameters for
            one of the forwards: along seed 0, against it, along seed 1, ... No parameter may be in
            two different lists of names.
    """
    params = list(adapter.values())

    def evaluate(chosen: Sequence[int]) -> Tensor:
        return losses_along(adapter, losses_of, chosen, eps=eps, noise=noise)

    seeds, losses = share(seeds, evaluate)
    coefficients = _coefficients(losses.to(params[0].device), lr, eps, clip)
    if coefficients is None:
        return None
    add_noise_(params, seeds, coefficients, streams=list(adapter), kind=noise)
    return _update(losses, seeds, coefficients)


@torch.no_grad()
def losses_along(
    adapter: Mapping[str, Tensor],
    losses_of: Losses,
    seeds: Sequence[int],
    *,
    eps: float,
    noise: str = "gaussian",
) -> Tensor:
    """The losses (N, 2), float32, at ``+eps`` and ``-eps`` along N directions; the adapter is left
    alone. The arguments are those of :func:`zeroth_order_step_together`."""
    moved: dict[tuple[str, ...], CopiedWeights] = {}

    def write(number: int, names: Sequence[str]) -> None:
        key = tuple(names)
        if key not in moved:
            own = {name: adapter[name] for name in key}
            moved[key] = CopiedWeights(0, own, noise, "nearest")
        moved[key].move(seeds[number // 2], -eps if number % 2 else eps, 0)
        torch.clear_autocast_cache()  # of an autocast around this: casts of what was there before

    try:
        losses = losses_of(2 * len(seeds), write)
    finally:
        for weights in moved.values():
            weights.home()
        torch.clear_autocast_cache()
    return torch.stack(losses).float().view(-1, 2)


@torch.no_grad()
def zeroth_order_step_on_codes(
    codes: Codes,
    loss: Loss,
    seeds: Sequence[int],
    rounding_seeds: Sequence[int],
    update_seed: int,
    *,
    lr: float,
    eps: float,
    clip: float | None = None,
) -> ZerothOrderUpdate | None:
    r""":func:`zeroth_order_step` of int8 weights ``scale * code``, whose codes move in place.

    A perturbation moves codes by whole numbers :math:`\delta(\pm\epsilon z_n / s)`, and the update
    goes along the moves that were really made:

    .. math:: q \leftarrow \mathrm{clamp}\Bigl(q - \mathrm{SR}\Bigl(\frac{\alpha}{N \epsilon}
              \sum_{n=1}^{N} g_n \delta_n\Bigr)\Bigr)

    with stochastic rounding SR (:func:`~sopt_kernels.update_int8_`). No copy of the codes exists:
    they come back to the last bit because the moves are integers, also when a loss raises. Bit for
    bit a step of :class:`~sopt.optim.ZOSGD` under the same seeds.

    Args:
        codes: With their scales, noise and head-room.
        rounding_seeds: Generator keys of the rounding of the N perturbations.
        update_seed: That of the update.
        others: As in :func:`zeroth_order_step`; ``eps`` in units of the weights.

    Returns:
        As :func:`zeroth_order_step`: in units of the weights.
    """
    found = []
    try:
        for seed, rounding_seed in zip(seeds, rounding_seeds, strict=True):
            for size in (eps, -eps):
                codes.move(seed, size, rounding_seed)
                found.append(loss())
    finally:
        codes.home()
    losses = torch.stack(found).float().view(-1, 2)
    coefficients = _coefficients(losses, lr, eps, clip)
    if coefficients is None:
        return None
    update = _update(losses, seeds, coefficients)
    codes.update(
        Terms(
            seeds=update.seeds,
            coefficients=update.coefficients,
            decay=1.0,
            round_after=[],
            rounding_seeds=[update_seed],
            eps=eps,
            delta_rounding_seeds=list(rounding_seeds),
        )
    )
    return update


def _coefficients(losses: Tensor, lr: float, eps: float, clip: float | None) -> Tensor | None:
    """Of the update along each seed, (N,) float32; None if one or a loss is not finite."""
    plus, minus = losses.unbind(1)  # (N,) each
    slopes = (plus - minus) / (2 * eps)
    if clip is not None:
        slopes = slopes.clamp(-clip, clip)
    coefficients = slopes * (-lr / len(slopes))
    if not (torch.isfinite(coefficients).all() and torch.isfinite(plus + minus).all()):
        return None
    return coefficients


def _update(losses: Tensor, seeds: Sequence[int], coefficients: Tensor) -> ZerothOrderUpdate:
    return ZerothOrderUpdate(
        loss=losses.mean().item(),
        seeds=list(seeds),
        coefficients=[coefficient.item() for coefficient in coefficients],
    )
