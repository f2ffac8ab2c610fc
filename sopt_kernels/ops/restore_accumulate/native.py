"""Launchers of the C kernels of ``restore_accumulate_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

import torch

from ..._arguments import Restore, check_restore
from ..._native import ENUM, I64, PTR, bind, current_stream, pointer, tensor_table
from ..._native_cuda import addresses
from ..._noise import KINDS

_cpu = bind("cpu", "sopt_restore_accumulate_cpu", PTR, PTR, I64, PTR, PTR, PTR, ENUM)
_cuda = bind(
    "cuda", "sopt_restore_accumulate_cuda",
    PTR, PTR, I64, PTR, ENUM, PTR, ENUM, PTR, ENUM, ENUM, PTR,
)  # fmt: skip


def restore_accumulate_cpu(*arguments: Any) -> None:
    terms = Restore(*arguments)
    check_restore(terms)
    tables = [tensor_table(x, x, terms.streams) for x in (terms.params, terms.grads)]
    scalars = map(pointer, (terms.seed, terms.restore_coefficient, terms.grad_coefficient))
    _cpu(*tables, len(terms.params), *scalars, KINDS.index(terms.kind))


def restore_accumulate_cuda(*arguments: Any) -> None:
    terms = Restore(*arguments)
    check_restore(terms)
    tables = [tensor_table(x, x, terms.streams) for x in (terms.params, terms.grads)]
    numbers = addresses(terms.seed, terms.restore_coefficient, terms.grad_coefficient)
    with torch.cuda.device_of(terms.params[0]):
        kind = KINDS.index(terms.kind)
        _cuda(*tables, len(terms.params), *numbers, kind, current_stream())
