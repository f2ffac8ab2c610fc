"""int8 networks as safetensors files: codes, scales, and what is not quantized."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import save_tensors
from ..quantization import LARGEST, Int8Weight, quantizable_layers, requantize
from .model import Source
from .quantized import read_quantized, rows_of
from .weights import SafetensorsFile, materialize, stored_tensors


def save_quantized(module: nn.Module, file: str | Path) -> None:
    """Write a network that :func:`quantize` has changed: ``<layer>.codes`` (int8, a convolution's
    inputs last), ``<layer>.scales`` and ``<layer>.bias`` (float32), and all other weights by their
    names. The same network gives the same bytes."""
    save_tensors(file, module.state_dict(), {"format": "pt"})


def load_quantized(
    module: nn.Module,
    file: str | Path,
    activations: str = "int8",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Fill a network on the meta device from such a file, one tensor at a time, in place.

    Args:
        module: Of the same architecture, with float layers, on the meta device.
        activations: As for :func:`quantize`.
        dtype: Of what is not in an int8 layer; as in the file if not given.

    Returns:
        ``module``, frozen and in eval mode.

    Raises:
        InputError: The file is damaged, of another model, or has NaN or infinite values.
    """
    path = Path(file)
    layers = quantizable_layers(module)
    shapes = _stored_shapes(module)
    values: dict[str, Tensor] = {}
    if not path.exists():
        raise InputError(f"there is no file {path}")
    for name, read in stored_tensors(path):
        tensor = read(None)
        if shapes.get(name) != tuple(tensor.shape):
            raise InputError(
                f"{path} is of another model: {name} is {tuple(tensor.shape)} there, and in this "
                f"one {shapes.get(name, 'does not exist')}"
            )
        if name.endswith(".codes") != (tensor.dtype == torch.int8):
            raise InputError(f"{path}: {name} must not be {tensor.dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} has NaN or infinite values")
        inside = name.rpartition(".")[0] in layers
        values[name] = tensor if dtype is None or inside else tensor.to(dtype)
    if missing := sorted(shapes.keys() - values.keys()):
        raise InputError(f"{path} is of another model: it lacks {len(missing)}, {missing[0]} first")

    def fill_int8(name: str, _: Tensor) -> Int8Weight:
        layer = name.removesuffix(".weight")
        return Int8Weight(values.pop(f"{layer}.codes"), values.pop(f"{layer}.scales"))

    return materialize(module, lambda name, _: values.pop(name), activations, fill_int8)


def read_int8(source: Source, layer: str, weight: Tensor, largest: int = LARGEST) -> Int8Weight:
    """The weight of a layer on int8 codes: as stored, or quantized as it is read, by rows.

    Args:
        source: Of the layer's network.
        weight: Its float weight on the meta device.
        largest: No code is beyond it, in [1, 127].
    """
    if isinstance(source, QuantizedFile):
        stored = source.int8(layer)
        return stored if largest == LARGEST else requantize(stored, largest)
    return read_quantized(source, f"{layer}.weight", weight, largest)


class QuantizedFile:
    """Reads single weights of a network from a file of :func:`save_quantized`.

    Args:
        network: Names and shapes that are wanted, with float or int8 layers; on the meta device.
        path: The file.

    Raises:
        InputError: The file is damaged or of another model.
    """

    def __init__(self, network: nn.Module, path: Path) -> None:
        self._path = path
        self._tensors = SafetensorsFile(path)
        for name, shape in _stored_shapes(network).items():
            if self._tensors.shapes.get(name) != shape:
                raise InputError(f"{path} is of another model: {name} must have the shape {shape}")

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        """As :meth:`sopt.models.model.Source.read`.

        Raises:
            InputError: ``name`` is the float weight of a layer that is on int8 codes here.
        """
        if name not in self._tensors.shapes:
            raise InputError(
                f"{self._path} has int8 weights: set weights to int8, or take the float model that "
                "it was made of"
            )
        value = self._tensors.read(name)
        out.copy_(value if row is None else rows_of(value, out, row))

    def int8(self, layer: str) -> Int8Weight:
        """The weight of a layer."""
        codes, scales = (self._tensors.read(f"{layer}.{kind}") for kind in Int8Weight._fields)
        return Int8Weight(codes, scales)


def _stored_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """What the file of a network holds, which is on the meta device."""
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    for layer, owner in quantizable_layers(network).items():
        shapes[f"{layer}.codes"] = tuple(owner.weight.movedim(1, -1).shape)
        shapes[f"{layer}.scales"] = shapes.pop(f"{layer}.weight")[:1]
    return shapes
