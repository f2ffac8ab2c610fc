"""Triton kernel of ``philox4x32``: ``tl.philox``, one counter per lane."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128  # per program; affects speed only


@triton.jit
def _philox4x32_kernel(counter_ptr, key_ptr, words_ptr, n, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < n
    low = tl.load(key_ptr).to(tl.uint64)
    high = tl.load(key_ptr + 1).to(tl.uint64)
    c0 = tl.load(counter_ptr + 4 * row, mask=mask, other=0)
    c1 = tl.load(counter_ptr + 4 * row + 1, mask=mask, other=0)
    c2 = tl.load(counter_ptr + 4 * row + 2, mask=mask, other=0)
    c3 = tl.load(counter_ptr + 4 * row + 3, mask=mask, other=0)
    w0, w1, w2, w3 = tl.philox(low | (high << 32), c0, c1, c2, c3)
    tl.store(words_ptr + 4 * row, w0, mask=mask)
    tl.store(words_ptr + 4 * row + 1, w1, mask=mask)
    tl.store(words_ptr + 4 * row + 2, w2, mask=mask)
    tl.store(words_ptr + 4 * row + 3, w3, mask=mask)


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    words = torch.empty_like(counter)
    n = len(counter)
    if n:
        with torch.cuda.device_of(counter):
            key = key.to(counter.device)
            _philox4x32_kernel[(triton.cdiv(n, ROWS),)](counter, key, words, n, ROWS=ROWS)
    return words
