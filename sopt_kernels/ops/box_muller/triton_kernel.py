"""Triton kernel of ``box_muller``: one pair of words per lane."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._triton_noise import cosine_and_sine, radius

PAIRS = 128  # per program; affects speed only


@triton.jit
def _box_muller_kernel(words_ptr, samples_ptr, pairs, PAIRS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    w0 = tl.load(words_ptr + 2 * i, mask=i < pairs, other=0)
    w1 = tl.load(words_ptr + 2 * i + 1, mask=i < pairs, other=0)
    r = radius(w0)
    cosine, sine = cosine_and_sine(w1)
    tl.store(samples_ptr + 2 * i, r * cosine, mask=i < pairs)
    tl.store(samples_ptr + 2 * i + 1, r * sine, mask=i < pairs)


def box_muller(words: Tensor) -> Tensor:
    samples = torch.empty_like(words, dtype=torch.float32)
    pairs = len(words) // 2
    if pairs:
        with torch.cuda.device_of(words):
            grid = (triton.cdiv(pairs, PAIRS),)
            _box_muller_kernel[grid](words, samples, pairs, PAIRS=PAIRS, enable_fp_fusion=False)
    return samples
