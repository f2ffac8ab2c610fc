"""The settings of ``train="codes"`` and ``"scales"``, and the values behind their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .. import checks
from ..errors import InputError

INT8_TRAINED = ("codes", "scales")
ALL = "all"  # layers
MOST_HEADROOM = 64  # of sopt_kernels.perturb_int8_

# Ours, not a paper's: zo_lr by a coarse search on the bundled model, of all its layers; fewer of
# them take larger steps (bench/int8_codes_tiny.py). Many directions for each update of codes, as it
# is rounded to whole ones.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "codes": {"zo_lr": 3e-3, "eps": 3e-3, "num_perturbations": 96},
    "scales": {"zo_lr": 3e-7, "eps": 3e-5},
}
_NEUTRAL = {"rank": 4, "hollow": None, "offload": "none"}  # their defaults


@dataclass(frozen=True, kw_only=True)
class CodesSettings:
    """What ``train="codes"`` and ``train="scales"`` add to the settings of a run."""

    headroom: int = field(
        default=8,
        metadata={
            "help": "with train=codes: the largest move of a code in one perturbation, in [1, 64]; "
            "codes stay that far from the ends of int8"
        },
    )
    layers: str = field(
        default=ALL,
        metadata={
            "help": "with train=codes or scales: what is trained: all layers, or those with one of "
            "these parts in their names, such as attn2.to_v,attn2.to_out"
        },
    )
    zo_clip: float | None = field(
        default=None,
        metadata={
            "help": "with train=codes or scales: bound of the loss's slope along a direction, "
            "above 0; none if not given"
        },
    )


_DEFAULT_OF = {setting.name: setting.default for setting in fields(CodesSettings)}


def codes_defaults(train: str) -> dict[str, Any]:
    """The defaults of settings with ``train="codes"`` or ``"scales"``."""
    return dict(_DEFAULTS[train])


def check_codes_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings, each right by itself, that do not go together."""
    train = settings.get("train", "lora")
    foreign = {"codes": [], "scales": ["headroom"]}.get(train, list(_DEFAULT_OF))
    for name in foreign:
        default = _DEFAULT_OF[name]
        if settings.get(name, default) != default:
            raise InputError(f"{name}={settings[name]!r} does not go with train={train!r}")
    if train not in INT8_TRAINED:
        return
    method = settings["method"]
    if method != "zeroth-order":
        raise InputError(
            f"train={train!r} does not go with method={method!r}: int8 weights are trained by "
            "forward passes alone, method='zeroth-order'"
        )
    if settings.get("weights") != "int8":
        raise InputError(
            f"weights={settings['weights']!r} does not go with train={train!r}, which trains int8 "
            "weights: leave it out"
        )
    if settings.get("eps") == "auto":
        raise InputError(
            f"eps='auto' does not go with train={train!r}, whose perturbations are whole codes or "
            "scales: give a size"
        )
    for name, neutral in _NEUTRAL.items():
        if settings.get(name, neutral) != neutral:
            raise InputError(
                f"{name}={settings[name]!r} does not go with train={train!r}, which trains the "
                "whole U-Net in memory"
            )


def _layers(value: Any) -> str:
    if not isinstance(value, str) or not all(part.strip() for part in value.split(",")):
        raise InputError(
            f"layers must be {ALL!r}, or parts of layers' names with commas between, got {value!r}"
        )
    return ",".join(part.strip() for part in value.split(","))


def _clip(value: Any) -> float | None:
    return None if value is None else checks.positive("zo_clip", value)


RULES: dict[str, Callable[[Any], Any]] = {
    "headroom": lambda value: checks.integer("headroom", value, 1, MOST_HEADROOM + 1),
    "layers": _layers,
    "zo_clip": _clip,
}
