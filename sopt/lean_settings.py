"""The settings of runs that never have the whole network in memory: hollow and offload."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import checks
from .errors import InputError, nearest

OFFLOADS = ("none", "stream")
CUTS = ("a11", "a10", "a9", "a8", "a7", "a6", "a5")  # from the smallest hole to the largest
FLOATS = ("float32", "bfloat16", "float16")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class LeanSettings:
    """What leaves a part of the weights, or all but a few, out of memory."""

    hollow: str | float | None = field(
        default=None,
        metadata=_help(
            "train without the middle of the UNet: a cut from a11 (the middle block alone) over a8 "
            "(39 % of SD2.1) to a5, or the share of the parameters to leave out, in (0, 1); what "
            "the middle says is computed beforehand and kept in the run folder"
        ),
    )
    hollow_samples: int | None = field(
        default=None,
        metadata=_help(
            "number of samples to compute beforehand for hollow, at least 1: with less than steps "
            "they are used again; one a step if not given"
        ),
    )
    hollow_dtype: str | None = field(
        default=None,
        metadata=_help(
            f"how they are stored: {', '.join(FLOATS)}; as the weights if not given, and with int8 "
            "weights as what is not quantized"
        ),
    )
    offload: str = field(
        default="none",
        metadata=_help(
            "stream reads the frozen weights from their file piece by piece, while the piece "
            "before computes: for models that do not fit in memory, slower"
        ),
    )
    vae_tiles: bool | None = field(
        default=None,
        metadata=_help(
            "true has the VAE see the pictures in tiles of 256 pixels, and in bfloat16 where the "
            "weights have 16 bits: less memory, and latents that differ a little; if not given, "
            "true for offload=stream and for a hollow, and with weights=int8 tiles in float32"
        ),
    )

    @property
    def lean(self) -> bool:
        """Whether text encoders and the sampling U-Net are read piece by piece: with offload, and
        with a hollow, whose steps take less than they do as a whole."""
        return self.offload == "stream" or self.hollow is not None

    @property
    def tiled(self) -> bool:
        """Whether the VAE sees pictures in tiles, once ``vae_tiles`` is settled."""
        return self.vae_tiles is not False


def check_lean_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings, each right by itself, that do not go together."""
    hollow, streams = settings.get("hollow"), settings.get("offload") == "stream"
    for name in ("hollow_samples", "hollow_dtype"):
        if settings.get(name) is not None and hollow is None:
            raise InputError(f"{name}={settings[name]!r} does not go without hollow")
    if settings.get("train") == "token":
        for name in ["hollow"] * (hollow is not None) + ["offload"] * streams:
            raise InputError(
                f"{name}={settings[name]!r} does not go with train='token', which computes with "
                "the whole network in memory"
            )
    if hollow is not None and settings.get("eps") == "auto":
        raise InputError(
            "eps='auto' does not go with hollow, which stores the activations of the steps' own "
            "samples alone: give a size"
        )
    if streams and settings.get("checkpointing") is False:
        raise InputError(
            "checkpointing=False does not go with offload='stream', which reads a part of the "
            "network again in the backward pass and computes it again"
        )


def _hollow(value: Any) -> str | float | None:
    if value is None or value in CUTS:
        return value
    try:
        share = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"unknown hollow {value!r}, which may be a cut or a share in (0, 1): "
            + nearest(value, CUTS)
        ) from None
    if not 0 < share < 1:
        raise InputError(
            f"a hollow that is a share of the parameters must be in (0, 1), got {value!r}"
        )
    return share


def _or_none(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else rule(value)


RULES: dict[str, Callable[[Any], Any]] = {
    "hollow": _hollow,
    "hollow_samples": _or_none(lambda value: checks.integer("hollow_samples", value, 1, 2**32)),
    "hollow_dtype": _or_none(partial(checks.choice, "hollow_dtype", known=FLOATS)),
    "offload": partial(checks.choice, "offload", known=OFFLOADS),
    "vae_tiles": _or_none(partial(checks.boolean, "vae_tiles")),
}
