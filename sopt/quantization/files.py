"""int8 networks as safetensors files: codes, scales, and what is not quantized."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import save_tensors
from ..models.weights import materialize, stored_tensors
from .layers import Int8Weight
from .network import quantizable_layers


def save_quantized(module: nn.Module, file: str | Path) -> None:
    """Write a network that :func:`quantize` has changed: ``<layer>.codes`` (int8, a convolution's
    inputs last), ``<layer>.scales`` and ``<layer>.bias`` (float32), and all other weights by their
    names. The same network gives the same bytes."""
    save_tensors(file, module.state_dict(), {"format": "pt"})


def load_quantized(module: nn.Module, file: str | Path, activations: str = "int8") -> nn.Module:
    """Fill a network on the meta device from such a file, one tensor at a time, in place.

    Args:
        module: Of the same architecture, with float layers, on the meta device.
        activations: As for :func:`quantize`.

    Returns:
        ``module``, frozen and in eval mode.

    Raises:
        InputError: The file is damaged, of another model, or has NaN or infinite values.
    """
    path = Path(file)
    layers = quantizable_layers(module)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    for layer, owner in layers.items():
        shapes[f"{layer}.codes"] = tuple(owner.weight.movedim(1, -1).shape)
        shapes[f"{layer}.scales"] = shapes.pop(f"{layer}.weight")[:1]
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
        values[name] = tensor
    if missing := sorted(shapes.keys() - values.keys()):
        raise InputError(f"{path} is of another model: it lacks {len(missing)}, {missing[0]} first")

    def fill_int8(name: str, _: Tensor) -> Int8Weight:
        layer = name.removesuffix(".weight")
        return Int8Weight(values.pop(f"{layer}.codes"), values.pop(f"{layer}.scales"))

    return materialize(module, lambda name, _: values.pop(name), activations, fill_int8)
