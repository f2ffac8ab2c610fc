"""Arguments of the ops on lists of tensors: from what users pass to what the dispatcher takes.

Meaning is checked here, before the op is called, also while a graph is traced. What needs memory
that is really there (:func:`check_memory`) is checked by the bodies, before they write anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ._noise import KINDS
from ._rounding import ROUNDINGS
from ._streams import int64_bits, stream_id

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Streams = int | str | Sequence[int | str]
Seeds = int | Sequence[int] | Tensor
Coefficients = float | Sequence[float] | Tensor


class Sum(NamedTuple):
    """What the dispatcher takes after the tensors of ``add_noise_`` and ``write_noisy_``."""

    seeds: Tensor
    coefficients: Tensor
    streams: list[int]
    kind: str
    decay: float = 1.0
    round_after: Sequence[int] = ()
    rounding_seeds: Tensor | None = None  # None: to nearest


class Restore(NamedTuple):
    """The arguments of ``restore_accumulate_`` as the dispatcher takes them."""

    params: list[Tensor]
    grads: list[Tensor]
    seed: Tensor
    restore_coefficient: Tensor
    grad_coefficient: Tensor
    streams: list[int]
    kind: str


def tensors_of(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """``value`` as a list; TypeError if it holds anything but tensors."""
    tensors = [value] if isinstance(value, Tensor) else list(value)
    for k, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor, got {type(x).__name__}")
    return tensors


def check_tensors(
    name: str, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype] = DTYPES
) -> None:
    """Dtype, layout and device of a list, as every op on lists requires them."""
    if (
        all(map(attrgetter("is_cpu"), tensors))
        and all(map(Tensor.is_contiguous, tensors))
        and set(dtypes).issuperset(map(attrgetter("dtype"), tensors))
    ):
        return  # of a real list, in half of the time that the loop takes
    for k, x in enumerate(tensors):
        if x.dtype not in dtypes:
            *others, last = (str(d).removeprefix("torch.") for d in dtypes)
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise TypeError(f"{name}[{k}] must be {allowed}, got {x.dtype}")
        if not x.is_contiguous():
            raise ValueError(
                f"{name}[{k}] must be contiguous, got shape {tuple(x.shape)}, strides {x.stride()}"
            )
        if x.device != tensors[0].device:
            raise ValueError(
                f"{name} must be on one device, got {tensors[0].device} and {x.device}"
            )


def check_pairs(
    name: str,
    tensors: Sequence[Tensor],
    other_name: str,
    others: Sequence[Tensor],
    same_dtype: bool = True,
) -> None:
    """As many tensors in both lists, of the same shape, device and perhaps dtype pair by pair."""
    if len(tensors) != len(others):
        raise ValueError(
            f"{name} and {other_name} must be as many, got {len(tensors)} and {len(others)}"
        )
    shared = "shape, dtype and device" if same_dtype else "shape and device"
    for k, (x, y) in enumerate(zip(tensors, others, strict=True)):
        if (x.shape, x.device) != (y.shape, y.device) or (same_dtype and x.dtype != y.dtype):
            raise ValueError(
                f"{name}[{k}] must have the {shared} of {other_name}[{k}], got "
                f"{tuple(x.shape)} {x.dtype} {x.device} and {tuple(y.shape)} {y.dtype} {y.device}"
            )


def check_writable(name: str, tensors: Sequence[Tensor]) -> None:
    """RuntimeError where autograd would have to record the write."""
    if torch.is_grad_enabled() and any(map(attrgetter("requires_grad"), tensors)):
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
    # As keys of a cache, 1 and True are the same; Dynamo warns of a cache, and traces through it.
    keys = {int, str}.issuperset(map(type, values)) and not torch.compiler.is_compiling()
    return list(_stream_bits(tuple(values))) if keys else _stream_bits.__wrapped__(values)


@lru_cache(maxsize=64)  # the same list at each step, and names are hashed
def _stream_bits(values: Sequence[int | str]) -> list[int]:
    return [int64_bits("streams", stream_id(v) if isinstance(v, str) else v) for v in values]


def seeds_of(name: str, value: Seeds, device: torch.device) -> Tensor:
    """``value`` as an int64 tensor of shape (K,); a tensor passes as it is, wherever it lies."""
    if isinstance(value, Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be an int64 tensor or integers, got {value.dtype}")
        return _vector(name, value, device)
    bits = [int64_bits(name, s) for s in _list_of(value)]
    return torch.tensor(bits, dtype=torch.int64, device="cpu")


def coefficients_of(name: str, value: Coefficients, device: torch.device) -> Tensor:
    """``value`` as a float32 tensor of shape (K,); a tensor passes as it is, wherever it lies."""
    if isinstance(value, Tensor):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} must be a float32 tensor or floats, got {value.dtype}")
        return _vector(name, value.detach(), device)
    return torch.tensor(_list_of(value), dtype=torch.float32, device="cpu")


def _vector(name: str, x: Tensor, device: torch.device) -> Tensor:
    if x.dim() > 1:
        raise ValueError(f"{name} must have at most one dimension, got shape {tuple(x.shape)}")
    if x.device.type != "cpu" and x.device != device:
        raise ValueError(f"{name} must be on the CPU or on {device}, got {x.device}")
    return x.reshape(-1)


def check_one(name: str, x: Tensor) -> None:
    """ValueError unless ``x`` holds a single value."""
    if len(x) != 1:
        raise ValueError(f"{name} must be one value, got {len(x)}")


def terms_of(
    seeds: Seeds, coefficients: Coefficients, device: torch.device
) -> tuple[Tensor, Tensor]:
    """K seeds and K coefficients as int64 and float32 tensors of shape (K,)."""
    pair = seeds_of("seeds", seeds, device), coefficients_of("coefficients", coefficients, device)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"seeds and coefficients must be as many, got {len(pair[0])} and {len(pair[1])}"
        )
    return pair


def _cuts_of(round_after: Sequence[int], terms: int) -> list[int]:
    for count in round_after:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"round_after must hold integers, got {count!r}")
    if any(b <= a for a, b in pairwise([0, *round_after, terms])) and round_after:
        raise ValueError(
            f"round_after must increase and lie in [1, {terms - 1}], one less than the seeds, "
            f"got {list(round_after)}"
        )
    return list(round_after)


def _rounding_seeds_of(
    rounding: str, seeds: Seeds | None, roundings: int, device: torch.device
) -> Tensor | None:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {ROUNDINGS}, got {rounding!r}")
    if (rounding == "stochastic") != (seeds is not None):
        raise ValueError(
            "rounding_seed must be given with rounding='stochastic' and not without, "
            f"got rounding={rounding!r}, rounding_seed={seeds!r}"
        )
    if seeds is None:
        return None
    bits = seeds_of("rounding_seed", seeds, device)
    if len(bits) != roundings:
        raise ValueError(f"rounding_seed must be one per rounding ({roundings}), got {len(bits)}")
    return bits


def sum_of(
    tensors: Sequence[Tensor],
    seeds: Seeds,
    coefficients: Coefficients,
    streams: Streams,
    kind: str,
    decay: float,
    round_after: Sequence[int],
    rounding: str,
    rounding_seed: Seeds | None,
) -> Sum:
    """The arguments of a sum of noise for ``tensors``, checked, as the dispatcher takes them."""
    check_kind(kind)
    check_decay(decay)
    bits = stream_bits(streams, len(tensors))
    device = tensors[0].device if tensors else torch.device("cpu")
    terms = terms_of(seeds, coefficients, device)
    cuts = _cuts_of(round_after, len(terms[0]))
    roundings = _rounding_seeds_of(rounding, rounding_seed, len(cuts) + 1, device)
    return Sum(*terms, bits, kind, decay, cuts, roundings)


def check_finite(name: str, x: Tensor) -> None:
    """ValueError where ``x`` lies on the CPU and is not finite; on a GPU, looking would stall."""
    if x.device.type == "cpu":
        for value in x.tolist():
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite float32 values, got {value}")


def check_memory(out: Sequence[Tensor], base: Sequence[Tensor], **coefficients: Tensor) -> None:
    """What every body checks before its first write: nothing is changed if this raises.

    No tensor of ``out`` may share memory with another, nor with one of ``base`` unless it is the
    same one; coefficients are finite.
    """
    for name, x in coefficients.items():
        check_finite(name, x)
    check_disjoint(out, base)


def check_restore(terms: Restore) -> None:
    """The same for ``restore_accumulate_``."""
    both = [*terms.params, *terms.grads]
    check_memory(
        both,
        both,
        restore_coefficient=terms.restore_coefficient,
        grad_coefficient=terms.grad_coefficient,
    )


def check_disjoint(out: Sequence[Tensor], base: Sequence[Tensor]) -> None:
    """ValueError where a tensor of ``out`` overlaps another, or one of ``base``, a list apart."""
    check_ranges(_ranges(out), () if base is out else _ranges(base))


Ranges = tuple[tuple[int, int], ...]  # (address, bytes)


def _ranges(tensors: Sequence[Tensor]) -> Ranges:
    sizes = map(attrgetter("nbytes"), tensors)
    return tuple(zip(map(Tensor.data_ptr, tensors), sizes, strict=True))


@lru_cache(maxsize=64)  # a pure function of addresses, as in _native._table
def check_ranges(out: Ranges, base: Ranges) -> None:
    """The same of the ranges that tensors occupy."""
    ranges = [(*x, True) for x in out] + [(*x, False) for x in base]
    end = read_end = 0
    for start, size, written in sorted(ranges):
        if size and (start < end or (written and start < read_end)):
            raise ValueError(
                f"tensors must not overlap in memory, got two that share address {start:#x}"
            )
        if size and written:
            end = max(end, start + size)
        elif size:
            read_end = max(read_end, start + size)
