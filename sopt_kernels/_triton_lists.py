"""One launch over a list of tensors: a table of them on the device, searched by each program.

A program takes ELEMENTS consecutive elements of one tensor, which it finds by binary search. The
result of an op depends on neither ELEMENTS nor the grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1024  # per program, a multiple of 128; affects speed only
FIRST, NUMEL, STREAM, POINTERS = map(tl.constexpr, range(4))  # columns of the table, int64


@triton.jit
def locate(
    table_ptr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Of this program: the row of its tensor, the stream, and the first of its elements."""
    program = tl.program_id(0).to(tl.int64)
    low = program * 0  # the last row whose first program is <= this one
    high = low + ROWS
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        above = tl.load(table_ptr + middle * COLUMNS + FIRST) <= program
        low = tl.where(above, middle, low)
        high = tl.where(above, high, middle)
    row = table_ptr + low * COLUMNS
    first = (program - tl.load(row + FIRST)) * ELEMENTS
    return row, tl.load(row + STREAM), first


def launches(
    keys: Sequence[Hashable],
    numels: Sequence[int],
    streams: Sequence[int],
    *columns: Sequence[int],
    device: torch.device,
) -> Iterator[tuple]:
    """For each key: ``(key, table, grid, constants)`` of the launch over the tensors with it.

    ``columns`` follow in the table from POINTERS on. Tensors without elements are left out.
    """
    table = _tables(tuple(keys), tuple(numels), tuple(streams), *columns, device=device)
    for key, rows, programs in table:
        height, width = rows.shape
        constants = {"STEPS": height.bit_length(), "ROWS": height, "COLUMNS": width}
        yield key, rows, (programs,), {**constants, "ELEMENTS": ELEMENTS, "enable_fp_fusion": False}


@lru_cache(maxsize=64)  # a pure function of its arguments: an address that was reused is no harm
def _tables(
    keys: tuple[Hashable, ...], numels: tuple[int, ...], *columns: tuple, device: torch.device
) -> list[tuple[Hashable, Tensor, int]]:
    rows: dict[Hashable, list] = {}
    programs: dict[Hashable, int] = {}
    for key, numel, *rest in zip(keys, numels, *columns, strict=True):
        if numel:
            first = programs.get(key, 0)
            rows.setdefault(key, []).append((first, numel, *rest))
            programs[key] = first + triton.cdiv(numel, ELEMENTS)
    return [
        (key, torch.tensor(r, dtype=torch.int64, device=device), programs[key])
        for key, r in rows.items()
    ]


def on_device(device: torch.device, *terms: Tensor) -> tuple[Tensor, ...]:
    """``terms`` on ``device``, contiguous; copies from the CPU wait for nothing."""
    return tuple(x.to(device, non_blocking=True).contiguous() for x in terms)
