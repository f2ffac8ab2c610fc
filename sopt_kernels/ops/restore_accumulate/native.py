"""Launcher of the C kernel of ``restore_accumulate_`` (csrc/include/sopt.h)."""

from __future__ import annotations

from typing import Any

from ..._arguments import Restore, check_restore
from ..._native import ENUM, I64, PTR, bind, pointer, tensor_table
from ..._noise import KINDS

_cpu = bind("cpu", "sopt_restore_accumulate_cpu", PTR, PTR, I64, PTR, PTR, PTR, ENUM)


def restore_accumulate_cpu(*arguments: Any) -> None:
    terms = Restore(*arguments)
    check_restore(terms)
    tables = [tensor_table(x, x, terms.streams) for x in (terms.params, terms.grads)]
    scalars = map(pointer, (terms.seed, terms.restore_coefficient, terms.grad_coefficient))
    _cpu(*tables, len(terms.params), *scalars, KINDS.index(terms.kind))
