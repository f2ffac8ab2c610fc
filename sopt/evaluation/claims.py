"""Which benchmark a folder holds: its settings, and what was asked of each subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text_files import read_object

BENCHMARK_FILE = "benchmark.json"
SUBJECT_FILE = "subject.json"


def claim(file: Path, asked: dict[str, Any], others: Iterable[str]) -> None:
    """Write what the folder of a file is for, or compare with what is there.

    Args:
        asked: What decides the scores, as JSON holds it.
        others: Names that the benchmark writes too. Without its file they are somebody else's.

    Raises:
        InputError: The folder holds another benchmark, or files of somebody else.
    """
    from ..files import write_json

    if file.exists():
        compare(file, asked)
        return
    for name in others:
        if (file.parent / name).exists():
            raise InputError(
                f"output {str(file.parent)!r} has {name} but no {file.name}: it is not of a "
                "benchmark, and files are not overwritten: choose another folder"
            )
    write_json(file, asked)


def compare(file: Path, asked: dict[str, Any]) -> None:
    """Raise InputError if the file is there and has other values under the names in ``asked``."""
    if not file.exists():
        return
    there = read_object(file, "output: ")
    before = _flat({name: there[name] for name in asked if name in there})
    now = _flat(asked)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        folder = str(file.parent)
        if file.name == SUBJECT_FILE:
            raise InputError(
                f"output {folder!r} holds a benchmark of other {name.replace('_', ' ')} than the "
                f"dataset has, {before.get(name)} and not {now.get(name)}: choose another folder, "
                "or put the old ones back"
            )
        raise InputError(
            f"output {folder!r} holds a benchmark with {name}={before.get(name)!r}, "
            f"this one has {now.get(name)!r}: choose another folder, or the same settings"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
