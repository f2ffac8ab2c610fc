"""The command that does a run again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from ..config import TrainConfig
from ..errors import InputError
from ..flags import flag
from ..settings_file import is_described
from .markup import Markup, element
from .reading import RunFiles

# What a run must be given, and what decides which defaults its other settings have.
DECISIVE = ("images", "prompt", "output", "method", "train", "token", "initializer", "preset")

# What may be given as a Python object.
OBJECTS = ("model", "images", "prior_images", "schedule")


def repeat(run: RunFiles) -> Markup:
    """The command that does the run again, in another folder."""
    lost = [name for name in OBJECTS if is_described(run.settings.get(name))]
    body: list[Markup] = [element("pre", element("code", repeat_command(run.settings)))]
    if lost:
        note = f"Given as Python objects, so to be put in by hand: {', '.join(lost)}."
        body.append(element("p", note, class_="quiet"))
    return element("section", element("h2", "Do it again"), *body)


def repeat_command(settings: dict[str, Any]) -> str:
    """``sopt train`` with all that differs from the defaults, into a folder beside the first."""
    defaults = _defaults(settings)
    words = ["sopt", "train"]
    for name, value in settings.items():
        if name == "output":
            words += _option(name, f"{str(value).rstrip('/')}-again")
        elif value is not None and (name not in defaults or value != defaults[name]):
            words += _option(name, value)
    return " ".join(map(shlex.quote, words))


def _defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The values that a run like this one has for settings that it is not given.

    Some depend on the family of the model too, which the settings do not tell. A default that is
    a method's own for one family is so for all: left are those that no method replaces.
    """
    given = {name: settings[name] for name in DECISIVE if name in settings}
    try:
        implied = TrainConfig.create(**given).to_dict()
    except InputError:  # a run of another version of sopt: every value is in the command
        return {}
    defaults = {each.name: each.default for each in fields(TrainConfig)}
    return {name: value for name, value in defaults.items() if implied[name] == value}


def _option(name: str, value: Any) -> list[str]:
    option = flag(name)
    if isinstance(value, list):  # of files: with ./ before it a name is no option
        files = map(str, value)
        return [option, *(f"./{file}" if file.startswith("-") else file for file in files)]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]
