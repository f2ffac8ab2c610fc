"""Which files of a folder are pictures, whatever trainer the folder was made for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from .captions import Rows, caption_file, key, read_caption, read_rows
from .picture import is_picture_file, list_formats

NAMED_IN_A_MESSAGE = 10
MOST_REPEATS = 10_000  # above, a folder's number is a date or the like
_KOHYA = re.compile(r"([0-9]+)_(.*\S.*)")  # <repeats>_<trigger class>


@dataclass(frozen=True)
class Located:
    """A picture's file and what its surroundings say about it."""

    path: Path
    caption: str | None = None  # its own
    folder_caption: str | None = None  # of a kohya folder: rare word and class, or the class
    repeats: int = 1
    regularization: bool = False


@dataclass
class Found:
    """What a folder holds."""

    pictures: list[Located] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    masked: list[Path] = field(default_factory=list)  # pictures with a mask, which is not used

    def add(self, other: Found) -> None:
        self.pictures += other.pictures
        self.skipped += other.skipped
        self.masked += other.masked


def find_pictures(folder: Path) -> Found:
    """The pictures of a folder of any of these layouts, in order of their names.

    * Flat: pictures, with ``x.txt`` or ``x.caption`` beside ``x.jpg`` (ai-toolkit, kohya), with a
      list (see :func:`~sopt.data.captions.read_rows`), or with neither (google/dreambooth). A list
      may name pictures elsewhere.
    * imagefolder with a split: the same in ``train/``.
    * kohya: ``img/<repeats>_<trigger class>/x.jpg``, and ``reg/<repeats>_<class>/`` for prior
      preservation; or the folder that holds the ``<repeats>_<trigger class>``.

    Raises:
        InputError: It has no picture; or captions or repeats will not do.
    """
    entries = _entries(folder)
    rows = read_rows(folder)
    if not rows.files and not any(map(is_picture_file, entries)):
        images, priors, train = (folder / name for name in ("img", "reg", "train"))
        if _has_kohya_folders(images):
            found, used = _find_kohya(images), [images]
            if _has_kohya_folders(priors):
                found.add(_find_kohya(priors, regularization=True))
                used.append(priors)
            found.skipped += [entry for entry in entries if entry not in used]
            return found
        if _has_kohya_folders(folder):
            return _find_kohya(folder)
        if train.is_dir():
            found = find_flat(train)
            found.skipped += [entry for entry in entries if entry != train]
            return found
    return find_flat(folder)


def locate(path: Path, rows: Rows) -> Located:
    """A picture with its own caption: that of the file beside it, else that of its row."""
    beside = caption_file(path)
    return Located(path, read_caption(beside) if beside else rows.captions.get(key(path)))


def find_flat(folder: Path) -> Found:
    """The pictures of a folder without folders of its own, with the captions beside them."""
    entries, rows = _entries(folder), read_rows(folder)
    masks = {key(mask) for mask in rows.masks.values()}
    for name, path in rows.files.items():
        if not path.is_file():
            raise InputError(f"{rows.source} has a row for {path}, which is not there")
        if not is_picture_file(path):
            raise InputError(f"{rows.source} has a row for {path}, not a {list_formats()} file")
        if name in masks:
            raise InputError(f"{rows.source} has {path} both as a picture and as a mask")
    pictures = [entry for entry in entries if is_picture_file(entry) and key(entry) not in masks]
    here = set(map(key, pictures))
    pictures += [path for name, path in rows.files.items() if name not in here]
    if not pictures:
        content = f"it holds {list_names(folder, entries)}" if entries else "it is empty"
        raise InputError(f"the folder {folder} has no {list_formats()} file; {content}")
    used = masks | set(map(key, pictures)) | {key(rows.source or folder)}
    used |= {key(file) for picture in pictures if (file := caption_file(picture))}
    skipped = [e for e in entries if key(e) not in used and not _holds_any(e, used)]
    masked = [rows.files[name] for name in rows.masks]
    return Found([locate(path, rows) for path in pictures], skipped, masked)


def _find_kohya(folder: Path, regularization: bool = False) -> Found:
    found = Found()
    for entry in _entries(folder):
        if not (match := _kohya(entry)):
            found.skipped.append(entry)
            continue
        repeats = int(match[1])
        if not 1 <= repeats < MOST_REPEATS:
            raise InputError(
                f"the repeats in the name of the folder {entry} must be in "
                f"[1, {MOST_REPEATS}), got {repeats}"
            )
        inside = find_flat(entry)
        inside.pictures = [
            replace(
                picture,
                folder_caption=" ".join(match[2].split()),
                repeats=repeats,
                regularization=regularization,
            )
            for picture in inside.pictures
        ]
        found.add(inside)
    return found


def _kohya(path: Path) -> re.Match[str] | None:
    return _KOHYA.fullmatch(path.name) if path.is_dir() else None


def _has_kohya_folders(folder: Path) -> bool:
    return folder.is_dir() and any(map(_kohya, folder.iterdir()))


def _holds_any(folder: Path, files: set[str]) -> bool:
    return any(name.startswith(key(folder) + os.sep) for name in files)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda entry: entry.name)


def list_names(folder: Path, paths: list[Path]) -> str:
    """Paths below ``folder`` as part of a sentence, the first few of them if they are many."""
    listed = ", ".join(short_name(path, folder) for path in paths[:NAMED_IN_A_MESSAGE])
    if len(paths) > NAMED_IN_A_MESSAGE:
        listed += f" and {len(paths) - NAMED_IN_A_MESSAGE} more"
    return listed


def short_name(path: Path, folder: Path) -> str:
    """``path`` from ``folder`` on, if it is below it."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
