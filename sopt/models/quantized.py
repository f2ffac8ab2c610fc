"""int8 weights of networks that are never in memory as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..budget import readable
from ..errors import InputError
from ..quantization import (
    LARGEST,
    Int8Layer,
    Int8Weight,
    become_int8,
    quantizable_layers,
    quantize_weight,
)

if TYPE_CHECKING:
    from .model import Source

_ELEMENTS = 1 << 20  # quantized at a time, in float32


def become_int8_on_meta(network: nn.Module, activations: str) -> None:
    """As :func:`sopt.quantize`, for a network without weights."""
    for layer in quantizable_layers(network).values():
        codes = torch.empty(layer.weight.movedim(1, -1).shape, dtype=torch.int8, device="meta")
        become_int8(layer, Int8Weight(codes, torch.empty(len(codes), device="meta")), activations)


def int8_layers(network: nn.Module) -> list[str]:
    """Paths of the layers that are int8."""
    return [path for path, layer in network.named_modules() if isinstance(layer, Int8Layer)]


def float_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a network by name, of its int8 layers as they are in floats."""
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    for path in int8_layers(network):
        outputs, *kernel, inputs = shapes.pop(f"{path}.codes")
        del shapes[f"{path}.scales"]
        shapes[f"{path}.weight"] = (outputs, inputs, *kernel)
    return shapes


def rows_of(weight: Tensor, out: Tensor, row: int) -> Tensor:
    """As many rows of a weight as ``out`` holds from one on, in the shape of ``out``."""
    count = out.numel() // weight[0].numel()
    return weight[row : row + count].reshape(out.shape)


def quantize_from(source: Source, name: str, codes: Tensor, largest: int = LARGEST) -> Tensor:
    """Fill the codes of a layer from its float weight ``name``, some rows of which are in memory at
    a time; gives the scales. The bits of :func:`~sopt.quantization.quantize_weight`."""
    outputs, *kernel, inputs = codes.shape
    height = min(outputs, max(1, _ELEMENTS // codes[0].numel()))
    rows = torch.empty(height, inputs, *kernel)
    scales = torch.empty(outputs)
    for begin in range(0, outputs, height):
        part = rows[: min(height, outputs - begin)]
        source.read(name, part, begin)
        try:
            found = quantize_weight(part, largest)
        except ValueError as error:
            raise InputError(
                f"the weights must be finite, but {name} has NaN or infinite values"
            ) from error
        codes[begin : begin + height] = found.codes
        scales[begin : begin + height] = found.scales
    return scales


def read_quantized(source: Source, name: str, weight: Tensor, largest: int = LARGEST) -> Int8Weight:
    """A layer's float weight ``name`` on int8 codes, of which only some rows are in memory.
    ``weight`` has its shape, and may be on the meta device."""
    codes = torch.empty(weight.movedim(1, -1).shape, dtype=torch.int8)
    return Int8Weight(codes, quantize_from(source, name, codes, largest))


def quantizing(source: Source, network: nn.Module) -> Source:
    """What reads the weights of a network from a source of floats: those of int8 layers are
    quantized at each read."""
    layers = int8_layers(network)
    return _Quantizing(source, layers) if layers else source


class _Quantizing:
    """The codes of a layer are read before its scales."""

    def __init__(self, source: Source, layers: Collection[str]) -> None:
        self._source, self._layers = source, frozenset(layers)
        self._scales: dict[str, Tensor] = {}

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        path, _, leaf = name.rpartition(".")
        if path not in self._layers or leaf == "bias":
            self._source.read(name, out, row)
        elif leaf == "codes":
            self._scales[path] = quantize_from(self._source, f"{path}.weight", out)
        else:
            out.copy_(self._scales.pop(path))


class Spool:
    """A file without a name that has weights from their first read on, so that those which are
    quantized are so once. It goes with the object, and with a process that is killed.

    Args:
        folder: On whose disk it is.
        network: Its size is told beforehand.

    Raises:
        InputError: The disk is too full for the network's weights.
    """

    def __init__(self, folder: Path, network: nn.Module) -> None:
        self._size = sum(x.numel() * x.element_size() for x in network.state_dict().values())
        self._folder = folder
        if shutil.disk_usage(folder).free < self._size:
            raise self._no_space()
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  kept open
        self._offsets: dict[str, int] = {}

    def over(self, source: Source) -> Source:
        """What reads from the file, and the first time from ``source``."""
        return _Spooled(self, source)

    def read(self, source: Source, name: str, out: Tensor) -> None:
        raw: Any = out.view(-1).view(torch.uint8).numpy().data
        if name in self._offsets:
            offset = self._offsets[name]
            while raw:
                if not (count := os.preadv(self._file.fileno(), [raw], offset)):
                    raise InputError(f"the int8 weights in {self._folder} were cut off by others")
                raw, offset = raw[count:], offset + count
            return
        source.read(name, out)
        offset = self._file.seek(0, os.SEEK_END)
        try:
            while raw:
                raw = raw[self._file.write(raw) :]
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise self._no_space() from error
            raise
        self._offsets[name] = offset

    def _no_space(self) -> InputError:
        return InputError(
            f"the disk of {self._folder} is too full for {readable(self._size)} of int8 weights, "
            "which are kept there during the run: free some, or set weights to one of 16 bits"
        )


class _Spooled:
    def __init__(self, spool: Spool, source: Source) -> None:
        self._spool, self._source = spool, source

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        assert row is None, name
        self._spool.read(self._source, name, out)
