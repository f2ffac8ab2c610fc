"""Launchers of the C kernels of ``box_muller`` (csrc/include/sopt.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import I64, PTR, bind, current_stream, pointer

_cpu = bind("cpu", "sopt_box_muller_cpu", PTR, I64, PTR)
_cuda = bind("cuda", "sopt_box_muller_cuda", PTR, I64, PTR, PTR)


def box_muller_cpu(words: Tensor) -> Tensor:
    samples = torch.empty_like(words, dtype=torch.float32)
    _cpu(pointer(words), len(words) // 2, pointer(samples))
    return samples


def box_muller_cuda(words: Tensor) -> Tensor:
    samples = torch.empty_like(words, dtype=torch.float32)
    with torch.cuda.device_of(words):
        _cuda(pointer(words), len(words) // 2, pointer(samples), current_stream())
    return samples
