"""Files that commands write, checked before the work that fills them."""

import os
from pathlib import Path
from typing import Any

from ..errors import InputError


def json_file(options: dict[str, Any]) -> Path | None:
    if (name := options.pop("json", None)) is None:
        return None
    check_folder("json", Path(name))
    return Path(name)


def check_folder(option: str, file: Path) -> None:
    """Raise InputError if ``file`` could not be written after the long work."""
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"{option} must be a file in a folder that is there and writable, got {str(file)!r}"
        )


def write_json(file: Path | None, figures: Any) -> None:
    if file is not None:
        from .. import files

        files.write_json(file, figures)
