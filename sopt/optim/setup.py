"""The settings of a run that no parameter group has for itself, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..checks import integer
from ..errors import InputError, nearest
from ..steps.seeds import Tag, seed64
from .distributed import Exchange
from .restore import Terms
from .seed_log import MOST_PERTURBATIONS, Update
from .tensors import canonical_name

RESTORES = ("copy", "inplace", "blocks")
ESTIMATORS = ("two-sided", "one-sided")
NOISES = ("gaussian", "rademacher")
ROUNDINGS = ("nearest", "stochastic")
MOST_HEADROOM = 64  # of sopt_kernels.perturb_int8_


@dataclass(frozen=True)
class Setup:
    """Arguments of :class:`~sopt.optim.ZOSGD`, with their meaning there."""

    num_perturbations: int = 1
    noise: str = "gaussian"
    seed: int = 0
    restore: str = "copy"
    estimator: str = "two-sided"
    rounding: str = "nearest"
    module: nn.Module | None = None
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    headroom: int = 8
    log: str | Path | None = None
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        _check_choice("noise", self.noise, NOISES)
        _check_choice("restore", self.restore, RESTORES)
        _check_choice("estimator", self.estimator, ESTIMATORS)
        _check_choice("rounding", self.rounding, ROUNDINGS)
        if not 1 <= self.num_perturbations < MOST_PERTURBATIONS:
            raise InputError(
                f"num_perturbations must be in [1, {MOST_PERTURBATIONS - 1}], "
                f"got {self.num_perturbations}"
            )
        self.indices()  # of which each process needs one
        integer("headroom", self.headroom, 1, MOST_HEADROOM + 1)
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed must be in [0, 2**64), got {self.seed}")
        if (self.restore == "blocks") != (self.module is not None):
            raise InputError(
                "module must be given with restore='blocks' and not without, "
                f"got restore={self.restore!r}, module={type(self.module).__name__}"
            )
        scales = {canonical_name(name): x for name, x in self.scales.items()}
        object.__setattr__(self, "scales", scales)

    @property
    def sides(self) -> int:
        return 2 if self.estimator == "two-sided" else 1

    def direction(self, step: int, n: int) -> tuple[int, int]:
        """Seeds of perturbation n's noise and, for codes, of its rounding."""
        return seed64(self.seed, step, n, Tag.DIRECTION), self.rounding_seed(step, n + 1)

    def rounding_seed(self, step: int, which: int = 0) -> int:
        """That of perturbation n is 1 + n; 0 is the update's."""
        return seed64(self.seed, step, which, Tag.ROUNDING)

    def terms(self, updates: Sequence[Update], group: int) -> Terms:
        """Consecutive updates of a group under the same settings as one sum."""
        settings = updates[0].settings[group]
        counts = [len(update.indices) for update in updates]
        directions = [self.direction(u.step, n) for u in updates for n in u.indices]
        return Terms(
            seeds=[seed for seed, _ in directions],
            coefficients=[c[group] for update in updates for c in update.coefficients],
            decay=settings.decay,
            round_after=[sum(counts[: k + 1]) for k in range(len(counts) - 1)],
            rounding_seeds=[self.rounding_seed(u.step) for u in updates],
            eps=settings.eps,
            delta_rounding_seeds=[rounding_seed for _, rounding_seed in directions],
        )

    def indices(self) -> range:
        """The perturbations that this process evaluates."""
        if self.exchange is None:
            return range(self.num_perturbations)
        return self.exchange.indices(self.num_perturbations)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {known}, got {value!r}: {nearest(value, known)}")
