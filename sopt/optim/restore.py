"""Where perturbed weights are, and how the trained ones come back: the values of ``restore=``.

Each class holds some tensors of one parameter group. ``move`` takes the weights to
``base + c z(seed)`` from wherever they are, ``home`` back to the base, ``update`` to the next base.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from sopt_kernels import (
    add_noise_,
    clamp_codes_,
    perturb_int8_,
    stream_id,
    update_int8_,
    write_noisy_,
)

from ..errors import InputError
from .tensors import place

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
        self._at = seed, coefficient
        seeds, coefficients = zip(*terms, strict=True)
        add_noise_(self._list, seeds, coefficients, **self._noise)

    def home(self) -> None:
        if self._at is not None:
            (seed, coefficient), self._at = self._at, None
            add_noise_(self._list, seed, -coefficient, **self._noise)

    def update(self, terms: Terms) -> None:
        if self._at is not None:  # the way home is part of the update
            (seed, coefficient), self._at = self._at, None
            last = terms.seeds.index(seed)
            together = list(terms.coefficients)
            together[last] -= coefficient * terms.decay
            terms = replace(terms, coefficients=together)
        add_noise_(self._list, **self._sum(terms))


class BlockWeights(Weights):
    """``restore="blocks"``: a module computes with perturbed weights of its own, then drops them.

    A block is a module that owns trained parameters directly. While it computes, its parameters
    are scratch that ``write_noisy_`` filled; the base is never written.
    """

    def __init__(
        self,
        group: int,
        tensors: Mapping[str, Tensor],
        noise: str,
        rounding: str,
        module: nn.Module,
    ) -> None:
        super().__init__(group, tensors, noise, rounding)
        self._at: tuple[int, float] | None = None
        self._base: dict[Tensor, Tensor] = {}  # of the parameters that are scratch now
        self._calls: list[list[Tensor]] = []  # those of each call of a block that goes on
        self._scratch: Tensor | None = None  # bytes, as many as the largest block has
        self._largest = 0
        self._blocks: set[str] = set()
        self._used: set[str] = set()
        streams = dict(zip(map(place, self._list), self._streams, strict=True))
        for name, block in module.named_modules():
            own = {p: streams[place(p)] for p in block.parameters(False) if place(p) in streams}
            if own:
                self._register(name, block, own)
        owned = {place(p) for p in module.parameters()}
        for name, tensor in tensors.items():
            if place(tensor) not in owned:
                raise InputError(
                    f"module must own every trained parameter where restore='blocks', not {name!r}"
                )

    def _register(self, name: str, block: nn.Module, own: Mapping[Tensor, int]) -> None:
        def perturb(*_: Any) -> None:
            if self._at is None:
                return
            self._used.add(name)
            params = [p for p in own if p not in self._base]  # another block may have it too
            base = [p.data for p in params]
            scratch = self._scratch_like(base)
            streams = [own[p] for p in params]
            write_noisy_(scratch, base, *self._at, streams=streams, kind=self._noise["kind"])
            for p, x, perturbed in zip(params, base, scratch, strict=True):
                self._base[p], p.data = x, perturbed
            self._calls.append(params)

        def restore(*_: Any) -> None:
            for p in self._calls.pop() if self._calls else ():
                p.data = self._base.pop(p)

        self._blocks.add(name)
        self._largest = max(self._largest, sum(map(_aligned_bytes, own)))
        block.register_forward_pre_hook(perturb)
        block.register_forward_hook(restore, always_call=True)  # a closure may go on after an error

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        self._at = seed, coefficient
        self._used.clear()

    def home(self) -> None:
        self._at = None
        self._calls.clear()
        for p, x in self._base.items():  # torch calls no hook after a Ctrl-C
            p.data = x
        self._base.clear()

    def update(self, terms: Terms) -> None:
        self.home()
        add_noise_(self._list, **self._sum(terms))

    def _scratch_like(self, base: Sequence[Tensor]) -> list[Tensor]:
        """Memory for perturbed weights: kept, as new pages cost more than the noise in them."""
        if self._base:  # in use, by a block around this one
            return [torch.empty_like(x) for x in base]
        if self._scratch is None:
            device = self._list[0].device
            self._scratch = torch.empty(self._largest, dtype=torch.uint8, device=device)
        offsets = [0, *accumulate(map(_aligned_bytes, base))]
        return [
            self._scratch[start : start + x.nbytes].view(x.dtype).view(x.shape)
            for start, x in zip(offsets, base, strict=False)
        ]

    def check_evaluated(self) -> None:
        if self._at is not None and (unused := sorted(self._blocks - self._used)):
            raise InputError(
                f"restore='blocks' needs each block's forward to be called, but {unused[0]!r} was "
                "not: leave its parameters out, or use restore='copy'"
            )


def _aligned_bytes(x: Tensor) -> int:
    return -(-x.nbytes // 64) * 64  # of a cache line


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
        self.home()
        self._perturb(seed, coefficient, rounding_seed)
        self._at = seed, coefficient, rounding_seed

    def home(self) -> None:
        if self._at is not None:
            (seed, coefficient, rounding_seed), self._at = self._at, None
            self._perturb(seed, -coefficient, rounding_seed)

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
