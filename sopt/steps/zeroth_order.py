"""The zeroth-order step: two forwards per direction, no gradient, no stored noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sopt_kernels import add_noise_

from ..optim.restore import CopiedWeights
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
        adapter, one_after_the_other(adapter, loss), seeds, lr=lr, eps=eps, noise=noise, share=share
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
    plus, minus = losses.to(params[0].device).unbind(1)  # (N,) each
    slopes = (plus - minus) / (2 * eps)
    coefficients = slopes * (-lr / len(seeds))
    if not torch.isfinite(coefficients).all():
        return None
    add_noise_(params, seeds, coefficients, streams=list(adapter), kind=noise)
    return ZerothOrderUpdate(
        loss=losses.mean().item(),
        seeds=seeds,
        coefficients=[coefficient.item() for coefficient in coefficients],
    )


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

    try:
        losses = losses_of(2 * len(seeds), write)
    finally:
        for weights in moved.values():
            weights.home()
    return torch.stack(losses).float().view(-1, 2)
