"""``box_muller``: the Gaussian samples of given words, which lets known answers reach the corners.

Of no use by itself: ``noise`` draws the words and makes the samples in one go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._philox import MASK32
from ..._registry import Op, register, triton_body
from .native import box_muller_cpu, box_muller_cuda
from .reference import box_muller as _reference


def _fake(words: Tensor) -> Tensor:
    return torch.empty_like(words, dtype=torch.float32)


def _samples(device):
    index = torch.arange(2 * 37, dtype=torch.int64, device="cpu")
    words = index * 0x9E3779B97F4A7C15 >> 7 & MASK32  # (2 pairs,)
    bits = words.sub(words >> 31 << 32).to(torch.int32).view(torch.uint32).to(device)
    for pairs in (0, 1, 16, 37):  # empty, a tail, a whole vector, both
        yield (bits[: 2 * pairs],)


register(
    Op(
        name="box_muller",
        schema="(Tensor words) -> Tensor",
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": box_muller_cpu, "cuda": box_muller_cuda},
        triton=triton_body(__name__, "box_muller"),
    )
)
