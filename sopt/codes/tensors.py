"""The int8 weights of a network by name, and what tells one network's from another's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..checkpoint import Fingerprint
from ..errors import InputError
from ..quantization import Int8Layer


def int8_tensors(unet: nn.Module, kind: str) -> dict[str, Tensor]:
    """The ``codes`` or the ``scales`` of a U-Net, by canonical name ``unet.<layer>.<kind>``,
    sorted."""
    layers = {path: layer for path, layer in unet.named_modules() if isinstance(layer, Int8Layer)}
    return {f"unet.{path}.{kind}": getattr(layers[path], kind) for path in sorted(layers)}


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

    BLAKE2b over names, shapes and a sample of values, of codes and scales. It does not depend on
    how the rest of the network is stored.
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
