"""Reports before a training: is eps large enough for the weights, is the closure a function?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sopt_kernels import add_noise_, write_noisy_

from ..errors import InputError
from .closure import evaluate
from .optimizer import ZerothOrderOptimizer

SAMPLE = 1 << 16  # elements at most, from a tensor's head
FEW_ULPS = 8  # below, the direction that 16-bit weights really take differs from z by per cents


@dataclass(frozen=True)
class TensorPrecision:
    """How a perturbation of size eps fares in a tensor's dtype."""

    name: str
    dtype: torch.dtype
    rms: float  # root mean square of the weights
    eps_in_ulps: float  # eps over the distance of neighbours at that size
    unmoved: float  # share of weights that +eps z leaves as they are
    drift: float  # of +eps, -2 eps, +eps in place: rms of the change, over that of the weights

    @property
    def coarse(self) -> bool:
        """Whether eps is below 8 ulps, so that rounding bends the perturbation."""
        return self.eps_in_ulps < FEW_ULPS

    def __str__(self) -> str:
        return (
            f"{self.name}: {str(self.dtype).removeprefix('torch.')}, rms {self.rms:.2g}, "
            f"eps = {self.eps_in_ulps:.3g} ulp, {100 * self.unmoved:.2g} % unmoved, "
            f"drift in place {100 * self.drift:.2g} % a step"
            + (": eps is too small for this dtype" if self.coarse else "")
        )


@torch.no_grad()
def precision_report(optimizer: ZerothOrderOptimizer) -> list[TensorPrecision]:
    """eps against the floating-point grid of each trained float tensor, on at most 65,536 elements.

    The drift is what ``restore="inplace"`` would leave after one step without an update. Of weights
    that are not finite eps and drift are nan.

    Example:
        >>> weight = torch.nn.Parameter(torch.full((1000,), 0.02, dtype=torch.bfloat16))
        >>> (line,) = precision_report(ZOSGD([("w", weight)], lr=1e-3, eps=1e-4))
        >>> line.eps_in_ulps, line.coarse
        (0.8192..., True)
    """
    report = []
    for name, eps, x in optimizer.floats():
        base = x.detach().reshape(-1)[:SAMPLE].clone()
        moved = write_noisy_(torch.empty_like(base), base, 0, eps, streams=name)
        unmoved = (moved == base).float().mean().item() if base.numel() else 0.0
        for c in (-2 * eps, eps):
            add_noise_(moved, 0, c, streams=name)
        rms = _rms(base)
        exponent = math.floor(math.log2(max(rms, 2.0**-24))) if math.isfinite(rms) else math.nan
        ulp = torch.finfo(x.dtype).eps * 2.0**exponent
        drift = _rms(moved.float() - base.float()) / rms if rms else 0.0
        report.append(TensorPrecision(name, x.dtype, rms, eps / ulp, unmoved, drift))
    return report


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


@torch.no_grad()
def noise_floor(
    optimizer: ZerothOrderOptimizer, closure: Callable[[], Tensor | float], allowed: float = 0.0
) -> float:
    r"""What two forward passes at the same weights differ by, as an error of the slope g.

    .. math:: \frac{|L(\theta) - L(\theta)'|}{2 \epsilon}, \quad \epsilon\text{ the smallest}

    0 for a closure that is a function of the weights. Dropout, another batch, or noise of its own
    in each call make it large, and training follows that noise instead of the slope.

    Args:
        optimizer: Whose weights and eps count.
        closure: As for :meth:`~sopt.optim.ZOSGD.step`; called twice.
        allowed: Largest floor to accept: some kernels of a GPU repeat to rounding only.

    Raises:
        InputError: The floor is above ``allowed``, a loss is not finite, or the closure is not one.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout()).eval()
        >>> optimizer = ZOSGD(model.named_parameters(), lr=1e-3, eps=1e-3)
        >>> noise_floor(optimizer, lambda: model(torch.ones(4)).sum())
        0.0
    """
    weights = list(optimizer.tensors().values())
    first, second = (evaluate(closure, weights).item() for _ in range(2))
    if not math.isfinite(first + second):
        raise InputError(
            f"closure must return finite losses at the weights as they are, got {first:g} and "
            f"{second:g}"
        )
    floor = abs(first - second) / (2 * min(group["eps"] for group in optimizer.param_groups))
    if not floor <= allowed:
        raise InputError(
            f"closure must give the same loss at the same weights, gave {first:g} and {second:g}: "
            f"an error of {floor:.2g} in the slope, {allowed:g} allowed; call model.eval(), and "
            "draw batch and noise once a step, outside of the closure"
        )
    return floor
