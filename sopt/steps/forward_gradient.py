"""A gradient from forward passes, several of them at once if there is memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sopt_kernels import add_noise_, write_noisy_

# Losses (k,) of k candidates for the parameters: (k, *shape) each, by name.
Losses = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class ForwardGradient:
    """An estimate, ``sum_n coefficients[n] * z(seeds[n])``."""

    gradient: dict[str, Tensor]  # float32, by name
    loss: float  # rge: at the parameters themselves; spsa: mean of the 2 n losses
    seeds: list[int]
    coefficients: list[float]  # float32 values, as applied


@torch.no_grad()
def forward_gradient(
    params: Mapping[str, Tensor],
    losses: Losses,
    seeds: Sequence[int],
    *,
    eps: float,
    estimator: str = "rge",
    noise: str = "gaussian",
    batch: int = 1,
) -> ForwardGradient | None:
    r"""Estimate the gradient along n random directions; the parameters are left alone.

    .. math:: \hat g = \frac{1}{n} \sum_{i=1}^{n} g_i z_i, \quad
              g_i = \frac{L(\theta + \epsilon z_i) - L(\theta)}{\epsilon}
              \text{ (rge)}, \quad
              g_i = \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon}
              \text{ (spsa)}

    ``rge``, the one-sided randomized gradient estimate, shares its base loss: n + 1 forwards.
    ``spsa``, two-sided simultaneous perturbation, takes 2 n and has no error of order
    :math:`\epsilon`.

    Args:
        params: Contiguous float32 tensors by canonical name, the stream of their noise.
        losses: Evaluates k candidates at once, without randomness of its own.
        seeds: n generator keys in [0, 2**64).
        eps: :math:`\epsilon`, in units of the parameters.
        estimator: ``"rge"`` or ``"spsa"``.
        noise: ``"gaussian"`` or ``"rademacher"``.
        batch: Most candidates in one call of ``losses``.

    Returns:
        The estimate; None if a loss or a coefficient was not finite.

    Source:
        rge: Nesterov & Spokoiny, "Random gradient-free minimization of convex functions",
        Foundations of Computational Mathematics 17, 2017; spsa: Spall, IEEE TAC 37(3), 1992.

    Example:
        >>> estimate = forward_gradient(
        ...     {"x": torch.tensor([3.0])}, lambda c: c["x"].square().sum(-1), [1], eps=1.0,
        ...     estimator="spsa", noise="rademacher")
        >>> estimate.loss, estimate.gradient["x"]  # the mean of 4 and 16; 2 x
        (10.0, tensor([6.]))
    """
    if estimator == "rge":
        moves = [(seeds[0], 0.0), *((seed, eps) for seed in seeds)]
    else:
        moves = [(seed, sign * eps) for seed in seeds for sign in (1, -1)]
    streams = list(params)
    found = []
    for start in range(0, len(moves), batch):
        part = moves[start : start + batch]
        candidates = {name: p.new_empty(len(part), *p.shape) for name, p in params.items()}
        for i, (seed, size) in enumerate(part):
            written = [candidate[i] for candidate in candidates.values()]
            write_noisy_(written, list(params.values()), seed, size, streams=streams, kind=noise)
        found.append(losses(candidates).float())
    values = torch.cat(found)
    if estimator == "rge":
        loss, slopes = values[0], (values[1:] - values[0]) / eps
    else:
        plus, minus = values.view(-1, 2).unbind(1)
        loss, slopes = values.mean(), (plus - minus) / (2 * eps)
    coefficients = slopes / len(seeds)
    if not torch.isfinite(loss) or not torch.isfinite(coefficients).all():
        return None
    gradient = {name: torch.zeros_like(p) for name, p in params.items()}
    add_noise_(list(gradient.values()), list(seeds), coefficients, streams=streams, kind=noise)
    return ForwardGradient(
        gradient=gradient,
        loss=loss.item(),
        seeds=list(seeds),
        coefficients=[coefficient.item() for coefficient in coefficients],
    )
