"""Models from one checkpoint file in the layout of the original releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTokenizer

from ..errors import InputError
from ..quantization import quantize
from ..settings_file import read_yaml
from .folder import CONFIGS, first_line, open_folder
from .kinds import NOUNS
from .loaded import check_finite
from .model import Model, Source, remove_submodules

SUFFIX = ".safetensors"
# A file has no tokenizer. All published families use this one, which differs in padding only.
TOKENIZER = "openai/clip-vit-large-patch14"


def open_single_file(name: str, path: Path) -> Model:
    """The model in a file of SD1.5, SD2.1, SDXL or SSD-1B; configurations are the published ones.

    A file of SD2.1 does not say what its U-Net predicts: the ``.yaml`` that was published beside it
    does, and must have the same stem.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"model {name!r} is damaged: {first_line(error)}") from error
    family = _family(name, path, names)
    model = open_folder(name, CONFIGS / family, tokenizers=False)
    return replace(model, weights=SingleFileWeights(model, path, CONFIGS / family))


@dataclass(frozen=True)
class SingleFileWeights:
    """The components of a file, read by diffusers through a memory map."""

    model: Model
    path: Path
    configs: Path

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None = None
    ) -> nn.Module:
        options = {"config": str(self.configs), "torch_dtype": dtype, "local_files_only": True}
        try:
            if component.startswith("text_encoder"):
                network = self._text_encoder(component, options)
            else:
                reader = self.model.kind.components[component]
                network = reader.from_single_file(str(self.path), subfolder=component, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"model {self.model.name!r}: cannot load its {NOUNS[component]}: "
                f"{first_line(error)}"
            ) from error
        network.eval().requires_grad_(False)
        check_finite(self.model.name, component, network)
        remove_submodules(network, dropped)
        if int8 is not None:
            quantize(network, int8)
        return network

    def source(self, component: str, network: nn.Module) -> Source:
        raise InputError(
            f"model {self.model.name!r} is a single file, whose weights cannot be read one at a "
            "time: for hollow, offload='stream', train='codes' and 'scales' make a diffusers "
            f"folder of it first, with {self.model.kind.pipeline.__name__}.from_single_file(...)"
            ".save_pretrained(folder)"
        )

    def write(self, component: str, folder: Path) -> None:
        raise AssertionError("what would write a part of the model has asked for its source")

    def _text_encoder(self, component: str, options: dict[str, Any]) -> Any:
        others = dict.fromkeys((*self.model.kind.components, "scheduler", "safety_checker"))
        del others[component]
        if self.model.takes_sizes:
            del others["safety_checker"]
        pipeline = self.model.kind.pipeline.from_single_file(str(self.path), **others, **options)
        return getattr(pipeline, component)

    def tokenizer(self, component: str) -> Any:
        beside = self.path.parent / component
        try:
            tokenizer = CLIPTokenizer.from_pretrained(beside if beside.is_dir() else TOKENIZER)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model {self.model.name!r} has no tokenizer, and {TOKENIZER} cannot be had from "
                f"the hub: put the {component}/ folder of a diffusers model beside the file"
            ) from error
        if component == "tokenizer_2" or self.configs.name.startswith("sd21"):
            tokenizer.pad_token = "!"
        return tokenizer


def _family(name: str, path: Path, names: set[str]) -> str:
    """Which published model the names of the weights are of."""

    def has(prefix: str) -> bool:
        return any(each.startswith(prefix) for each in names)

    if has("conditioner.embedders.1."):
        return "sdxl" if has("model.diffusion_model.middle_block.1.") else "ssd1b"
    if has("cond_stage_model.transformer."):
        return "sd15"
    if not has("cond_stage_model.model."):
        raise InputError(
            f"model {name!r} must be a checkpoint of SD1.5, SD2.1, SDXL or SSD-1B with its text "
            "encoders and VAE"
        )
    settings = path.with_suffix(".yaml")
    if not settings.exists():
        raise InputError(
            f"model {name!r} is a checkpoint of SD2.1, which does not say what its UNet predicts: "
            f"put the .yaml that was published with it beside it, as {settings.name}"
        )
    params = read_yaml(settings).get("model", {}).get("params", {})
    parameterization = params.get("parameterization", "eps")
    return "sd21" if parameterization == "v" else "sd21-base"
