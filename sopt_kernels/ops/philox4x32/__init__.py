"""``philox4x32``: the words of the generator behind all noise, for known answers and for seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._registry import Op, register, triton_body
from .native import philox4x32_cpu, philox4x32_cuda
from .reference import philox4x32 as _reference


def philox4x32(counter: Sequence[int] | Tensor, key: Sequence[int] | Tensor) -> Tensor:
    r"""Philox4x32-10: four random words for each counter.

    ``noise`` uses the key ``(seed & 0xffffffff, seed >> 32)`` and the counter
    ``(block & 0xffffffff, block >> 32, stream & 0xffffffff, stream >> 32)``.

    Args:
        counter: Shape (..., 4): integers in ``[0, 2**32)`` or a uint32 tensor; c0 first.
        key: Two integers in ``[0, 2**32)``, or a uint32 tensor of shape (2,); k0 first.

    Returns:
        The output words, uint32, of the shape of ``counter`` and on its device.

    Raises:
        TypeError: A tensor is not uint32.
        ValueError: A shape is not (..., 4) or (2,), or an integer is outside ``[0, 2**32)``.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.

    Example:
        >>> [hex(word) for word in philox4x32((0, 0, 0, 0), (0, 0)).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    counter, key = _words("counter", counter), _words("key", key)
    if counter.dim() == 0 or counter.shape[-1] != 4:
        raise ValueError(f"counter must have shape (..., 4), got {tuple(counter.shape)}")
    if key.shape != (2,):
        raise ValueError(f"key must have shape (2,), got {tuple(key.shape)}")
    rows = counter.reshape(-1, 4).contiguous()
    return torch.ops.sopt.philox4x32.default(rows, key.cpu().contiguous()).view(counter.shape)


def _words(name: str, value: Sequence[int] | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        if value.dtype != torch.uint32:
            raise TypeError(f"{name} must be a uint32 tensor or integers, got {value.dtype}")
        return value
    words = torch.tensor(value, dtype=torch.int64, device="cpu")
    if ((words < 0) | (words >= 2**32)).any():
        raise ValueError(f"{name} must be in [0, 2**32), got {value}")
    return words.sub(words >> 31 << 32).to(torch.int32).view(torch.uint32)


def _fake(counter: Tensor, key: Tensor) -> Tensor:
    return torch.empty_like(counter)


def _samples(device):
    index = torch.arange(4 * 37, dtype=torch.int64, device="cpu")
    words = index.view(37, 4) * 0x9E3779B1 & 0x7FFFFFFF
    counters = words.to(torch.int32).view(torch.uint32).to(device)
    key = _words("key", [0x12345678, 0x1ABCDEF0])
    for rows in (0, 1, 16, 37):  # empty, a tail, a whole vector, both
        yield counters[:rows], key


register(
    Op(
        name="philox4x32",
        schema="(Tensor counter, Tensor key) -> Tensor",
        reference=_reference,
        fake=_fake,
        samples=_samples,
        native={"cpu": philox4x32_cpu, "cuda": philox4x32_cuda},
        triton=triton_body(__name__, "philox4x32"),
    )
)
