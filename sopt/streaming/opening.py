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
from ..models.storage import Storage, float_dtype
from ..models.weights import materialize
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
) -> UnitNetwork:
    """The U-Net without the units of a hole, whose weights are never read.

    Args:
        dtype: Of its weights, or int8: a layer of a file of floats is quantized as it is read. A
            streamed one is read again and again, which ``model.spool`` makes cheap.
        hole: Positions in :func:`units_of`.
        stream: Weights stay in the file, else all that is left is loaded.
    """
    units, dtype = units_of(model), model.storage("unet", dtype)
    dropped = [path for i in hole for path in units[i].modules]
    unet = model.skeleton("unet", dropped, dtype)
    source = model.source("unet", unet)
    if not stream:
        unet = _load(unet, source, dtype, device)
        return UnitNetwork(unet, units, hole=hole)
    parts = {i: unit.modules for i, unit in enumerate(units) if i not in hole}
    reader = Reader(unet, parts, source, float_dtype(dtype), device)
    return UnitNetwork(unet, units, reader, hole, checkpointing=True)


def open_text_encoder(model: Model, component: str, dtype: Storage, device: torch.device) -> Any:
    """A text encoder whose layers stay in the file, and of whose vocabulary only the rows of the
    words in use are read."""
    encoder = model.skeleton(component, dtype=dtype)
    source = model.source(component, encoder)
    layers = [
        (path, module)
        for path, module in encoder.named_modules()
        if path.rpartition(".")[0].endswith("encoder.layers")
    ]
    parts = {i: (path,) for i, (path, _) in enumerate(layers)}
    reader = Reader(encoder, parts, source, float_dtype(dtype), device)
    for i, (_, layer) in enumerate(layers):
        layer.register_forward_pre_hook(_visit(reader, i, (i + 1) % len(layers)))
    for path, module in list(encoder.named_modules()):
        if path.endswith("token_embedding"):
            owner, _, leaf = path.rpartition(".")
            name, width = f"{path}.weight", module.embedding_dim
            rows = _Rows(name, width, source, float_dtype(dtype), device)
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
    """Read every weight that is still on the meta device."""

    def fill(name: str, weight: Tensor) -> Tensor:
        if not weight.is_meta:
            return weight
        kind = float_dtype(dtype) if isinstance(weight, nn.Parameter) else weight.dtype
        value = torch.empty(weight.shape, dtype=kind)
        source.read(name, value)
        return value

    network = materialize(network, fill)
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
