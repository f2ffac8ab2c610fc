"""Models from a folder in the layout of diffusers, on the disk or on the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import copy_file, write_json
from ..text_files import read_object
from .int8_file import QuantizedFile, load_quantized
from .kinds import NOUNS, Kind, build_on_meta, check_class, kind_of
from .model import Model, Source, remove_submodules
from .quantized import float_shapes, quantizing
from .weights import TensorFiles, load_files

# The published architectures: configurations without weights or tokenizers.
CONFIGS = Path(__file__).parents[1] / "configs"

# The stem of weight files by library, and the variants of a file that are read: of full precision
# if it is there. An index names the shards.
_STEMS = {"text": "model", "other": "diffusion_pytorch_model"}
_FILES = (
    "{}.safetensors",
    "{}.safetensors.index.json",
    "{}.fp16.safetensors",
    "{}.safetensors.index.fp16.json",
    "{}.fp16.safetensors.index.json",
)


# Of a U-Net on int8 weights, by this package; diffusers does not read it.
INT8_FILE = "diffusion_pytorch_model.int8.safetensors"


def open_folder(name: str, folder: Path, tokenizers: bool = True) -> Model:
    """The model ``name`` in a folder with ``model_index.json`` and one folder per component;
    ``tokenizers`` says whether theirs must be there."""
    index = _read(name, folder / "model_index.json")
    kind = kind_of(name, index.get("_class_name"))
    for component in kind.components:
        found = index.get(component) or [None, None]
        needed = tokenizers or not component.startswith("tokenizer")
        missing = needed and not (folder / component).is_dir()
        check_class(name, kind, component, None if missing else found[1])
    configs = {c: _read(name, folder / c / "config.json") for c in kind.networks}
    configs["scheduler"] = _read(name, folder / "scheduler" / "scheduler_config.json")
    return Model(
        name=name,
        kind=kind,
        configs=configs,
        scheduler_class=index["scheduler"][1],
        weights=FolderWeights(name, kind, folder, configs),
        int8=(folder / "unet" / INT8_FILE).exists(),
    )


def open_hub(name: str) -> Model:
    """The model with this id on the hub of Hugging Face, downloaded if it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    wanted = ["model_index.json", "scheduler/*", "tokenizer*/*", "*/config.json"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        for component in kind_of(
            name, _read(name, folder / "model_index.json").get("_class_name")
        ).networks:
            for pattern in _FILES:  # the first that is there: no more is downloaded than is read
                file = f"{component}/{pattern.format(_stem(component))}"
                snapshot_download(name, allow_patterns=[file])
                if not (folder / file).exists():
                    continue
                if file.endswith(".json"):
                    shards = {f"{component}/{shard.name}" for shard in _shards(name, folder / file)}
                    snapshot_download(name, allow_patterns=sorted(shards))
                break
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"model {name!r}: cannot get it from the hub: {first_line(error)}"
        ) from error
    return open_folder(name, folder)


@dataclass(frozen=True)
class FolderWeights:
    """The components of a folder."""

    name: str
    kind: Kind
    folder: Path
    configs: dict[str, dict[str, Any]]

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None = None
    ) -> nn.Module:
        module = build_on_meta(self.kind, component, self.configs[component])
        remove_submodules(module, dropped)
        stored = self.folder / component / INT8_FILE
        try:
            if stored.exists():
                assert int8 is not None
                return load_quantized(module, stored, int8, dtype)
            prefixes = [f"{name}." for name in dropped]
            return load_files(module, self._files(component), dtype, prefixes, int8)
        except InputError as error:
            raise InputError(
                f"model {self.name!r}: cannot load its {NOUNS[component]}: {error}"
            ) from error

    def source(self, component: str, network: nn.Module) -> Source:
        stored = self.folder / component / INT8_FILE
        try:
            if stored.exists():
                return QuantizedFile(network, stored)
            files = TensorFiles(float_shapes(network), self._files(component))
        except InputError as error:
            raise InputError(
                f"model {self.name!r}: cannot load its {NOUNS[component]}: {error}"
            ) from error
        return quantizing(files, network)

    def tokenizer(self, component: str) -> Any:
        try:
            return self.kind.components[component].from_pretrained(self.folder / component)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model {self.name!r}: cannot load its {NOUNS[component]}: {first_line(error)}"
            ) from error

    def write(self, component: str, folder: Path) -> None:
        beside = self.folder / component
        if component.startswith("tokenizer"):
            files = [file for file in beside.iterdir() if file.suffix in (".json", ".txt")]
        else:
            files = [*self._files(component), *beside.glob("*.safetensors.index*.json")]
        for file in files:
            copy_file(file, folder / file.name)

    def _files(self, component: str) -> list[Path]:
        folder = self.folder / component
        for pattern in _FILES:
            file = folder / pattern.format(_stem(component))
            if file.exists():
                files = _shards(self.name, file) if file.suffix == ".json" else [file]
                for missing in (file for file in files if not file.exists()):
                    raise InputError(f"the file {missing} of its {NOUNS[component]} is missing")
                return files
        others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".bin", ".pt"))
        found = f", which is not read; found {', '.join(others)}, a pickle" if others else ""
        raise InputError(f"{folder} has no {_stem(component)}.safetensors{found}")


def write_folder(model: Model, folder: Path, write_unet: Callable[[Path], None]) -> None:
    """Write a model that :func:`open_folder` reads: the U-Net's weights by ``write_unet``, which is
    given their folder, and all else as the model has it stored. Until all is there, there is no
    ``model_index.json``."""
    index: dict[str, Any] = {"_class_name": model.kind.pipeline.__name__}
    for component, made in model.kind.components.items():
        if component == "unet":
            write_unet(folder / component)
        else:
            model.weights.write(component, folder / component)
        if component in model.configs:
            write_json(folder / component / "config.json", dict(model.configs[component]))
        index[component] = [made.__module__.partition(".")[0], made.__name__]
    write_json(folder / "scheduler" / "scheduler_config.json", dict(model.configs["scheduler"]))
    index["scheduler"] = ["diffusers", model.scheduler_class]
    write_json(folder / "model_index.json", index)


def weights_name(component: str) -> str:
    """The file of a component's weights."""
    return f"{_stem(component)}.safetensors"


def _stem(component: str) -> str:
    return _STEMS["text" if component.startswith("text_encoder") else "other"]


def _shards(name: str, index: Path) -> list[Path]:
    mapping = _read(name, index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f"model {name!r}: {index} names no shards")
    return [index.parent / shard for shard in sorted(set(mapping.values()))]


def _read(name: str, file: Path) -> dict[str, Any]:
    return read_object(file, f"model {name!r} is not a diffusers pipeline: ")


def first_line(error: Exception) -> str:
    """What an error of a library says, without its explanations."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
