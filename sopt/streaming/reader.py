"""Frozen weights that stay in their file: two buffers in memory, filled in turn by a thread.

Every weight of the network is a view of its part's buffer, and means something only while the part
is the one in place. While the network computes with one buffer, the thread reads the next part into
the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.forwards import has_fast_layers
from ..models.model import Source
from .units import own_tensors

_ALIGNMENT = 64  # bytes: of the widest vector loads


@dataclass(frozen=True)
class _Place:
    name: str
    view: Tensor


class Reader:
    """Has the weights of one part of a network in memory, and those of the next on their way.

    Makes every parameter and buffer of the parts, floating point or codes, a view of one of two
    buffers. The network must be on the meta device and without an adapter.

    Args:
        network: Changed in place.
        parts: Paths of the modules of each part, by its number; those visited next to each other
            best follow each other here.
        dtype: Of floating-point weights.
        device: Of the buffers. For a GPU the file is read into two more in pinned host memory.
    """

    def __init__(
        self,
        network: nn.Module,
        parts: Mapping[int, Sequence[str]],
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._source = source
        self._device = device
        self._buffer_of = {part: place % 2 for place, part in enumerate(parts)}
        layouts = {part: _layout(network, paths, dtype) for part, paths in parts.items()}
        sizes = [0, 0]
        for part, (_, size) in layouts.items():
            sizes[self._buffer_of[part]] = max(size, sizes[self._buffer_of[part]])
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        self._staging = self._buffers
        if device.type == "cuda":
            self._staging = [torch.empty(size, dtype=torch.uint8).pin_memory() for size in sizes]
        self._places: dict[int, list[_Place]] = {}
        self._size = {part: size for part, (_, size) in layouts.items()}
        for part, (entries, _) in layouts.items():
            buffer = self._buffers[self._buffer_of[part]]
            staging = self._staging[self._buffer_of[part]]
            self._places[part] = []
            for name, owner, leaf, tensor, offset in entries:
                kind = _dtype(owner, leaf, tensor, dtype)
                channels_last = type(owner) is nn.Conv2d and has_fast_layers(kind, device)
                _put(owner, leaf, _view(buffer, tensor, kind, offset, channels_last))
                view = _view(staging, tensor, kind, offset, channels_last)
                self._places[part].append(_Place(name, view))
        self._loaded: list[int | None] = [None, None]  # what each buffer holds, or will hold
        self._reading: list[Future[None] | None] = [None, None]
        self._executor: ThreadPoolExecutor | None = None
        self._current: int | None = None
        self._used: list[torch.cuda.Event | None] = [None, None]

    @property
    def bytes(self) -> int:
        """Of both buffers."""
        return sum(buffer.numel() for buffer in self._buffers)

    def visit(self, part: int, following: int | None) -> None:
        """Have the weights of ``part`` in place, and begin to read those of ``following``."""
        if part != self._current:
            self._mark_used()
            self._begin(part)
            self._current = part
            buffer = self._buffer_of[part]
            if (reading := self._reading[buffer]) is not None:
                self._reading[buffer] = None
                self._loaded[buffer] = None  # until it is known to have been read
                reading.result()
                self._loaded[buffer] = part
        if following is not None and self._buffer_of[following] != self._buffer_of[part]:
            self._begin(following)

    def tensors(self, part: int) -> dict[str, Tensor]:
        """The weights of a part by name, on the CPU, right after it was visited."""
        return {place.name: place.view for place in self._places[part]}

    def close(self) -> None:
        """End the thread."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _begin(self, part: int) -> None:
        buffer = self._buffer_of[part]
        if self._loaded[buffer] == part:
            return
        if (pending := self._reading[buffer]) is not None:  # for a part that is not wanted now
            pending.result()
        self._loaded[buffer] = part
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="sopt-reader")
        self._reading[buffer] = self._executor.submit(self._read, part)

    def _read(self, part: int) -> None:
        for place in self._places[part]:
            self._source.read(place.name, place.view)
        if self._device.type == "cuda":
            buffer, size = self._buffer_of[part], self._size[part]
            if (used := self._used[buffer]) is not None:
                used.synchronize()  # else weights change under a kernel that is still at work
            stream = torch.cuda.Stream(self._device)
            with torch.cuda.stream(stream):
                source = self._staging[buffer][:size]
                self._buffers[buffer][:size].copy_(source, non_blocking=True)
            stream.synchronize()

    def _mark_used(self) -> None:
        """Note on the GPU's queue that the current part has been computed with."""
        if self._device.type == "cuda" and self._current is not None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._used[self._buffer_of[self._current]] = event


def _layout(
    network: nn.Module, paths: Sequence[str], dtype: torch.dtype
) -> tuple[list[tuple[str, nn.Module, str, Tensor, int]], int]:
    """The tensors of a part with their offsets in its buffer, and the bytes of all."""
    entries, offset = [], 0
    for name, owner, leaf, tensor in own_tensors(network, paths):
        entries.append((name, owner, leaf, tensor, offset))
        size = tensor.numel() * _dtype(owner, leaf, tensor, dtype).itemsize
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    return entries, offset


def _dtype(owner: nn.Module, leaf: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Of a tensor in memory: parameters have that of the network, buffers their own."""
    convert = leaf in owner._parameters and tensor.is_floating_point()
    return dtype if convert else tensor.dtype


def _view(
    buffer: Tensor, tensor: Tensor, dtype: torch.dtype, offset: int, channels_last: bool
) -> Tensor:
    part = buffer[offset : offset + tensor.numel() * dtype.itemsize].view(dtype)
    if channels_last and tensor.dim() == 4:  # not the bias
        outputs, inputs, height, width = tensor.shape
        return part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return part.view(tensor.shape)


def _put(owner: nn.Module, leaf: str, view: Tensor) -> None:
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(view, requires_grad=False)
    else:
        owner._buffers[leaf] = view
