"""Weights into networks, one tensor at a time: no second copy of a network is ever in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_PIECE = 1 << 22  # elements converted at a time
# Names of earlier versions of diffusers (the VAE's attention) and of transformers.
_RENAMED = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


def materialize(module: nn.Module, fill: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Give every parameter of a network on the meta device its value, in place.

    Args:
        fill: Called with the name and the meta tensor of each parameter, gives the value.

    Returns:
        ``module``, in eval mode and frozen.
    """
    for path, owner in list(module.named_modules()):
        for leaf, weight in list(owner.named_parameters(recurse=False)):
            name = f"{path}.{leaf}" if path else leaf
            owner.register_parameter(leaf, nn.Parameter(fill(name, weight), requires_grad=False))
        for leaf, buffer in list(owner.named_buffers(recurse=False)):
            assert leaf == "position_ids", f"{path}.{leaf} is not known"  # CLIP's: 0, 1, 2, ...
            positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            owner.register_buffer(leaf, positions, persistent=False)
    return module.eval()


def load_files(
    module: nn.Module, files: Sequence[Path], dtype: torch.dtype, dropped: Iterable[str] = ()
) -> nn.Module:
    """Fill a network on the meta device from safetensors files, reading each tensor once.

    Args:
        files: The file, or all shards.
        dtype: Of the weights in memory; values are converted in pieces.
        dropped: Prefixes of tensors that are checked only: better now than after training.

    Raises:
        InputError: A file is cut off or damaged, or a weight is missing, of another shape, NaN or
            infinite.
    """
    expected = dict(module.named_parameters())
    values: dict[str, Tensor] = {}
    for file in files:
        for stored, read in _tensors(file):
            name = _current_name(stored, expected)
            is_dropped = any(stored.startswith(prefix) for prefix in dropped)
            if name is None and not is_dropped:
                continue
            tensor = read(dtype)
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"the weights must be finite, but {stored} of {file} has NaN or infinite values"
                )
            if name is None:
                continue
            if tensor.numel() != expected[name].numel():
                raise InputError(
                    f"{file}: {stored} must have the shape {tuple(expected[name].shape)}, "
                    f"got {tuple(tensor.shape)}"
                )
            values[name] = tensor.view(expected[name].shape)
    _check_complete(files, expected, values)
    return materialize(module, lambda name, _: values.pop(name))


def _current_name(stored: str, expected: Mapping[str, Tensor]) -> str | None:
    """The parameter that a stored name means; None for one that is not needed any more."""
    renamed = stored
    for old, new in _RENAMED:
        renamed = renamed.replace(old, new)
    prefix = "text_model."
    for name in (stored, renamed, stored.removeprefix(prefix), prefix + stored):
        if name in expected:
            return name
    return None


class TensorFiles:
    """Reads single tensors of a network from its safetensors files, at any time and in any order.

    Args:
        network: Names and shapes that are wanted; it may be on the meta device.
        files: The file, or all shards.

    Raises:
        InputError: A file is cut off or damaged, or a weight is missing or of another shape.
    """

    def __init__(self, network: nn.Module, files: Sequence[Path]) -> None:
        expected = network.state_dict()
        self._entries: dict[str, tuple[Path, int, Any]] = {}
        for path in files:
            start, entries = _header(path)
            for stored, entry in entries:
                if (name := _current_name(stored, expected)) is None:
                    continue
                if math.prod(entry["shape"]) != expected[name].numel():
                    raise InputError(
                        f"{path}: {stored} must have the shape {tuple(expected[name].shape)}, "
                        f"got {tuple(entry['shape'])}"
                    )
                _stored_dtype(path, entry)
                self._entries[name] = path, start, entry
        _check_complete(files, expected, self._entries)
        self._files = {path: path.open("rb", buffering=0) for path in files}

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        """Fill a contiguous CPU tensor, converted to its dtype; with one row only, if given."""
        path, start, entry = self._entries[name]
        offset = 0 if row is None else row * out.numel() * _stored_dtype(path, entry).itemsize
        _read_entry(path, self._files[path], start + offset, entry, out.view(-1))


def _tensors(path: Path) -> Iterator[tuple[str, Callable[[torch.dtype], Tensor]]]:
    """Names of a safetensors file, in the order of the data, and what reads each tensor.

    By plain reads instead of a memory map: the pages of a map stay with the process, and a map
    counts as live as a whole while one of its tensors is in use.
    """
    start, entries = _header(path)
    with path.open("rb") as file:
        for name, entry in entries:
            yield name, partial(_read, path, file, start, entry)


def _header(path: Path) -> tuple[int, list[tuple[str, Any]]]:
    """Where the data of a safetensors file begin, and its entries in the order of the data."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= size - 8:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
            entries = [(n, e) for n, e in header.items() if n != "__metadata__"]
            end = max((entry["data_offsets"][1] for _, entry in entries), default=0)
            if 8 + length + end > size:
                raise ValueError(f"it has {size} bytes and needs {8 + length + end}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is cut off or not a safetensors file: {error}") from error
    return 8 + length, sorted(entries, key=lambda item: item[1]["data_offsets"])


def _stored_dtype(path: Path, entry: Any) -> torch.dtype:
    stored = _DTYPES.get(entry["dtype"])
    begin, end = entry["data_offsets"]
    if stored is None or end - begin != math.prod(entry["shape"]) * stored.itemsize:
        raise InputError(f"{path}: {entry} is not a tensor of a dtype that weights have")
    return stored


def _read(path: Path, file: Any, start: int, entry: Any, dtype: torch.dtype) -> Tensor:
    value = torch.empty(math.prod(entry["shape"]), dtype=dtype)
    _read_entry(path, file, start, entry, value)
    return value.view(entry["shape"])


def _read_entry(path: Path, file: Any, start: int, entry: Any, value: Tensor) -> None:
    """Fill ``value`` with what begins at ``start`` and the entry's offset, by reads at a position,
    which threads can share the file for."""
    stored, offset = _stored_dtype(path, entry), start + entry["data_offsets"][0]
    if stored == value.dtype:
        _read_into(file, offset, value)
        return
    scratch = torch.empty(min(len(value), _PIECE), dtype=stored)
    for piece in value.split(_PIECE):
        _read_into(file, offset, scratch[: len(piece)])
        piece.copy_(scratch[: len(piece)])
        offset += len(piece) * stored.itemsize


def _read_into(file: Any, offset: int, tensor: Tensor) -> None:
    data = tensor.view(torch.uint8).numpy().data
    while data:
        if not (count := os.preadv(file.fileno(), [data], offset)):
            raise InputError(f"{file.name} was cut off while it was in use")
        data, offset = data[count:], offset + count


def _check_complete(
    files: Sequence[Path], expected: Mapping[str, Tensor], found: Mapping[str, Any]
) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{files[0].parent} lacks {len(missing)} of {len(expected)} weights, "
            f"{missing[0]} among them"
        )
