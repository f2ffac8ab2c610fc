"""The C functions that ``add_noise_`` and ``write_noisy_`` share (csrc/include/sopt.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._native import DEVICE, ENUM, F32, HOST, I64, PTR, bind, current_stream, pointer, tensor_table
from ._noise import KINDS

MAX_HOST_TERMS = 256  # SOPT_MAX_HOST_TERMS

_cpu = bind("cpu", "sopt_add_noise_cpu", PTR, I64, PTR, PTR, I64, ENUM, F32)
_cuda_arguments = (PTR, I64, PTR, ENUM, PTR, ENUM, I64, ENUM, F32, PTR)
_cuda = bind("cuda", "sopt_add_noise_cuda", *_cuda_arguments)


def add_noise_cpu(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    table = tensor_table(out, base, streams)
    seeds, coefficients = seeds.contiguous(), coefficients.contiguous()
    terms = (pointer(seeds), pointer(coefficients), len(seeds))
    _cpu(table, len(out), *terms, KINDS.index(kind), decay)


def add_noise_cuda(
    out: list[Tensor],
    base: list[Tensor],
    seeds: Tensor,
    coefficients: Tensor,
    streams: list[int],
    kind: str,
    decay: float,
) -> None:
    """The same on the GPU, asynchronously: nothing here waits for it.

    A CUDA graph keeps the numbers that were on the host when it was captured, and reads those in
    device memory at each replay. As with any kernel, call once before a capture: the driver loads
    kernels at their first launch.
    """
    table = tensor_table(out, base, streams)
    with torch.cuda.device_of(out[0]):
        seeds, coefficients = (_reachable(x, out[0].device) for x in (seeds, coefficients))
        terms = (*_array(seeds), *_array(coefficients), len(seeds))
        _cuda(table, len(out), *terms, KINDS.index(kind), decay, current_stream())


def _reachable(x: Tensor, device: torch.device) -> Tensor:
    """What a launch can carry stays on the host. More is copied, and the copy is not waited for:
    the driver has read pageable memory when it returns."""
    many = x.device.type == "cpu" and len(x) > MAX_HOST_TERMS
    return (x.to(device, non_blocking=True) if many else x).contiguous()


def _array(x: Tensor) -> tuple[int, int]:
    return pointer(x), HOST if x.device.type == "cpu" else DEVICE
