"""The C function that ``add_noise_`` and ``write_noisy_`` share (csrc/include/sopt.h)."""

from __future__ import annotations

from torch import Tensor

from ._native import ENUM, F32, I64, PTR, bind, pointer, tensor_table
from ._noise import KINDS

_cpu = bind("cpu", "sopt_add_noise_cpu", PTR, I64, PTR, PTR, I64, ENUM, F32)


def add_noise_cpu(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    table = tensor_table(out, base, streams)
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    terms = (pointer(seeds), pointer(coefficients), len(seeds))
    _cpu(table, len(out), *terms, KINDS.index(kind), decay)
