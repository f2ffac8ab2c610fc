"""Text and JSON that somebody else may have written: what is wrong with it, in one sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .errors import InputError


def read_text(file: Path, argument: str = "") -> str:
    """A file's text, which is UTF-8 with or without a byte order mark.

    Args:
        file: Where it is.
        argument: What the message begins with, such as ``"data: "``.

    Raises:
        InputError: It cannot be read, or is something else.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{argument}{file} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{argument}cannot read {file}: {error.strerror}") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """The value that a text holds.

    Raises:
        InputError: It is not JSON; the message begins with ``where``.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{where} is not JSON: it is nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are two
        raise InputError(f"{where} is not JSON: {error}") from error


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Raises:
        InputError: It is not JSON, or another kind of value.
    """
    content = parse_json(text, where)
    if not isinstance(content, dict):
        raise InputError(f"{where} must be a JSON object, got {str(content)[:80]}")
    return content


def checksum(value: Any) -> str:
    """Of plain values: BLAKE2b over their JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_json(file: Path, argument: str = "") -> Any:
    """The value in a JSON file; for errors see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(file, argument), f"{argument}{file}")


def read_object(file: Path, argument: str = "") -> dict[str, Any]:
    """The object in a JSON file; for errors see :func:`read_text` and :func:`parse_object`."""
    return parse_object(read_text(file, argument), f"{argument}{file}")
