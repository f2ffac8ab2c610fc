"""What the Triton kernels of ``perturb_int8_`` and ``update_int8_`` share."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._codes import Perturbation, check_code_memory
from ._native import pointer
from ._triton_lists import NUMEL, POINTERS, launches, on_device
from ._triton_noise import element_words
from ._triton_rounding import stochastic_integer


@triton.jit
def load_codes(row, i):
    """Of the elements i of a tensor: where the codes lie, the mask, codes and scales as float32."""
    mask = i < tl.load(row + NUMEL)
    codes_ptr = tl.load(row + POINTERS).to(tl.pointer_type(tl.int8)) + i
    scales_ptr = tl.load(row + POINTERS + 1).to(tl.pointer_type(tl.float32))
    codes = tl.load(codes_ptr, mask=mask, other=0).to(tl.float32)
    length = tl.load(row + POINTERS + 2)  # of a row of codes
    scales = tl.load(scales_ptr + i // length, mask=mask, other=1.0)
    return codes_ptr, mask, codes, scales


@triton.jit
def code_delta(total, scales, headroom, seed, stream, first, ELEMENTS: tl.constexpr):
    """The whole number that a code moves by, as float32."""
    words = element_words(seed, stream, first, ELEMENTS)
    return stochastic_integer(tl.div_rn(total, scales), tl.cast(headroom, tl.float32), words)


def launch_on_codes(kernel: Any, terms: Perturbation, *numbers: Tensor) -> None:
    """One launch of a kernel that takes the table, ``numbers``, how many seeds, and head-room."""
    check_code_memory(terms)
    device = terms.codes[0].device
    pairs = zip(terms.codes, terms.scales, strict=True)
    lists = launches(
        ["int8"] * len(terms.codes),
        [x.numel() for x in terms.codes],
        terms.streams,
        tuple(map(pointer, terms.codes)),
        tuple(map(pointer, terms.scales)),
        tuple(x.numel() // max(s.numel(), 1) for x, s in pairs),
        device=device,
    )
    with torch.cuda.device_of(terms.codes[0]):
        for _, table, grid, constants in lists:
            kernel[grid](
                table,
                *on_device(device, *numbers),
                len(terms.seeds),
                terms.headroom,
                GAUSSIAN=terms.kind == "gaussian",
                **constants,
            )
