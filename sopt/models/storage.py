"""How the weights of a network are stored in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

INT8 = "int8"


@dataclass(frozen=True)
class Int8Storage:
    """Linear layers and convolutions on int8 codes, the rest in ``dtype``.

    The U-Net's activations are quantized too, unless ``unet_activations`` says otherwise: it runs
    at every step, and integers are fast. Those of text encoders are not: they run once.
    """

    dtype: torch.dtype
    unet_activations: str = "int8"

    def activations(self, component: str) -> str:
        return self.unet_activations if component == "unet" else "float"


Storage = torch.dtype | Int8Storage


def float_dtype(storage: Storage) -> torch.dtype:
    """That of the weights; of a network on int8 ones, that of all its other numbers."""
    return storage.dtype if isinstance(storage, Int8Storage) else storage


def storage_of(weights: str, has_bfloat16: bool) -> Storage:
    """What the setting ``weights`` means; ``has_bfloat16``: computed in, beside int8.

    Example:
        >>> storage_of("bfloat16", has_bfloat16=True)
        torch.bfloat16
    """
    if weights == INT8:
        return Int8Storage(torch.bfloat16 if has_bfloat16 else torch.float32)
    return getattr(torch, weights)
