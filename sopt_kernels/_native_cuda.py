"""Numbers on their way to libsopt_cuda: those on the host go with the launch, others stay there.

So nothing waits for the GPU. A CUDA graph keeps the numbers that were on the host when it was
captured, and reads those in device memory at each replay. As with any kernel, call once before a
capture: the driver loads kernels at their first launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import Sum, check_memory
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

MAX_HOST_TERMS = 256  # SOPT_MAX_HOST_TERMS

_add_noise = bind(
    "cuda", "sopt_add_noise_cuda",
    PTR, I64, PTR, ENUM, PTR, ENUM, I64, ENUM, F32, PTR, I64, PTR, ENUM, PTR,
)  # fmt: skip


def reachable(device: torch.device, *arrays: Tensor) -> list[Tensor]:
    """``arrays``, of which what a launch cannot carry is copied to ``device``.

    The copy is not waited for: the driver has read pageable memory when it returns.
    """
    return [
        x.to(device, non_blocking=True).contiguous() if len(x) > MAX_HOST_TERMS else x.contiguous()
        for x in arrays
    ]


def addresses(*arrays: Tensor) -> list[int]:
    """Address and ``sopt_memory`` of each."""
    pairs = [(pointer(x), HOST if x.device.type == "cpu" else DEVICE) for x in arrays]
    return [number for pair in pairs for number in pair]


def add_noise_cuda(out: list[Tensor], base: list[Tensor], terms: Sum) -> None:
    """``out = round(decay * base + sum_k coefficients[k] z(seeds[k]))`` for each tensor."""
    check_memory(out, base, coefficients=terms.coefficients)
    cuts, rounding = terms.round_after, terms.rounding_seeds
    with torch.cuda.device_of(out[0]):
        numbers = reachable(out[0].device, terms.seeds, terms.coefficients)
        roundings = [] if rounding is None else [rounding.contiguous()]
        _add_noise(
            tensor_table(out, base, terms.streams),
            len(out),
            *addresses(*numbers),
            len(terms.seeds),
            KINDS.index(terms.kind),
            terms.decay,
            int64_array(cuts),
            len(cuts),
            *(addresses(*roundings) or (None, HOST)),
            current_stream(),
        )
