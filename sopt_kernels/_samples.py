"""Inputs that exercise the ops on lists of tensors, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._arguments import DTYPES
from ._noise import KINDS

SHAPES = [(0,), (), (3,), (128,), (2048,), (37, 65), (5003,)]  # empty, 0-D, tails, whole blocks


def noise_samples(device: str) -> Iterator[tuple]:
    """The tensors and what follows them: each dtype alone, then mixed, then rounded at random."""
    for kind in KINDS:
        for dtype, terms, decay in zip(DTYPES, (1, 2, 2), (1.0, 0.99, 1.0), strict=True):
            yield _sample(device, kind, [(s, dtype) for s in SHAPES], terms, decay)
        mixed = [((257,), dtype) for dtype in DTYPES]
        yield _sample(device, kind, mixed, 3, 0.99)
        yield _sample(device, kind, mixed[:1], 0, 0.5)
        yield _sample(device, kind, mixed, 3, 0.99, round_after=[1])
        yield _sample(device, kind, mixed, 12, 0.99, [1, 11], seeds_sample(-1, 2**40, 3))
        yield _sample(device, kind, mixed, 0, 0.77, [], seeds_sample(4))


def _sample(
    device: str,
    kind: str,
    shapes: list,
    terms: int,
    decay: float,
    round_after: list[int] | None = None,
    rounding_seeds: Tensor | None = None,
) -> tuple:
    tensors: list[Tensor] = [
        ramp(-2, 2, torch.Size(shape).numel()).view(shape).to(device, dtype)
        for shape, dtype in shapes
    ]
    seeds, coefficients = terms_sample(terms)
    streams = streams_sample(len(tensors))
    rounding = (round_after or [], rounding_seeds)
    return tensors, seeds, coefficients, streams, kind, decay, *rounding


def terms_sample(terms: int) -> tuple[Tensor, Tensor]:
    """Seeds of both signs, so that all 64 bits are used, and coefficients."""
    k = torch.arange(terms, dtype=torch.int64, device="cpu")
    return k * 0x1234_5678_9ABC_DEF1 - 5, 0.3 - 0.01 * k.float()


def seeds_sample(*seeds: int) -> Tensor:
    return torch.tensor(seeds, dtype=torch.int64, device="cpu")


def ramp(first: float, last: float, count: int) -> Tensor:
    """So many float32 numbers at equal distances."""
    return torch.linspace(first, last, count, dtype=torch.float32, device="cpu")


def codes_sample(shape: Sequence[int]) -> Tensor:
    """Whole numbers of [-127, 127], int64."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64, device="cpu")
    return (index * 37 % 255 - 127).view(shape)


def streams_sample(count: int) -> list[int]:
    return [(-1) ** j * (j * 0x0F1E_2D3C_4B5A_6978 % 2**63) for j in range(count)]


def code_samples(device: str) -> Iterator[tuple]:
    """``(codes, scales, streams, kind, headroom, terms)``: one row, many rows, rows of one code."""
    shapes = [((0,), 1), ((), 1), ((3,), 3), ((37, 65), 37), ((5003,), 1), ((24, 3, 9), 24)]
    for kind in KINDS:
        for headroom, terms in ((1, 1), (8, 2), (64, 1), (16, 0)):
            codes = [codes_sample(shape) for shape, _ in shapes]
            scales = [ramp(0.02, 0.9, rows) for _, rows in shapes]
            yield (
                [x.to(device, torch.int8) for x in codes],
                [x.to(device) for x in scales],
                streams_sample(len(shapes)),
                kind,
                headroom,
                terms,
            )
