"""The C functions that ``add_noise_`` and ``write_noisy_`` share (csrc/include/sopt.h)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from ._arguments import Sum, check_finite, check_memory
from ._native import (
    DEVICE,
    ENUM,
    F32,
    HOST,
    I64,
    PTR,
    bind,
    current_stream,
    int64_array,
    pointer,
    tensor_table,
)
from ._noise import KINDS
from ._reference import write_sum

MAX_HOST_TERMS = 256  # SOPT_MAX_HOST_TERMS

_cpu = bind("cpu", "sopt_add_noise_cpu", PTR, I64, PTR, PTR, I64, ENUM, F32, PTR, I64, PTR)
_cuda_arguments = (PTR, I64, PTR, ENUM, PTR, ENUM, I64, ENUM, F32, PTR)
_cuda = bind("cuda", "sopt_add_noise_cuda", *_cuda_arguments)


def add_noise_cpu(out: list[Tensor], base: list[Tensor], terms: Sum) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    check_finite("coefficients", terms.coefficients)
    seeds, coefficients = terms.seeds.contiguous(), terms.coefficients.contiguous()
    rounding, cuts = terms.rounding_seeds, terms.round_after
    if rounding is not None:
        rounding = rounding.contiguous()
    _cpu(
        tensor_table(out, base, terms.streams),
        len(out),
        pointer(seeds),
        pointer(coefficients),
        len(seeds),
        KINDS.index(terms.kind),
        terms.decay,
        int64_array(cuts),
        len(cuts),
        None if rounding is None else pointer(rounding),
    )


def _body_with_roundings() -> Callable[[list[Tensor], list[Tensor], Sum], None]:
    if importlib.util.find_spec("triton") is None:
        return write_sum
    from ._triton_add_noise import add_noise

    return add_noise


_with_roundings = _body_with_roundings()


def add_noise_cuda(out: list[Tensor], base: list[Tensor], terms: Sum) -> None:
    """The same on the GPU, asynchronously: nothing here waits for it.

    A CUDA graph keeps the numbers that were on the host when it was captured, and reads those in
    device memory at each replay. As with any kernel, call once before a capture: the driver loads
    kernels at their first launch.
    """
    # The CUDA kernel rounds once, to nearest. What asks for more takes the Triton body, the
    # reference where there is no Triton: the same bits, so that no caller has to choose.
    if terms.round_after or terms.rounding_seeds is not None:
        _with_roundings(out, base, terms)
        return
    check_memory(out, base, coefficients=terms.coefficients)
    table = tensor_table(out, base, terms.streams)
    device = out[0].device
    with torch.cuda.device_of(out[0]):
        seeds, coefficients = (_reachable(x, device) for x in (terms.seeds, terms.coefficients))
        numbers = (*_array(seeds), *_array(coefficients), len(seeds))
        kind = KINDS.index(terms.kind)
        _cuda(table, len(out), *numbers, kind, terms.decay, current_stream())


def _reachable(x: Tensor, device: torch.device) -> Tensor:
    """What a launch can carry stays on the host. More is copied, and the copy is not waited for:
    the driver has read pageable memory when it returns."""
    many = x.device.type == "cpu" and len(x) > MAX_HOST_TERMS
    return (x.to(device, non_blocking=True) if many else x).contiguous()


def _array(x: Tensor) -> tuple[int, int]:
    return pointer(x), HOST if x.device.type == "cpu" else DEVICE
