"""Launcher of the C kernel of ``philox4x32`` (csrc/include/sopt.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import I64, PTR, bind, pointer

_cpu = bind("cpu", "sopt_philox4x32_10_cpu", PTR, I64, PTR, PTR)


def philox4x32_cpu(counter: Tensor, key: Tensor) -> Tensor:
    words = torch.empty_like(counter)
    _cpu(pointer(counter), len(counter), pointer(key), pointer(words))
    return words
