"""The mean of what a run trained over its last steps, which may be better than the last of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import checks
from .errors import InputError

if TYPE_CHECKING:  # settings are read without PyTorch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """Which steps the result is the mean of."""

    average: float = field(
        default=0.0,
        metadata={
            "help": "the result is the mean over the last steps, this share of all of them, in "
            "[0, 1]; 0: that of the last step alone"
        },
    )


def check_average(settings: Mapping[str, Any]) -> None:
    """Raise InputError if what is trained has no mean."""
    train = settings.get("train", "lora")
    if settings.get("average", 0.0) and train not in ("lora", "token"):
        raise InputError(
            f"average={settings['average']:g} does not go with train={train!r}: only an adapter or "
            "a token is averaged"
        )


class TailAverage:
    r"""The mean of weights over the last steps of a run.

    .. math:: \bar w = \frac{1}{T - f + 1} \sum_{i=f}^{T} w_i,
        \qquad f = T - \max(1, \mathrm{round}(s T)) + 1

    for steps 1 to T, weights :math:`w_i` after step i and the share s. A running mean: memory is
    one copy of the weights, in their dtype.

    Source:
        Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, 1992; of the
        last part only: Jain et al., arXiv 1610.03774.

    Example:
        >>> weight = torch.tensor([1.0])
        >>> average = TailAverage({"w": weight}, steps=4, share=0.5)
        >>> for step in range(1, 5):
        ...     average.add(step, {"w": weight.fill_(step)})
        >>> average.means["w"]
        tensor([3.5000])
    """

    def __init__(self, weights: Mapping[str, Tensor], steps: int, share: float) -> None:
        self._first = steps - max(1, round(share * steps)) + 1
        self.means = {name: weight.detach().clone().zero_() for name, weight in weights.items()}

    def add(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Count the weights after a step; steps come in order, each once."""
        if step < self._first:
            return
        for name, mean in self.means.items():
            mean.lerp_(weights[name].detach(), 1 / (step - self._first + 1))

    def load(self, means: Mapping[str, Tensor]) -> None:
        """Go on from the means of before."""
        for name, mean in self.means.items():
            mean.copy_(means[name])


def _share(value: Any) -> float:
    share = checks.number("average", value)
    if not 0 <= share <= 1:
        raise InputError(f"average must be in [0, 1], got {value!r}")
    return share


RULES: dict[str, Callable[[Any], Any]] = {"average": _share}
