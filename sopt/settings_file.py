"""Settings as plain values, and from YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError
from .text_files import read_text

OF_A_RUN = "config.yaml"  # in its folder
_IN_EVERY_RUN = {"model", "images", "prompt", "output"}


def plain(value: Any) -> Any:
    """A setting as YAML holds it; pictures, pipelines and callables as descriptions."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "size") and hasattr(value, "mode"):
        return "a picture of {} x {} pixels given as an object".format(*value.size)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the callable {value.__module__}.{value.__qualname__}"
    return f"a {type(value).__name__} given as an object"


def is_described(value: Any) -> bool:
    """Whether :func:`plain` had but a description for the setting, or for one of a list."""
    texts = value if isinstance(value, list) else [value]
    return any(re.search(r"given as an object$|^the callable ", str(text)) for text in texts)


def settings_of_run(folder: Path) -> dict[str, Any]:
    """The settings of the run whose folder it is, unchecked; none if there was no run in it, but
    perhaps a file of that name which is another program's.

    Raises:
        InputError: They are damaged.
    """
    file = folder / OF_A_RUN
    settings = read_yaml(file) if file.is_file() else {}
    return settings if settings.keys() >= _IN_EVERY_RUN else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked.

    Raises:
        InputError: The file is missing or is not a YAML mapping.
    """
    text = read_text(path)
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise InputError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a mapping of settings, got {type(settings).__name__}")
    return settings
