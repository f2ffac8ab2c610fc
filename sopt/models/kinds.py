"""The kinds of pipeline that can be trained: components, and what configurations must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..errors import InputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline: its class in diffusers, and the class of each component."""

    pipeline: Any
    components: Mapping[str, Any]

    @property
    def networks(self) -> list[str]:
        """The components that have weights."""
        return [name for name in self.components if not name.startswith("tokenizer")]

    @property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizer of each text encoder."""
        return {
            name: name.replace("text_encoder", "tokenizer")
            for name in self.components
            if name.startswith("text_encoder")
        }


_STABLE_DIFFUSION = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}
# By the name of the pipeline's class: SD1.5 and SD2.1; SDXL and SSD-1B.
KINDS = {
    "StableDiffusionPipeline": Kind(StableDiffusionPipeline, _STABLE_DIFFUSION),
    "StableDiffusionXLPipeline": Kind(
        StableDiffusionXLPipeline,
        _STABLE_DIFFUSION
        | {"text_encoder_2": CLIPTextModelWithProjection, "tokenizer_2": CLIPTokenizer},
    ),
}

NOUNS = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "tokenizer": "tokenizer",
    "tokenizer_2": "second tokenizer",
}


def kind_of(name: str, pipeline: str | None) -> Kind:
    """The kind of the model ``name`` whose pipeline class in diffusers is called ``pipeline``.

    Raises:
        InputError: It is of no kind that can be trained.
    """
    if pipeline not in KINDS:
        raise InputError(
            f"model {name!r}: it must be SD1.5, SD2.1, SDXL or SSD-1B, a {' or a '.join(KINDS)}, "
            f"got a {pipeline}"
        )
    return KINDS[pipeline]


def check_class(name: str, kind: Kind, component: str, found: str | None) -> None:
    """Raise InputError unless ``found`` is the class that the component must have."""
    expected = kind.components[component].__name__
    if found is None:
        raise InputError(f"model {name!r} has no {NOUNS[component]}: expected {component}/")
    # Tokenizers come with and without Fast in their names.
    if not found.startswith(expected):
        raise InputError(
            f"model {name!r}: its {NOUNS[component]} must be a {expected}, got {found}"
        )


def check_configuration(name: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError unless a model with these configurations can be trained."""
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    added = unet.get("addition_embed_type")
    if added not in (None, "text_time") or (added is None) != ("text_encoder_2" not in configs):
        raise InputError(
            f"model {name!r}: its UNet must take a prompt, and with two text encoders their pooled "
            f"text and the picture's size, got addition_embed_type={added!r}"
        )
    if unet["in_channels"] != vae["latent_channels"]:
        raise InputError(
            f"model {name!r}: its UNet must take the VAE's {vae['latent_channels']} latent "
            f"channels, got one with {unet['in_channels']} (an inpainting model?)"
        )
    if not isinstance(unet["sample_size"], int):
        raise InputError(
            f"model {name!r}: its UNet must be made for square pictures, "
            f"got sample_size={unet['sample_size']!r}"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise InputError(
            f"model {name!r}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}, "
            f"got {prediction!r}"
        )
    if "sigma_data" in scheduler:  # noise and network preconditioned as in arXiv 2206.00364
        raise InputError(
            f"model {name!r}: its scheduler must count timesteps, as DDPM does, got one of EDM "
            f"with sigma_data={scheduler['sigma_data']}"
        )


def build_on_meta(kind: Kind, component: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration with no storage behind its weights, in no time."""
    made = kind.components[component]
    with torch.device("meta"):
        if component.startswith("text_encoder"):
            return made(CLIPTextConfig(**config))
        return made.from_config(dict(config))
