"""Inputs that exercise the ops on lists of tensors, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._arguments import DTYPES
from ._noise import KINDS

SHAPES = [(0,), (), (3,), (128,), (2048,), (37, 65), (5003,)]  # empty, 0-D, tails, whole blocks


def noise_samples(device: str) -> Iterator[tuple]:
    """``(tensors, seeds, coefficients, streams, kind, decay)``: each dtype alone, then mixed."""
    for kind in KINDS:
        for dtype, terms, decay in zip(DTYPES, (1, 2, 2), (1.0, 0.99, 1.0), strict=True):
            yield _sample(device, kind, [(s, dtype) for s in SHAPES], terms, decay)
        mixed = [((257,), dtype) for dtype in DTYPES]
        yield _sample(device, kind, mixed, 3, 0.99)
        yield _sample(device, kind, mixed[:1], 0, 0.5)


def _sample(device: str, kind: str, shapes: list, terms: int, decay: float) -> tuple:
    tensors: list[Tensor] = [
        torch.linspace(-2, 2, torch.Size(shape).numel()).view(shape).to(device, dtype)
        for shape, dtype in shapes
    ]
    k = torch.arange(terms)
    seeds = k * 0x1234_5678_9ABC_DEF1 - 5  # both signs: all 64 bits are used
    coefficients = (0.3 - 0.01 * k).float()
    streams = [(-1) ** j * (j * 0x0F1E_2D3C_4B5A_6978 % 2**63) for j in range(len(tensors))]
    return tensors, seeds, coefficients, streams, kind, decay
