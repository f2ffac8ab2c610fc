"""Weights into networks, one tensor at a time: no second copy of a network is ever in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..quantization import Int8Weight, become_int8, quantizable_layers, quantize_weight
from .quantized import read_quantized

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_PIECE = 1 << 22  # elements converted at a time
_REORDERED = 1 << 16  # elements put in another order at a time: in the cache, without fresh pages
# Names of earlier versions of diffusers (the VAE's attention) and of transformers.
_RENAMED = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


def materialize(
    module: nn.Module,
    fill: Callable[[str, Tensor], Tensor],
    int8: str | None = None,
    fill_int8: Callable[[str, Tensor], Int8Weight] | None = None,
) -> nn.Module:
    """Give every parameter of a network on the meta device its value, in place.

    Args:
        fill: Called with the name and the meta tensor of each parameter, and of each buffer of a
            layer that is int8 already; gives the value.
        int8: Put linear layers and convolutions on int8 weights, with these activations.
        fill_int8: Gives their weights; what ``fill`` gives, quantized, if not given.

    Returns:
        ``module``, in eval mode and frozen.
    """
    layers = {} if int8 is None else quantizable_layers(module)
    for path, owner in list(module.named_modules()):
        codes = None
        for leaf, weight in list(owner.named_parameters(recurse=False)):
            name = f"{path}.{leaf}" if path else leaf
            if path in layers and leaf == "weight":
                codes = (
                    fill_int8(name, weight) if fill_int8 else quantize_weight(fill(name, weight))
                )
                continue
            owner.register_parameter(leaf, nn.Parameter(fill(name, weight), requires_grad=False))
        for leaf, buffer in list(owner.named_buffers(recurse=False)):
            if leaf == "position_ids":  # CLIP's: 0, 1, 2, ...
                owner._buffers[leaf] = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            else:  # of an int8 layer
                owner._buffers[leaf] = fill(f"{path}.{leaf}", buffer)
        if int8 is not None and codes is not None:
            become_int8(layers[path], codes, int8)
    return module.eval()


def load_files(
    module: nn.Module,
    files: Sequence[Path],
    dtype: torch.dtype,
    dropped: Iterable[str] = (),
    int8: str | None = None,
) -> nn.Module:
    """Fill a network on the meta device from safetensors files, reading each tensor once.

    Args:
        files: The file, or all shards.
        dtype: Of the weights in memory; values are converted in pieces.
        dropped: Prefixes of tensors that are checked only: better now than after training.
        int8: Put linear layers and convolutions on int8 weights, with these activations; each is
            quantized from the file, in its precision, by some rows at a time.

    Raises:
        InputError: A file is cut off or damaged, or a weight is missing, of another shape, NaN or
            infinite.
    """
    expected = dict(module.named_parameters())
    layers = {} if int8 is None else quantizable_layers(module)
    values: dict[str, Tensor] = {}
    codes: dict[str, Int8Weight] = {}
    source = TensorFiles({name: each.shape for name, each in expected.items()}, files)
    for file in files:
        for stored, read in stored_tensors(file):
            name = _current_name(stored, expected)
            is_dropped = any(stored.startswith(prefix) for prefix in dropped)
            if name is None and not is_dropped:
                continue
            path, _, leaf = (name or stored).rpartition(".")
            if name is not None and path in layers and leaf == "weight":
                codes[name] = read_quantized(source, name, expected[name])
                continue
            tensor = read(torch.float32 if path in layers else dtype)  # a bias stays so
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"the weights must be finite, but {stored} of {file} has NaN or infinite values"
                )
            if name is not None:
                values[name] = tensor.view(expected[name].shape)
    return materialize(
        module, lambda name, _: values.pop(name), int8, lambda name, _: codes.pop(name)
    )


def _current_name(stored: str, expected: Collection[str]) -> str | None:
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
        expected: Shapes that are wanted, by name.
        files: The file, or all shards.

    Raises:
        InputError: A file is cut off or damaged, or a weight is missing or of another shape.
    """

    def __init__(self, expected: Mapping[str, Sequence[int]], files: Sequence[Path]) -> None:
        self._entries: dict[str, tuple[Path, int, Any]] = {}
        for path in files:
            start, entries = _header(path)
            for stored, entry in entries:
                if (name := _current_name(stored, expected)) is None:
                    continue
                if math.prod(entry["shape"]) != math.prod(expected[name]):
                    raise InputError(
                        f"{path}: {stored} must have the shape {tuple(expected[name])}, "
                        f"got {tuple(entry['shape'])}"
                    )
                _stored_dtype(path, entry)
                self._entries[name] = path, start, entry
        _check_complete(files, expected, self._entries.keys())
        self._files = {path: path.open("rb", buffering=0) for path in files}

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        """Fill a dense CPU tensor, converted to its dtype; with as many rows as it holds from one
        on, if given."""
        path, start, entry = self._entries[name]
        size, file = _stored_dtype(path, entry).itemsize, self._files[path]
        if row is not None:
            width = math.prod(entry["shape"][1:])
            _read_entry(path, file, start + row * width * size, entry, out.view(-1))
        elif out.is_contiguous():
            _read_entry(path, file, start, entry, out.view(-1))
        else:  # in another order than in the file, which has whole rows in turn
            for part in out.split(max(1, _REORDERED // out[0].numel())):
                rows = torch.empty(part.shape, dtype=out.dtype)
                _read_entry(path, file, start, entry, rows.view(-1))
                part.copy_(rows)
                start += rows.numel() * size


class SafetensorsFile:
    """Reads the tensors of a safetensors file by name, whole, by plain reads as
    :func:`stored_tensors` does.

    Raises:
        InputError: The file is missing, cut off or damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"there is no file {path}")
        self._path = path
        self._start, entries = _header(path)
        self._entries = dict(entries)
        self._file = path.open("rb", buffering=0)
        self.shapes = {name: tuple(entry["shape"]) for name, entry in entries}

    def read(self, name: str) -> Tensor:
        """The tensor in the file's dtype, on the CPU."""
        return _read(self._path, self._file, self._start, self._entries[name], None)


def stored_tensors(path: Path) -> Iterator[tuple[str, Callable[[torch.dtype | None], Tensor]]]:
    """Names of a safetensors file, in the order of the data, and what reads each tensor.

    It takes the dtype to read in; None for that of the file.

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


def _read(path: Path, file: Any, start: int, entry: Any, dtype: torch.dtype | None) -> Tensor:
    stored = _stored_dtype(path, entry)
    value = torch.empty(math.prod(entry["shape"]), dtype=stored if dtype is None else dtype)
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
    files: Sequence[Path], expected: Collection[str], found: Collection[str]
) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{files[0].parent} lacks {len(missing)} of {len(expected)} weights, "
            f"{missing[0]} among them"
        )
