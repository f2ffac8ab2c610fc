"""A file of results, one JSON object a line, to which runs append and from which they go on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import write_all
from ...text_files import parse_object

# What every line of a run has, and the table and the next call need.
REQUIRED: dict[str, Any] = {
    "method": str, "subject": int, "seed": int, "protocol": dict, "chosen": dict, "settings": dict,
    "scores": dict, "core_seconds": (int, float),
}  # fmt: skip
_BEGINNING = b'{"method": "'


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines; a part of a last one, left by a run that was killed, does not count.

    Raises:
        InputError: Another line is not a JSON object, or not of a benchmark: one of ``REQUIRED``
            is missing or of another type.
    """
    if not file.exists():
        return []
    found = []
    content = file.read_bytes()
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        entry = parse_object(line, f"line {number} of {file}")
        for name, kind in REQUIRED.items():
            if not isinstance(entry.get(name), kind):
                raise InputError(
                    f"line {number} of {file} is not of a benchmark: its {name} is "
                    f"{str(entry.get(name, 'missing'))[:80]}"
                )
        found.append(entry)
    return found


def append_line(file: Path, entry: Mapping[str, Any]) -> None:
    """Add a line, on the disk when this returns; what is left of a torn one is cut off first.

    Processes may append to the same file: each waits until the other's line is whole.
    """
    line = json.dumps(entry, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        content = file.read_bytes()
        whole = content[: _whole(content)]
        os.ftruncate(descriptor, len(whole))
        between = "" if not whole or whole.endswith(b"\n") else "\n"
        write_all(descriptor, (between + line).encode("utf-8"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole(content: bytes) -> int:
    """The length of a file's whole lines: all of it but what was left of a line of ours."""
    end = content.rfind(b"\n") + 1
    last = content[end:]
    torn = last.startswith(_BEGINNING) or _BEGINNING.startswith(last)
    return end if torn and not _is_json(last) else len(content)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
