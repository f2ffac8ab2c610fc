"""Where perturbed weights are, and how the trained ones come back: the values of ``restore=``.

Each class holds some tensors of one parameter group. ``move`` takes the weights to
``base + c z(seed)`` from wherever they are, ``home`` back to the base, ``update`` to the next base.
``restore="blocks"`` has a file of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sopt_kernels import (
    add_noise_,
    clamp_codes_,
    perturb_int8_,
    stream_id,
    update_int8_,
    write_noisy_,
)

from .interrupts import uninterrupted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """A change ``base <- decay base + sum_k coefficients[k] z(seeds[k])``, perhaps of many steps.

    ``round_after`` and ``rounding_seeds`` are those of :func:`~sopt_kernels.add_noise_`; codes
    need ``eps`` and ``delta_rounding_seeds``, those of the perturbations along the seeds.
    """

    seeds: list[int]
    coefficients: list[float]
    decay: float
    round_after: list[int]
    rounding_seeds: list[int]
    eps: float
    delta_rounding_seeds: list[int]


class Weights(ABC):
    """Tensors of one group on one device, and the noise that moves them."""

    def __init__(
        self, group: int, tensors: Mapping[str, Tensor], noise: str, rounding: str
    ) -> None:
        self.group = group
        self.tensors = dict(tensors)
        self._list = list(tensors.values())
        self._streams = list(map(stream_id, tensors))
        self._noise: dict[str, Any] = {"streams": self._streams, "kind": noise}
        self._rounding = rounding

    def _sum(self, terms: Terms) -> dict[str, Any]:
        """The arguments of ``add_noise_`` and ``write_noisy_`` for an update."""
        stochastic = self._rounding == "stochastic"
        return {
            "seeds": terms.seeds,
            "coefficients": terms.coefficients,
            "decay": terms.decay,
            "round_after": terms.round_after,
            "rounding": self._rounding,
            "rounding_seed": terms.rounding_seeds if stochastic else None,
            **self._noise,
        }

    @abstractmethod
    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None: ...

    @abstractmethod
    def home(self) -> None: ...

    @abstractmethod
    def update(self, terms: Terms) -> None:
        """From the base, or from where ``move`` left the weights."""

    def check_evaluated(self) -> None:  # noqa: B027  most have nothing to check
        """InputError where a forward pass did not use the perturbed weights."""


class CopiedWeights(Weights):
    """``restore="copy"``: the base is kept beside, perturbed weights are written from it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._base: list[Tensor] = []
        self._moved = False

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        if not self._moved:
            if not self._base:
                self._base = [torch.empty_like(x) for x in self._list]
            torch._foreach_copy_(self._base, self._list)
            self._moved = True
        write_noisy_(self._list, self._base, seed, coefficient, **self._noise)

    def home(self) -> None:
        if self._moved:
            torch._foreach_copy_(self._list, self._base)
            self._moved = False

    def update(self, terms: Terms) -> None:
        if self._moved:  # the way home and the update are one pass
            write_noisy_(self._list, self._base, **self._sum(terms))
            self._moved = False
        else:
            add_noise_(self._list, **self._sum(terms))


class InPlaceWeights(Weights):
    """``restore="inplace"``: noise is added and taken off again, with a rounding each time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._at: tuple[int, float] | None = None  # seed and coefficient
        coarse = [name for name, x in self.tensors.items() if x.dtype != torch.float32]
        if coarse:
            logger.warning(
                "restore='inplace' drifts in 16 bits: each step rounds %s and %d others several "
                "times (sopt.optim.precision_report says how much); 'blocks' is exact",
                coarse[0],
                len(coarse) - 1,
            )

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        if self._at is None:
            terms = [(seed, coefficient)]
        elif self._at[0] == seed:
            terms = [(seed, coefficient - self._at[1])]
        else:
            terms = [(self._at[0], -self._at[1]), (seed, coefficient)]
        seeds, coefficients = zip(*terms, strict=True)
        with uninterrupted():
            add_noise_(self._list, seeds, coefficients, **self._noise)
            self._at = seed, coefficient

    def home(self) -> None:  # uninterrupted(): the optimizer's way home, or its update
        if self._at is not None:
            seed, coefficient = self._at
            add_noise_(self._list, seed, -coefficient, **self._noise)
            self._at = None

    def update(self, terms: Terms) -> None:
        if self._at is not None:  # the way home is part of the update
            seed, coefficient = self._at
            last = terms.seeds.index(seed)
            together = list(terms.coefficients)
            together[last] -= coefficient * terms.decay
            terms = replace(terms, coefficients=together)
        add_noise_(self._list, **self._sum(terms))
        self._at = None  # not sooner: the kernel may find no memory


class Codes(Weights):
    """int8 codes, under every ``restore``: moved in place by whole numbers and taken back."""

    def __init__(
        self,
        group: int,
        tensors: Mapping[str, Tensor],
        noise: str,
        rounding: str,
        scales: Mapping[str, Tensor],
        headroom: int,
    ) -> None:
        super().__init__(group, tensors, noise, rounding)
        self._scales = [scales[name] for name in tensors]
        self._headroom = headroom
        self._at: tuple[int, float, int] | None = None
        self.clamped = clamp_codes_(self._list, headroom)  # codes that met the limit, ever

    def _perturb(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        perturb_int8_(
            self._list,
            self._scales,
            seed,
            coefficient,
            self._headroom,
            rounding_seed=rounding_seed,
            **self._noise,
        )

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        with uninterrupted():
            self.home()
            self._perturb(seed, coefficient, rounding_seed)
            self._at = seed, coefficient, rounding_seed

    def home(self) -> None:
        with uninterrupted():
            if self._at is not None:
                seed, coefficient, rounding_seed = self._at
                self._perturb(seed, -coefficient, rounding_seed)
                self._at = None

    def update(self, terms: Terms) -> None:
        self.home()
        self.clamped += update_int8_(
            self._list,
            self._scales,
            terms.seeds,
            torch.tensor(terms.coefficients, dtype=torch.float32, device="cpu") / terms.eps,
            self._headroom,
            eps=terms.eps,
            delta_rounding_seeds=terms.delta_rounding_seeds,
            rounding_seed=terms.rounding_seeds[0],
            **self._noise,
        )
