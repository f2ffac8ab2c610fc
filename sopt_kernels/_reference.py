"""The sum that ``add_noise_`` and ``write_noisy_`` share, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._noise import fma, noise

_PIECE = 1 << 18  # elements at a time, a multiple of 128: bounds memory, changes no bit


def write_sum(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    terms = list(zip(seeds.tolist(), coefficients.tolist(), strict=True))
    for to, source, stream in zip(out, base, streams, strict=True):
        to_flat, source_flat = to.view(-1), source.view(-1)
        for begin in range(0, to.numel(), _PIECE):
            end = min(begin + _PIECE, to.numel())
            total = source_flat[begin:end].float() * torch.tensor(decay, dtype=torch.float32)
            for seed, coefficient in terms:
                z = noise(kind, seed, stream, begin, end, to.device)
                total = fma(z, coefficient, total)
            to_flat[begin:end] = total.to(to.dtype)
