"""Settings as plain values, and from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import InputError


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
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the settings in {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a mapping of settings, got {type(settings).__name__}")
    return settings
