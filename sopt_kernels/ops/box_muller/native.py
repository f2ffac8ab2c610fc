"""Launcher of the C kernel of ``box_muller`` (csrc/include/sopt.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import I64, PTR, bind, pointer

_cpu = bind("cpu", "sopt_box_muller_cpu", PTR, I64, PTR)


def box_muller_cpu(words: Tensor) -> Tensor:
    samples = torch.empty_like(words, dtype=torch.float32)
    _cpu(pointer(words), len(words) // 2, pointer(samples))
    return samples
