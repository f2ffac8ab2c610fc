"""``open_model``: which model a name or an object means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from .folder import open_folder, open_hub
from .kinds import check_configuration
from .loaded import open_pipeline
from .model import Model
from .single_file import SUFFIX, open_single_file

RANDOM = "random:"


def open_model(model: str | Path | Any) -> Model:
    """Read a model's configuration and check that it is of a kind that can be trained.

    Args:
        model: ``"tiny"``, a diffusers folder, a single-file checkpoint, a hub id, a loaded
            pipeline, or ``"random:sd15"`` and the like: the architecture with random weights, for
            benchmarks. A pipeline is not touched: its components are used through copies that
            share its weights.

    Raises:
        InputError: There is no such model, it lacks a component, or it is of another kind.

    Example:
        >>> open_model("tiny").native_resolution
        64
    """
    if isinstance(model, (str, Path)):
        opened = _named(str(model))
    elif hasattr(model, "components"):
        opened = open_pipeline(model)
    else:
        raise InputError(
            f"model must be a name, a folder, a file, a hub id or a pipeline, got {model!r}"
        )
    check_configuration(opened.name, opened.configs)
    return opened


def _named(name: str) -> Model:
    if name == "tiny":
        from .. import tiny  # here, because its drawings are not needed for any other model

        return open_folder(name, tiny.path())
    if name.startswith(RANDOM):
        from .random import open_random  # here: it is for benchmarks only

        return open_random(name.removeprefix(RANDOM))
    path = Path(name).expanduser()
    if path.is_dir():
        return open_folder(name, path)
    if path.is_file():
        if path.suffix != SUFFIX:
            raise InputError(f"model {name!r}: a single file must end in {SUFFIX}")
        return open_single_file(name, path)
    if name.count("/") != 1 or name[0] in "./~" or name.endswith(SUFFIX):
        raise InputError(f"model {name!r}: there is no such folder or file, and it is not a hub id")
    return open_hub(name)
