"""int8 codes and their scales: what ``perturb_int8_`` and ``update_int8_`` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._arguments import (
    Coefficients,
    Seeds,
    Streams,
    check_finite,
    check_kind,
    check_memory,
    check_one,
    check_tensors,
    check_writable,
    seeds_of,
    stream_bits,
    tensors_of,
    terms_of,
)
from ._noise import fma, noise
from ._reference import pieces
from ._rounding import stochastic_integer, uniform

MOST_HEADROOM = 64


@dataclass(frozen=True)
class Perturbation:
    """The arguments of ``perturb_int8_`` as the dispatcher takes them."""

    codes: list[Tensor]
    scales: list[Tensor]
    seeds: Tensor
    coefficients: Tensor
    streams: list[int]
    kind: str
    headroom: int
    rounding_seed: Tensor


@dataclass(frozen=True)
class Update(Perturbation):
    """The arguments of ``update_int8_``: these, and three more."""

    delta_rounding_seeds: Tensor
    eps: Tensor
    clamped: Tensor


def perturbation_of(
    codes: Tensor | Sequence[Tensor],
    scales: Tensor | Sequence[Tensor],
    seeds: Seeds,
    coefficients: Coefficients,
    streams: Streams,
    kind: str,
    headroom: int,
    rounding_seed: Seeds,
) -> Perturbation:
    """What users pass to the ops on codes, checked, as the dispatcher takes it."""
    tensors, rows = tensors_of("codes", codes), tensors_of("scales", scales)
    check_codes(tensors, rows)
    check_headroom(headroom)
    check_kind(kind)
    bits = stream_bits(streams, len(tensors))
    device = tensors[0].device if tensors else torch.device("cpu")
    terms = terms_of(seeds, coefficients, device)
    rounding = seeds_of("rounding_seed", rounding_seed, device)
    check_one("rounding_seed", rounding)
    return Perturbation(tensors, rows, *terms, bits, kind, headroom, rounding)


def check_headroom(headroom: int) -> None:
    if isinstance(headroom, bool) or not isinstance(headroom, int):
        raise TypeError(f"headroom must be an integer, got {headroom!r}")
    if not 1 <= headroom <= MOST_HEADROOM:
        raise ValueError(f"headroom must be in [1, {MOST_HEADROOM}], got {headroom}")


def check_codes(codes: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    """Dtypes, layout, devices; and that the scales of each tensor divide it into equal rows."""
    check_tensors("codes", codes, dtypes=(torch.int8,))
    check_tensors("scales", scales, dtypes=(torch.float32,))
    check_writable("codes", codes)
    if len(codes) != len(scales):
        raise ValueError(f"codes and scales must be as many, got {len(codes)} and {len(scales)}")
    for k, (x, s) in enumerate(zip(codes, scales, strict=True)):
        if x.numel() and (s.numel() == 0 or x.numel() % s.numel()):
            raise ValueError(
                f"scales[{k}] must be one per row, a divisor of the {x.numel()} codes, "
                f"got {s.numel()}"
            )
        if x.device != s.device:
            raise ValueError(f"scales[{k}] must be on {x.device} as its codes, got {s.device}")


def check_code_memory(terms: Perturbation) -> None:
    """What every body checks before its first write: nothing is changed if this raises.

    Scales that lie on the CPU are positive and finite; on a GPU, looking would stall it.
    """
    check_memory(terms.codes, terms.scales, coefficients=terms.coefficients)
    if isinstance(terms, Update):
        check_finite("eps", terms.eps)
    for k, s in enumerate(terms.scales):
        if s.device.type == "cpu" and s.numel():
            low, high = (x.item() for x in torch.aminmax(s))
            if not (low > 0 and high <= torch.finfo(torch.float32).max):
                raise ValueError(
                    f"scales[{k}] must be positive and finite, got values from {low} to {high}"
                )


@dataclass(frozen=True)
class Piece:
    """Some consecutive codes of one tensor, for the reference."""

    codes: Tensor  # (n,), a view
    scales: Tensor  # (n,)
    where: tuple[int, int, int, torch.device]  # stream, begin, end, device

    def delta(
        self, terms: Sequence[tuple[int, float]], kind: str, headroom: int, rounding_seed: int
    ) -> Tensor:
        """What pairs of seed and coefficient move the codes by: float32 integers."""
        total = torch.zeros_like(self.scales)
        for seed, coefficient in terms:
            total = fma(noise(kind, seed, *self.where), coefficient, total)
        return stochastic_integer(total / self.scales, headroom, self.uniform(rounding_seed))

    def uniform(self, rounding_seed: int) -> Tensor:
        return uniform(rounding_seed, *self.where)


def pieces_of(terms: Perturbation) -> Iterator[Piece]:
    """All codes, piece by piece."""
    for x, scales, stream in zip(terms.codes, terms.scales, terms.streams, strict=True):
        for begin, end in pieces(x.numel()):
            index = torch.arange(begin, end, dtype=torch.int64, device=x.device)
            row = index // (x.numel() // scales.numel())
            where = (stream, begin, end, x.device)
            yield Piece(x.view(-1)[begin:end], scales.view(-1)[row], where)
