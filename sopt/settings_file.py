"""Settings as plain values, and from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import InputError
from .text_files import read_text


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
