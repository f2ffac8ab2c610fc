"""Rules for the values of settings: each function gives the value in its type, or an InputError
that names the setting, the value and the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .errors import InputError, nearest


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}: {nearest(value, known)}")
    return value


def integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise InputError(f"{name} must be a whole number in [{low}, {high}), got {value!r}")
    return value


def boolean(name: str, value: Any) -> bool:
    known = {"true": True, "false": False}
    value = known.get(str(value).lower(), value)
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r}")
    return value


def number(name: str, value: Any) -> float:
    # YAML 1.1 reads 1e-3, without a dot, as text: so text that is a number counts as one.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            if math.isfinite(converted := float(value)):
                return converted
        except ValueError:
            pass
    raise InputError(f"{name} must be a finite number, got {value!r}")


def positive(name: str, value: Any) -> float:
    converted = number(name, value)
    if converted <= 0:
        raise InputError(f"{name} must be above 0, got {value!r}")
    return converted
