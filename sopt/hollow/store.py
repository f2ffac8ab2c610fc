"""The activations behind a hole, in one safetensors file that fills up entry by entry.

The file has its final size from the beginning, so a full disk shows before the work. The tensor
``checksums`` has a number for each entry that is there, and 0 for one that is not: after a crash at
any moment, or if the file was cut short, what has another checksum is computed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..budget import readable
from ..errors import InputError
from ..files import SAFETENSORS_DTYPES, existing_folder, write_bytes

_CHECKSUMS = "checksums"


class Store:
    """Tensors by name, of one dtype, for a run that says what they must belong to.

    Args:
        path: The file; made if it is missing.
        shapes: Of all entries, by name, in the order in which they are computed.
        dtype: Of all of them.
        identity: What they depend on, by a word for it.

    Raises:
        InputError: The file was made for something else, it is no such file, or the disk is full.

    Example:
        >>> store = Store(Path("a.safetensors"), {"x": (2, 3)}, torch.float16, {"seed": "0"})
        >>> store.write("x", torch.ones(2, 3))
        >>> store.missing(), store.read("x").sum().item()
        ([], 6.0)
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        identity: Mapping[str, str],
    ) -> None:
        self.path = path
        self._shapes, self._dtype = dict(shapes), dtype
        header = _header(self._shapes, dtype, identity)
        start = len(header)
        self._slots = {name: start + 8 * i for i, name in enumerate(self._shapes)}
        self._offsets = {}
        offset = start + 8 * len(self._shapes)
        for name, shape in self._shapes.items():
            self._offsets[name] = offset
            offset += math.prod(shape) * dtype.itemsize
        self.bytes = offset
        if path.exists() and not _is_cut_off(path, header):
            _check_header(path, header, identity)
        else:
            _check_space(path, self.bytes)
            write_bytes(path, header)
        self._file = path.open("r+b", buffering=0)
        self._descriptor = self._file.fileno()
        with self._full_disk_told():
            _reserve(self._descriptor, self.bytes)
        self._done = {name for name in self._shapes if self._is_whole(name)}

    def missing(self) -> list[str]:
        """Names of the entries that are not there yet, in order."""
        return [name for name in self._shapes if name not in self._done]

    def write(self, name: str, value: Tensor) -> None:
        """Put an entry in, converted to the store's dtype; a crash meanwhile leaves it missing."""
        assert value.shape == self._shapes[name], (name, value.shape)
        data = value.detach().to("cpu", self._dtype).contiguous().view(-1).view(torch.uint8)
        raw = data.numpy().tobytes()
        with self._full_disk_told():
            _write_at(self._descriptor, raw, self._offsets[name])
            _write_at(self._descriptor, _checksum(raw), self._slots[name])
        self._done.add(name)

    def read(self, name: str) -> Tensor:
        """An entry, mapped from the file: no memory but the pages in use, and not to be written."""
        assert name in self._done, name
        offset, size = self._offsets[name], self._size(name)
        lead = offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(
            self._descriptor, size + lead, access=mmap.ACCESS_COPY, offset=offset - lead
        )
        flat = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=lead)
        return flat.view(self._dtype).view(self._shapes[name])

    def flush(self) -> None:
        """Have what was written on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InputError(_no_space(self.path, self.bytes)) from error
            raise

    def _size(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._dtype.itemsize

    def _is_whole(self, name: str) -> bool:
        expected = os.pread(self._descriptor, 8, self._slots[name])
        if not any(expected):
            return False
        return expected == _checksum(
            os.pread(self._descriptor, self._size(name), self._offsets[name])
        )


def _header(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, identity: Mapping[str, str]
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(identity.items()))}
    offset = 8 * len(shapes)
    entries[_CHECKSUMS] = {"dtype": "I64", "shape": [len(shapes)], "data_offsets": [0, offset]}
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_cut_off(path: Path, header: bytes) -> bool:
    """Whether the file ends within the header that it should have."""
    with path.open("rb") as file:
        found = file.read(len(header))
    return len(found) < len(header) and header.startswith(found)


def _check_header(path: Path, header: bytes, identity: Mapping[str, str]) -> None:
    with path.open("rb") as file:
        found = file.read(len(header))
    if found == header:
        return
    remedy = "delete it to compute the activations again, or choose another output"
    try:
        length = int.from_bytes(found[:8], "little")
        with path.open("rb") as file:
            known = json.loads(file.read(8 + length)[8:])["__metadata__"]
    except (ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise InputError(
            f"{path} is not a store of activations, or is damaged; {remedy}"
        ) from error
    for name, value in identity.items():
        if known.get(name) != value:
            raise InputError(
                f"{path} was made with another {name}: {known.get(name)}, this run has {value}; "
                f"{remedy}"
            )
    raise InputError(f"{path} holds other samples than this run needs; {remedy}")


def _check_space(path: Path, size: int) -> None:
    if shutil.disk_usage(existing_folder(path)).free < size:
        raise InputError(_no_space(path, size))


def _reserve(descriptor: int, size: int) -> None:
    """Have the file this long, with room on the disk where the system can promise it; what is there
    already stays."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _no_space(path: Path, size: int) -> str:
    return (
        f"the disk of {path} is too full for {readable(size)} of activations: free some, or set "
        "less hollow_samples, or hollow_dtype to one of 16 bits"
    )


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _checksum(raw: bytes) -> bytes:
    """8 bytes, not all of them 0."""
    digest = hashlib.blake2b(raw, digest_size=8).digest()
    return digest if any(digest) else b"\x01" + digest[1:]
