"""Reference of ``box_muller``: words (2 n,) uint32 to samples (2 n,) float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._noise import gaussian
from ..._philox import MASK32


def box_muller(words: Tensor) -> Tensor:
    return gaussian(words.view(torch.int32).long().bitwise_and(MASK32))
