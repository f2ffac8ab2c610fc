"""Arguments of the ops on lists of tensors: from what users pass to what the dispatcher takes.

Meaning is checked here, before the op is called, also while a graph is traced. What needs memory
that is really there (:func:`check_memory`) is checked by the bodies, before they write anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ._noise import KINDS
from ._streams import int64_bits, stream_id

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Streams = int | str | Sequence[int | str]


def tensors_of(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """``value`` as a list; TypeError if it holds anything but tensors."""
    tensors = [value] if isinstance(value, Tensor) else list(value)
    for k, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor, got {type(x).__name__}")
    return tensors


def check_tensors(name: str, tensors: Sequence[Tensor]) -> None:
    """Dtype, layout and device of a list, as every op on lists requires them."""
    for k, x in enumerate(tensors):
        if x.dtype not in DTYPES:
            raise TypeError(f"{name}[{k}] must be float32, bfloat16 or float16, got {x.dtype}")
        if not x.is_contiguous():
            raise ValueError(
                f"{name}[{k}] must be contiguous, got shape {tuple(x.shape)}, strides {x.stride()}"
            )
        if x.device != tensors[0].device:
            raise ValueError(
                f"{name} must be on one device, got {tensors[0].device} and {x.device}"
            )


def check_writable(name: str, tensors: Sequence[Tensor]) -> None:
    """RuntimeError where autograd would have to record the write."""
    if torch.is_grad_enabled():
        for k, x in enumerate(tensors):
            if x.requires_grad:
                raise RuntimeError(f"{name}[{k}] requires grad: call this under torch.no_grad()")


def _list_of(value: object) -> list:
    """``value`` as a list; one that is no sequence, or a string, stands for a list of one."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def check_decay(decay: float) -> None:
    if not abs(decay) <= torch.finfo(torch.float32).max:
        raise ValueError(f"decay must be a finite float32, got {decay}")


def stream_bits(streams: Streams, count: int) -> list[int]:
    """One int64 per tensor from ids or names; a single one stands for a list of one."""
    values = _list_of(streams)
    if len(values) != count:
        raise ValueError(f"streams must be one per tensor ({count}), got {len(values)}")
    return [int64_bits("streams", stream_id(v) if isinstance(v, str) else v) for v in values]


def terms_of(
    seeds: int | Sequence[int] | Tensor,
    coefficients: float | Sequence[float] | Tensor,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """K seeds and K coefficients as int64 and float32 tensors of shape (K,).

    Tensors pass as they are, so that values on a device stay there; numbers become CPU tensors.
    """
    if isinstance(seeds, Tensor):
        if seeds.dtype != torch.int64:
            raise TypeError(f"seeds must be an int64 tensor or integers, got {seeds.dtype}")
    else:
        bits = [int64_bits("seeds", s) for s in _list_of(seeds)]
        seeds = torch.tensor(bits, dtype=torch.int64)
    if isinstance(coefficients, Tensor):
        if coefficients.dtype != torch.float32:
            raise TypeError(
                f"coefficients must be a float32 tensor or floats, got {coefficients.dtype}"
            )
        coefficients = coefficients.detach()
    else:
        coefficients = torch.tensor(_list_of(coefficients), dtype=torch.float32)
    for name, x in (("seeds", seeds), ("coefficients", coefficients)):
        if x.dim() > 1:
            raise ValueError(f"{name} must have at most one dimension, got shape {tuple(x.shape)}")
        if x.device.type != "cpu" and x.device != device:
            raise ValueError(f"{name} must be on the CPU or on {device}, got {x.device}")
    seeds, coefficients = seeds.reshape(-1), coefficients.reshape(-1)
    if len(seeds) != len(coefficients):
        raise ValueError(
            f"seeds and coefficients must be as many, got {len(seeds)} and {len(coefficients)}"
        )
    return seeds, coefficients


def check_memory(out: Sequence[Tensor], base: Sequence[Tensor], coefficients: Tensor) -> None:
    """What every body checks before its first write: nothing is changed if this raises.

    No tensor of ``out`` may share memory with another, nor with one of ``base`` unless it is the
    same one; coefficients that lie on the CPU are finite (on a GPU, looking would stall it).
    """
    if coefficients.device.type == "cpu":
        for value in coefficients.tolist():
            if not math.isfinite(value):
                raise ValueError(f"coefficients must be finite float32 values, got {value}")
    ranges = tuple((x.data_ptr(), x.nbytes) for x in out if x.numel())
    if base is not out:
        ranges += tuple((x.data_ptr(), -x.nbytes) for x in base if x.numel())
    _check_disjoint(ranges)


@lru_cache(maxsize=64)  # a pure function of addresses, as in _native.tensor_table
def _check_disjoint(ranges: tuple[tuple[int, int], ...]) -> None:
    """Ranges (address, bytes); those only read have their size negated and may overlap."""
    end = read_end = 0
    for start, size in sorted(ranges):
        written = size > 0
        if start < end or (written and start < read_end):
            raise ValueError(
                f"tensors must not overlap in memory, got two that share address {start:#x}"
            )
        if written:
            end = max(end, start + size)
        else:
            read_end = max(read_end, start - size)
