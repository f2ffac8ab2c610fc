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
REQUIRED = (
    "method", "subject", "seed", "protocol", "chosen", "settings", "scores", "core_seconds",
)  # fmt: skip


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines; a part of a last one, left by a run that was killed, does not count.

    Raises:
        InputError: Another line is not a JSON object, or lacks one of ``REQUIRED``.
    """
    if not file.exists():
        return []
    found = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        entry = parse_object(line, f"line {number} of {file}")
        for name in REQUIRED:
            if name not in entry:
                raise InputError(f"line {number} of {file} lacks {name}: {str(entry)[:80]}")
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
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        write_all(descriptor, line.encode("utf-8"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
