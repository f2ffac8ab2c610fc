"""The int8 weights of a network by name, and what tells one network's from another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..checkpoint import Fingerprint
from ..errors import InputError
from ..models import Model
from ..models.int8_file import read_int8
from ..quantization import LARGEST, Int8Layer, Int8Weight, quantizable_layers
from .settings import ALL


def int8_tensors(unet: nn.Module, kind: str) -> dict[str, Tensor]:
    """The ``codes`` or the ``scales`` of a U-Net, by canonical name ``unet.<layer>.<kind>``,
    sorted."""
    layers = {path: layer for path, layer in unet.named_modules() if isinstance(layer, Int8Layer)}
    return {f"unet.{path}.{kind}": getattr(layers[path], kind) for path in sorted(layers)}


def layer_of(name: str) -> str:
    """The path of the layer that a canonical name is of."""
    return name.removeprefix("unet.").rpartition(".")[0]


@dataclass(frozen=True)
class Room:
    """Which layers have codes in +-(127 - headroom), so that they can be moved.

    They are quantized so from the model's floats, by larger scales: cutting off the largest codes
    would change the largest weights of each row.
    """

    headroom: int = 0
    layers: str = ALL

    def largest(self, layer: str) -> int:
        """Code of a layer."""
        return LARGEST - self.headroom if is_chosen(layer, self.layers) else LARGEST


def room_of(config: Any) -> Room:
    """That the codes of a run with these settings have."""
    return Room(config.headroom, config.layers) if config.train == "codes" else Room()


def is_chosen(layer: str, layers: str) -> bool:
    """Whether a layer's path is among what the setting ``layers`` names."""
    return layers == ALL or any(part in layer for part in layers.split(","))


def base_weights(model: Model, room: Room) -> Iterator[tuple[str, Int8Weight]]:
    """The int8 weights of a model's U-Net, one layer after the other."""
    skeleton = model.skeleton("unet")
    source = model.source("unet", skeleton)
    for layer, owner in quantizable_layers(skeleton).items():
        yield layer, read_int8(source, layer, owner.weight, room.largest(layer))


def make_room(unet: nn.Module, model: Model, room: Room) -> None:
    """Give the layers of a U-Net on int8 weights room for moves, in place."""
    skeleton = model.skeleton("unet")
    source = model.source("unet", skeleton)
    for path, owner in quantizable_layers(skeleton).items():
        if room.largest(path) == LARGEST:
            continue
        weight = read_int8(source, path, owner.weight, room.largest(path))
        layer = unet.get_submodule(path)
        assert isinstance(layer, Int8Layer)
        layer.codes.copy_(weight.codes)
        layer.scales.copy_(weight.scales)


def check_scales(name: str, scales: Mapping[str, Tensor]) -> None:
    """Raise InputError unless every scale is positive, as moves of codes need it."""
    for path, scale in scales.items():
        if not (scale > 0).all():
            raise InputError(
                f"model {name!r}: {path} must be above 0 for train='codes', "
                f"got {float(scale.min()):g}"
            )


class CodesFingerprint:
    """A name for the int8 weights of a network, whose layers come one at a time, in any order.

    BLAKE2b over names, shapes and all values of codes and scales. It does not depend on how the
    rest of the network is stored.
    """

    def __init__(self) -> None:
        self._tensors = Fingerprint()

    def add(self, layer: str, codes: Tensor, scales: Tensor) -> None:
        self._tensors.add(f"{layer}.codes", codes)
        self._tensors.add(f"{layer}.scales", scales)

    def hexdigest(self) -> str:
        return self._tensors.hexdigest()

    @classmethod
    def of(cls, unet: nn.Module) -> str:
        """That of a whole network."""
        found = cls()
        for path, layer in unet.named_modules():
            if isinstance(layer, Int8Layer):
                found.add(path, layer.codes, layer.scales)
        return found.hexdigest()
