"""How large a perturbation must be for its loss difference to stand out of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

LADDER = (1e-3, 3e-3, 1e-2, 3e-2)
ALLOWED = 0.25  # noise over signal; at 0.5 a cosine of 0.89 with the exact slopes is left
NUM_TIMESTEPS = 4  # that slopes are measured at: noise and signal both depend on it
_NEIGHBOUR = 1.25  # times eps: the slope of a smooth loss hardly differs, its rounding does


@dataclass(frozen=True)
class NoiseFloor:
    """What slopes measured with perturbations of size ``eps`` are worth."""

    eps: float
    noise: float  # standard deviation of the slopes' error
    signal: float  # root mean square of the slopes without it; 0 if there is nothing but noise

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal if self.signal else math.inf


def measure_noise(slopes: Callable[[float], Tensor], eps: float) -> NoiseFloor:
    r"""Compare slopes at ``eps`` with those at :math:`c \epsilon`, c = 1.25.

    A loss computed in few bits is a smooth function plus a rounding error that is new at each
    point. It adds an error of variance v to the slope at eps, v / c^2 to that at c eps, and
    hardly depends on the other:

    .. math:: v = \frac{\overline{(g(\epsilon) - g(c \epsilon))^2}}{1 + c^{-2}}, \quad
              s^2 = \overline{g(\epsilon)^2} - v

    What the loss bends between the two counts as noise as well.

    Args:
        slopes: The directional derivatives (n,) along the same n directions, for any eps.
        eps: In units of the weights.

    Example:
        >>> round(measure_noise(lambda eps: torch.tensor([1.0, 1 + 1e-3 / eps]), 1e-3).ratio, 2)
        0.09
    """
    here, beside = slopes(eps).double(), slopes(_NEIGHBOUR * eps).double()
    variance = (here - beside).square().mean().item() / (1 + _NEIGHBOUR**-2)
    signal = max(0.0, here.square().mean().item() - variance)
    return NoiseFloor(eps, math.sqrt(variance), math.sqrt(signal))


def choose_eps(
    slopes: Callable[[float], Tensor], ladder: Sequence[float] = LADDER
) -> tuple[NoiseFloor, list[NoiseFloor]]:
    """The smallest eps of a rising ``ladder`` whose noise is at most ``ALLOWED`` of its signal.

    Returns:
        The choice, of the least ratio where none is small enough, and all that were measured.
    """
    measured = []
    for eps in ladder:
        measured.append(measure_noise(slopes, eps))
        if measured[-1].ratio <= ALLOWED:
            break
    return min(measured, key=lambda floor: floor.ratio), measured


def evenly(timesteps: range, count: int) -> list[int]:
    """The middles of ``count`` equal parts.

    Example:
        >>> evenly(range(1000), 4)
        [125, 375, 625, 875]
    """
    return [timesteps[len(timesteps) * (2 * k + 1) // (2 * count)] for k in range(count)]
