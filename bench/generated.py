"""Figures in documents, between two marks that name the command that puts them there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sopt.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
END = "<!-- end -->\n"


def begin(command: str) -> str:
    return f"<!-- begin: python -m {command} -->\n"


def spliced(text: str, command: str, content: str) -> str:
    """``text`` with ``content`` between the marks of ``command``.

    Raises:
        ValueError: It has not the one mark and, somewhere after it, the other.
    """
    before, *rest = text.split(begin(command))
    if len(rest) != 1 or END not in rest[0]:
        raise ValueError(f"there must be one {begin(command)!r}, and {END!r} after it")
    _, _, after = rest[0].partition(END)
    return before + begin(command) + content + END + after


def rewrite(document: str, command: str, content: str, description: str | None) -> None:
    """Put ``content`` into a document; with ``--check``, fail if that would change it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = ROOT / document
    text = path.read_text()
    wanted = spliced(text, command, content)
    if not check:
        write_text(path, wanted)
    elif text != wanted:
        sys.exit(f"{document} does not have the figures of bench/results: python -m {command}")
