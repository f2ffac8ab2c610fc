"""Launchers of the C kernels of ``philox4x32`` (csrc/include/sopt.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import I64, PTR, bind, current_stream, pointer

_cpu = bind("cpu", "sopt_philox4x32_10_cpu", PTR, I64, PTR, PTR)
_cuda = bind("cuda", "sopt_philox4x32_10_cuda", PTR, I64, PTR, PTR, PTR)


def philox4x32_cpu(counter: Tensor, key: Tensor) -> Tensor:
    words = torch.empty_like(counter)
    _cpu(pointer(counter), len(counter), pointer(key), pointer(words))
    return words


def philox4x32_cuda(counter: Tensor, key: Tensor) -> Tensor:
    words = torch.empty_like(counter)
    key = key.cpu()  # a launch carries it
    with torch.cuda.device_of(counter):
        arguments = (pointer(counter), len(counter), pointer(key), pointer(words))
        _cuda(*arguments, current_stream())
    return words
