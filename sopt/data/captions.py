"""Captions: from a file beside the picture or a row of a list, with placeholders filled."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text_files import parse_json, read_text

CAPTION_SUFFIXES = (".txt", ".caption")
COLUMNS = ("text", "prompt", "caption")  # the first that has a text counts
PLACEHOLDERS = ("[trigger]", "{}")  # of ai-toolkit, and of ZOODiP and CustomConcept101
ARTICLES = ("a", "an", "the")


@dataclass
class Rows:
    """The rows of a folder's list of captions. Files are keyed by :func:`key`."""

    source: Path | None = None  # the list
    captions: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)  # of a picture


def key(path: Path) -> str:
    """One name for ``a.png``, ``./a.png`` and ``b/../a.png``."""
    return os.path.normpath(path)


def caption_file(picture: Path) -> Path | None:
    """The file beside ``picture`` that holds its caption, if there is one.

    Raises:
        InputError: There are two.
    """
    found = [path for suffix in CAPTION_SUFFIXES if (path := picture.with_suffix(suffix)).is_file()]
    if len(found) > 1:
        raise InputError(
            f"{picture} has two caption files, {found[0].name} and {found[1].name}: keep one"
        )
    return found[0] if found else None


def read_caption(path: Path) -> str:
    """The caption in a file.

    Raises:
        InputError: It cannot be read, is not UTF-8, is empty, or has more than one line.
    """
    return _checked(read_text(path), f"the caption file {path}")


def read_rows(folder: Path) -> Rows:
    """The captions that a list in ``folder`` gives to pictures; empty if there is no list.

    ``metadata.jsonl`` and ``metadata.csv`` (imagefolder of Hugging Face datasets), ``data.jsonl``
    (invoke-training): a row has ``file_name``, a path from the list's folder, and a caption in
    ``text``, else ``prompt``, else ``caption``; it may have a ``mask``. ``cc.json`` (ZOODiP), in
    the folder or up to two above: captions of files by name of the folder.

    Raises:
        InputError: A list that cannot be read, two lists, two rows for one file, or a row without
            file name or caption.
    """
    if (parquet := folder / "metadata.parquet").is_file():
        raise InputError(f"{parquet} is not read: write its rows as metadata.jsonl")
    lists = [folder / name for name in _READERS if (folder / name).is_file()]
    subject = folder.absolute().name
    places = (folder, *folder.absolute().parents[:2])
    lists += [path for each in places if subject in _read_cc(path := each / "cc.json")][:1]
    if len(lists) > 1:
        raise InputError(f"two lists of captions, {lists[0]} and {lists[1]}: keep one")
    if not lists:
        return Rows()
    rows = Rows(source := lists[0])
    if source.name == "cc.json":
        for name, text in _read_cc(source)[subject].items():
            _add(rows, folder, {"file_name": name, "text": text}, str(source))
    else:
        for line, row in _READERS[source.name](source):
            _add(rows, folder, row, f"{source}, line {line}")
    return rows


def fill_placeholders(caption: str, subject: str | None, where: str) -> str:
    """``caption`` with the subject's words in place of ``[trigger]`` and ``{}``.

    The words are a rare word and, mostly, a class: "sks dog". Where the class follows the
    placeholder already, the rare word alone takes its place.

    Args:
        caption: With placeholders or without.
        subject: The words, if they are known; see :func:`subject_words`.
        where: What to call the caption in an error.

    Raises:
        InputError: There is a placeholder and ``subject`` is None.

    Example:
        >>> fill_placeholders("a photo of a [trigger] on a beach", "sks dog", "a.txt")
        'a photo of a sks dog on a beach'
        >>> fill_placeholders("a {} dog at night", "sks dog", "a.txt")
        'a sks dog at night'
    """
    found = [placeholder for placeholder in PLACEHOLDERS if placeholder in caption]
    if not found:
        return caption
    if subject is None:
        raise InputError(
            f"{where} has the placeholder {found[0]}, but the prompt does not say which words "
            "stand for it: they are known from a prompt such as 'a sks dog' or 'sks'"
        )
    rare, _, kind = subject.partition(" ")
    pattern = "(?:" + "|".join(map(re.escape, PLACEHOLDERS)) + ")"
    if kind:
        caption = re.sub(rf"{pattern}(?=\s+{re.escape(kind)}\b)", lambda _: rare, caption)
    return re.sub(pattern, lambda _: subject, caption)


def subject_words(prompt: str | None) -> str | None:
    """The words of a prompt that stand for the subject, if that is certain: an article, and then a
    rare word, a class, or both.

    Example:
        >>> subject_words("a sks dog"), subject_words("a photo of sks dog")
        ('sks dog', None)
    """
    words = (prompt or "").split()
    if words and words[0].lower() in ARTICLES:
        del words[0]
    return " ".join(words) if 1 <= len(words) <= 2 else None


def _add(rows: Rows, folder: Path, row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be an object, got {row!r}")
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: a row must have a file_name, got {name!r}")
    picture = folder / name
    if key(picture) in rows.files:
        raise InputError(f"{where}: there are two rows for {name}")
    texts = [row[column] for column in COLUMNS if row.get(column) not in (None, "")]
    if not texts:
        raise InputError(f"{where}: the row of {name} must have a {', '.join(COLUMNS)} column")
    rows.files[key(picture)] = picture
    rows.captions[key(picture)] = _checked(texts[0], f"{where}: the caption of {name}")
    if row.get("mask"):
        rows.masks[key(picture)] = folder / str(row["mask"])


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where} must be a text, got {text!r}")
    lines = text.strip().splitlines()
    if not lines:
        raise InputError(f"{where} is empty")
    if len(lines) > 1:  # the first, all of them, or one drawn by chance: trainers differ
        raise InputError(f"{where} must be one line, got {len(lines)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, escaped in JSON
        raise InputError(f"{where} is not a valid text: {error.reason}") from error
    return " ".join(lines[0].split())


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON may hold the rarer line separators inside a text.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def _csv_lines(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error


def _read_cc(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Captions by folder and file; empty if there is no such file, or another of this name."""
    if not path.is_file():
        return {}
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict):
        return {}
    return {name: captions for name, captions in content.items() if isinstance(captions, dict)}


_READERS = {"metadata.jsonl": _json_lines, "metadata.csv": _csv_lines, "data.jsonl": _json_lines}
