"""Presets: named values of several settings, for those that are not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import checks
from .errors import InputError

# "paper" of a token and "script" are in sopt.token.settings; of what else is trained, "paper" is
# the defaults. "averaged" is ours, found on the bundled model (docs/tiny.md).
_OF_LORA: dict[str, dict[str, Any]] = {"paper": {}, "averaged": {"average": 0.75}}
_OF_TOKEN = ("paper", "script")
PRESETS = tuple(dict.fromkeys((*_OF_LORA, *_OF_TOKEN)))


@dataclass(frozen=True, kw_only=True)
class PresetSettings:
    """Whose values a run has."""

    preset: str = field(
        default="paper",
        metadata={
            "help": "whose values the settings have that are not given: paper; with train=lora "
            "averaged, ours: average=0.75; with train=token script, of ZOODiP's authors"
        },
    )


def preset_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a LoRA's preset.

    Raises:
        InputError: What is trained has no such preset.
    """
    train, preset = given.get("train", "lora"), given.get("preset", PresetSettings.preset)
    known = {"lora": tuple(_OF_LORA), "token": _OF_TOKEN}.get(train, ("paper",))
    if preset not in known:
        raise InputError(
            f"preset={preset!r} does not go with train={train!r}, which has {' and '.join(known)}"
        )
    return _OF_LORA[preset] if train == "lora" else {}


RULES: dict[str, Callable[[Any], Any]] = {
    "preset": partial(checks.choice, "preset", known=PRESETS),
}
