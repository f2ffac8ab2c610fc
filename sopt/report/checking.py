"""What the values in a run's files must be: somebody may have edited a file, or a disk damaged it.

Only values that the report computes with have a rule; they are checked once, when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import repr as shortened
from types import NoneType
from typing import Any, NamedTuple

from ..budget import Budget
from ..errors import InputError

MOST = 1e100  # of a number: sums of such numbers are finite
MOST_COUNTED = 2**63


class Rule(NamedTuple):
    """What a value must be, in words and as a function."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a number, and neither infinite nor NaN."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) <= MOST


def check(where: object, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise InputError for the first value, of those that are there, which breaks its rule."""
    for name, rule in rules.items():
        if name in values and not rule.holds(values[name]):
            got = shortened(values[name])
            raise InputError(f"run: {name} in {where} must be {rule.words}, got {got}")


def check_settings(where: object, settings: Mapping[Any, Any]) -> None:
    for name in settings:
        if not isinstance(name, str):
            raise InputError(f"run: names of settings in {where} must be text, got {name!r}")
    check(where, settings, SETTINGS)


def check_memory(where: object, memory: Mapping[str, Any]) -> None:
    phases = dict.fromkeys(memory, _COUNT)
    check(where, memory, phases | {"process_anonymous": _mapping(_COUNT)})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNTED


def _is_budget(value: Any) -> bool:
    try:
        return value is None or Budget.parse(value).bytes > 0
    except InputError:
        return False


def _are_images(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _mapping(rule: Rule) -> Rule:
    return Rule(
        f"an object in which each value is {rule.words}",
        lambda value: isinstance(value, dict) and all(map(rule.holds, value.values())),
    )


_COUNT = Rule("a whole number, at least 0", _is_count)
_POSITIVE = Rule("a whole number, at least 1", lambda value: _is_count(value) and value > 0)
_AMOUNT = Rule("a finite number, at least 0", lambda value: is_number(value) and value >= 0)
_SHARE = Rule("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
_TEXT = Rule("text", lambda value: isinstance(value, str))
_OBJECT = Rule("an object", lambda value: isinstance(value, dict))

SETTINGS = {
    "images": Rule("a path or a list of paths", _are_images),
    "prompt": _TEXT,
    "steps": _POSITIVE,
    "low_res_ratio": _SHARE,
    "memory_budget": Rule("a size such as 2GiB", _is_budget),
    "schedule": Rule(
        "a name or a number in [0, 1]", lambda value: _TEXT.holds(value) or _SHARE.holds(value)
    ),
}
STEP = {
    "step": _POSITIVE,
    "timestep": _COUNT,
    "p_zo": _SHARE,
    # Of a step that was skipped it is null; what is not finite is left out of charts.
    "loss": Rule("a number or null", lambda value: isinstance(value, (int, float, NoneType))),
    "seconds": _AMOUNT,
}
RECORD = {
    "versions": _OBJECT,
    "machine": _OBJECT,
    "seconds": _mapping(_AMOUNT),
    "num_train_timesteps": _POSITIVE,
}
