"""Philox4x32-10 on int64 tensors: the reference for every counter-based op.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11; constants of Random123.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF


Words = TypeVar("Words", int, Tensor)


def philox4x32_10(counter: Sequence[Words], key: tuple[int, int]) -> list[Words]:
    """The four output words of ``counter``: whole numbers, or int64 tensors of uint32 values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wrap modulo 2**64: the bits are right
        c0, c1 = (p1 >> 32 & MASK32) ^ c1 ^ k0, p1 & MASK32
        c2, c3 = (p0 >> 32 & MASK32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = k0 + 0x9E3779B9 & MASK32, k1 + 0xBB67AE85 & MASK32
    return [c0, c1, c2, c3]


def philox_words(
    seed: int, stream: int, first_block: int, blocks: int, device: torch.device
) -> Tensor:
    """Words of the counter blocks ``first_block + [0, blocks)``, shape (blocks, 4), int64.

    Key (seed low, seed high), counter (block low, block high, stream low, stream high).
    """
    end = first_block + blocks
    block = torch.arange(first_block, end, dtype=torch.int64, device=device)  # (blocks,)
    low, high = (torch.full_like(block, part & MASK32) for part in (stream, stream >> 32))
    counter = [block & MASK32, block >> 32, low, high]
    key = (seed & MASK32, seed >> 32 & MASK32)
    return torch.stack(philox4x32_10(counter, key), dim=1)
