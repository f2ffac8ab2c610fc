"""The sum that ``add_noise_`` and ``write_noisy_`` share, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ._arguments import Sum, check_memory
from ._noise import fma, noise
from ._rounding import round_stochastically, uniform

_PIECE = 1 << 18  # elements at a time, a multiple of 128: bounds memory, changes no bit


def pieces(numel: int) -> Iterator[tuple[int, int]]:
    """Ranges ``(begin, end)`` of elements to compute at a time."""
    for begin in range(0, numel, _PIECE):
        yield begin, min(begin + _PIECE, numel)


def write_sum(out: list[Tensor], base: list[Tensor], sum_: Sum) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    check_memory(out, base, coefficients=sum_.coefficients)
    terms = list(zip(sum_.seeds.tolist(), sum_.coefficients.tolist(), strict=True))
    parts = [terms[a:b] for a, b in pairwise([0, *sum_.round_after, len(terms)])]
    decay = torch.tensor(sum_.decay, dtype=torch.float32, device="cpu")
    seeds = sum_.rounding_seeds
    roundings = [None] * len(parts) if seeds is None else seeds.tolist()
    for to, source, stream in zip(out, base, sum_.streams, strict=True):
        for begin, end in pieces(to.numel()):
            where, value = (stream, begin, end, to.device), source.view(-1)[begin:end]
            for part, rounding in zip(parts, roundings, strict=True):
                total = value.float() * decay
                for seed, coefficient in part:
                    total = fma(noise(sum_.kind, seed, *where), coefficient, total)
                if rounding is None:
                    value = total.to(to.dtype)
                else:
                    value = round_stochastically(total, to.dtype, uniform(rounding, *where))
            to.view(-1)[begin:end] = value
