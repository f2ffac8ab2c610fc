"""Reference of ``philox4x32``: the generator on int64 tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._philox import MASK32, philox4x32_10


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    columns = counter.view(torch.int32).long().bitwise_and(MASK32).unbind(-1)  # 4 of (n,)
    low, high = key.view(torch.int32).tolist()
    words = torch.stack(philox4x32_10(list(columns), (low & MASK32, high & MASK32)), dim=-1)
    return words.sub(words >> 31 << 32).to(torch.int32).view(torch.uint32)  # (n, 4)
