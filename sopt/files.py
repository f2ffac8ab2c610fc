"""Files that appear whole or not at all, and safetensors files whose bytes repeat.

A file is written to a temporary name in its folder, flushed to the disk (fsync) and renamed over
the final name, and the folder is flushed in turn: a process killed, or a disk that fills up, at any
moment leaves the old content or the new one. The temporary name is fixed for a given file, so what
a killed process left behind is replaced by the next one instead of piling up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_COPIED = 1 << 22  # bytes at a time
_GATHERED = 1 << 20  # bytes, at most, of small pieces that are written together


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all; missing parent folders are made.

    Raises:
        OSError: The disk is full, the folder is not writable, and so on; ``path`` is as before.
    """
    write_pieces(path, [data])


def write_pieces(path: str | Path, pieces: Iterable[bytes | memoryview]) -> None:
    """:func:`write_bytes` of what comes in pieces, no two of which need to be in memory at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for piece in _gathered(pieces):
                write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _gathered(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes, small pieces of which are together: a write for each tensor of an adapter
    would be hundreds."""
    small = bytearray()
    for piece in pieces:
        if len(small) + len(piece) > _GATHERED and small:
            yield bytes(small)
            small.clear()
        if len(piece) > _GATHERED:
            yield piece
        else:
            small += piece
    if small:
        yield bytes(small)


def copy_file(source: str | Path, path: str | Path) -> None:
    """Copy a file to ``path``, whole or not at all."""
    with Path(source).open("rb") as file:
        write_pieces(path, iter(lambda: file.read(_COPIED), b""))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """``os.write`` until every byte is written; one call may take only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def existing_folder(path: str | Path) -> Path:
    """The path, or the nearest one above it that exists."""
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def check_writable(folder: str | Path) -> None:
    """Find out, without leaving a trace, whether ``folder`` can be made and written to.

    Raises:
        InputError: ``folder``, or the folder it would be made in, is a file or is not writable.
    """
    existing = existing_folder(folder)
    if not existing.is_dir():
        raise InputError(f"output {str(folder)!r} is not a folder: {existing} is a file")
    probe = existing / f".sopt-{os.getpid()}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output {str(folder)!r} must be writable, but in {existing}: {error.strerror}"
        ) from error


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a safetensors file whose bytes depend on its content only.

    The safetensors library writes the metadata in an order that changes from run to run. Here names
    and metadata keys are sorted in the header. As in the library, the data come in order of
    decreasing element size, so every tensor is aligned to its own.

    Args:
        path: File to write, whole or not at all.
        tensors: Name to tensor, of any shape, device and strides; floating point, (u)int or bool.
        metadata: Strings for the header's ``__metadata__``; no dates, paths or durations, please.
        read: Gives each tensor, once, in turn; those in ``tensors`` may be on the meta device then.

    Example:
        >>> save_tensors("a.safetensors", {"weight": torch.zeros(2, 3)}, {"format": "pt"})
    """
    offset = 0
    entries: dict[str, Any] = {}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    header |= dict(sorted(entries.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data start at a multiple of 8
    head = len(text).to_bytes(8, "little") + text
    pieces = (tensor_bytes(tensors[name] if read is None else read(name)) for name in order)
    write_pieces(path, chain([head], pieces))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order, without a copy where they lie so on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        InputError: The file is missing, cut off, or not a safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # A copy: the file may be replaced while the tensors are in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged, or not a safetensors file: {error}") from error


def load_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors.

    Raises:
        InputError: The file is missing, cut off, or not a safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged, or not a safetensors file: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
