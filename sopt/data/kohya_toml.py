"""The dataset file of kohya's scripts: folders of pictures, with repeats and class words."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .captions import CAPTION_SUFFIXES
from .layouts import MOST_REPEATS, Found, find_flat

_READ = ("image_dir", "class_tokens", "num_repeats", "is_reg", "caption_extension")


def find_in_toml(path: Path) -> Found:
    """The pictures of every ``[[datasets.subsets]]``, in their order.

    Of a subset these settings count, where they may also stand in its dataset or in ``[general]``:
    ``image_dir`` (from the file's folder), ``class_tokens``, the caption of pictures without one of
    their own, ``num_repeats``, ``is_reg``, ``caption_extension``. Masks (``conditioning_data_dir``)
    are not used, and what says how to train is not read: those are this run's own settings.

    Raises:
        InputError: The file is not TOML or has no subset, or a setting will not do.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError is one
        raise InputError(f"{path} is not a TOML file: {error}") from error
    general = content.get("general", {})
    found, subsets = Found(), 0
    for dataset in _tables(path, "datasets", content):
        for subset in _tables(path, "subsets", dataset):
            subsets += 1
            where = f"{path}, subset {subsets}"
            levels = (general, dataset, subset)
            settings = {k: level[k] for level in levels for k in _READ if k in level}
            found.add(_find_subset(path.parent, settings, where))
            if "conditioning_data_dir" in subset:
                found.masked.append(path.parent / str(subset["conditioning_data_dir"]))
    if not subsets:
        raise InputError(f"{path} must have [[datasets.subsets]] with an image_dir, got none")
    return found


def _tables(path: Path, name: str, parent: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tables = parent.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: {name} must be tables, [[{name}]], got {tables!r}")
    return tables


def _find_subset(root: Path, settings: Mapping[str, Any], where: str) -> Found:
    name, words = settings.get("image_dir"), settings.get("class_tokens")
    repeats, is_prior = settings.get("num_repeats", 1), settings.get("is_reg", False)
    suffix = settings.get("caption_extension", CAPTION_SUFFIXES[0])
    if not isinstance(name, str) or not (root / name).expanduser().is_dir():
        raise InputError(f"{where}: image_dir must be a folder that is there, got {name!r}")
    if words is not None and not (isinstance(words, str) and words.strip()):
        raise InputError(f"{where}: class_tokens must be a text, got {words!r}")
    if type(repeats) is not int or not 1 <= repeats < MOST_REPEATS:
        raise InputError(f"{where}: num_repeats must be in [1, {MOST_REPEATS}), got {repeats!r}")
    if not isinstance(is_prior, bool):
        raise InputError(f"{where}: is_reg must be true or false, got {is_prior!r}")
    if suffix not in CAPTION_SUFFIXES:
        raise InputError(
            f"{where}: caption_extension must be {' or '.join(CAPTION_SUFFIXES)}, got {suffix!r}"
        )
    found = find_flat((root / name).expanduser())
    caption = " ".join(words.split()) if words else None
    found.pictures = [
        replace(picture, folder_caption=caption, repeats=repeats, regularization=is_prior)
        for picture in found.pictures
    ]
    return found
