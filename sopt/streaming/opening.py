"""Networks of a model whose frozen weights are read as they are needed, or only in part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Fingerprint
from ..errors import InputError
from ..models import Model
from ..models.model import Source
from ..models.storage import Int8Storage, Storage, float_dtype
from ..models.weights import materialize
from ..quantization import quantizable_layers
from .network import UnitNetwork
from .reader import Reader
from .units import Unit, list_units

_PIECE = 1 << 20  # elements looked at together: the check makes copies of them


def units_of(model: Model) -> list[Unit]:
    """The units of the model's U-Net."""
    return list_units(model.skeleton("unet"))


def open_network(
    model: Model,
    dtype: Storage,
    device: torch.device,
    *,
    hole: range = range(0),
    stream: bool = False,
    checkpointing: bool = False,
) -> UnitNetwork:
    """The U-Net without the units of a hole, whose weights are never read.

    Args:
        dtype: Of its weights; of what is left in memory also int8, each layer quantized as it is
            read. What is streamed is floating point: to quantize it at each visit takes longer
            than to compute with it.
        hole: Positions in :func:`units_of`.
        stream: Weights stay in the file, else all that is left is loaded.
        checkpointing: As for :class:`UnitNetwork`; a streamed network always does.
    """
    units = units_of(model)
    dropped = [path for i in hole for path in units[i].modules]
    unet = model.skeleton("unet", dropped=dropped)
    source = model.source("unet", unet)
    if not stream:
        unet = _load(unet, source, dtype, device)
        return UnitNetwork(unet, units, hole=hole, checkpointing=checkpointing)
    parts = {i: unit.modules for i, unit in enumerate(units) if i not in hole}
    reader = Reader(unet, parts, source, float_dtype(dtype), device)
    return UnitNetwork(unet, units, reader, hole, checkpointing=True)


def open_text_encoder(model: Model, component: str, dtype: Storage, device: torch.device) -> Any:
    """A text encoder whose layers stay in the file, and of whose vocabulary only the rows of the
    words in use are read; its weights are floating point, as in :func:`open_network`."""
    dtype = float_dtype(dtype)
    encoder = model.skeleton(component)
    source = model.source(component, encoder)
    layers = [
        (path, module)
        for path, module in encoder.named_modules()
        if path.rpartition(".")[0].endswith("encoder.layers")
    ]
    reader = Reader(encoder, {i: (p,) for i, (p, _) in enumerate(layers)}, source, dtype, device)
    for i, (_, layer) in enumerate(layers):
        layer.register_forward_pre_hook(_visit(reader, i, (i + 1) % len(layers)))
    for path, module in list(encoder.named_modules()):
        if path.endswith("token_embedding"):
            owner, _, leaf = path.rpartition(".")
            rows = _Rows(f"{path}.weight", module.embedding_dim, source, dtype, device)
            setattr(encoder.get_submodule(owner), leaf, rows)
    return _load(encoder, source, dtype, device)


def network_fingerprint(model: Model, dtype: Storage, device: torch.device) -> str:
    """What :func:`sopt.checkpoint.fingerprint` says of the whole U-Net, read unit by unit.

    Raises:
        InputError: A weight is NaN or infinite.
    """
    network = open_network(model, dtype, device, stream=True)
    assert isinstance(network.weights, Reader)
    found = Fingerprint()
    for i in range(len(network.units)):
        network.weights.visit(i, i + 1 if i + 1 < len(network.units) else None)
        for name, weight in network.weights.tensors(i).items():
            _check_finite(model, name, weight)
            found.add(name, weight)
    network.weights.close()
    return found.hexdigest()


class _Rows(nn.Module):
    """An embedding whose matrix stays in the file."""

    def __init__(
        self, name: str, width: int, source: Source, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._read = source.read
        self._name, self._width, self._dtype, self._device = name, width, dtype, device

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.empty(ids.numel(), self._width, dtype=self._dtype)
        for place, row in enumerate(ids.flatten().tolist()):
            self._read(self._name, rows[place], row)
        return rows.view(*ids.shape, self._width).to(self._device)


def _visit(reader: Reader, part: int, following: int) -> Callable[..., None]:
    return lambda module, arguments: reader.visit(part, following)


def _load(network: nn.Module, source: Source, dtype: Storage, device: torch.device) -> Any:
    """Read every weight that is still on the meta device; a U-Net's perhaps into int8."""
    int8 = dtype.activations("unet") if isinstance(dtype, Int8Storage) else None
    layers = {} if int8 is None else quantizable_layers(network)

    def fill(name: str, weight: Tensor) -> Tensor:
        if not weight.is_meta:
            return weight
        exact = name.rpartition(".")[0] in layers  # quantized; its bias stays float32
        value = torch.empty(weight.shape, dtype=torch.float32 if exact else float_dtype(dtype))
        source.read(name, value)
        return value

    network = materialize(network, fill, int8)
    return network if device.type == "cpu" else network.to(device)


def _check_finite(model: Model, name: str, weight: Tensor) -> None:
    if not weight.is_floating_point():
        return
    for piece in weight.split(max(1, _PIECE // weight[0].numel())):  # rows: in any order
        if not torch.isfinite(piece).all():
            raise InputError(
                f"model {model.name!r}: the weights must be finite, "
                f"but {name} of its unet has NaN or infinite values"
            )
