"""The settings of a run with what depends on the model and the machine filled in and checked."""

from __future__ import annotations

import warnings
from dataclasses import replace

from .codes.settings import INT8_TRAINED
from .config import TrainConfig
from .devices import float_name, resolve_device, resolve_weights
from .errors import InputError
from .hollow.cuts import cut_of
from .models import Model
from .models.storage import INT8
from .token.settings import check_tau, check_timesteps

MUCH = 1.5  # times or a part of the model's own resolution: further away it draws badly


def resolve(config: TrainConfig, model: Model) -> TrainConfig:
    """The settings with device, weights and resolution filled in and checked against the model.

    Raises:
        InputError: The machine has no such device or dtype, or a side or the rank does not go with
            the model.
    """
    factor, smallest = model.vae_factor, model.smallest_resolution
    resolution = model.native_resolution if config.resolution is None else config.resolution
    multiple = model.side_multiple
    if resolution % multiple or resolution < smallest:
        raise InputError(
            f"resolution must be a multiple of {multiple} (of the VAE's factor, and of 8 in "
            f"diffusers) and at least {smallest}, got {resolution}"
        )
    device = resolve_device(config.device)
    weights = resolve_weights(_weights(config, model), device)
    if config.train in INT8_TRAINED:
        model.source("unet", model.skeleton("unet"))  # one at a time, as saving will read them
    if resolution > MUCH * model.native_resolution or MUCH * resolution < model.native_resolution:
        warnings.warn(
            f"resolution={resolution}: the model was made for {model.native_resolution} pixels",
            stacklevel=4,
        )
    last = model.num_train_timesteps - 1 if config.max_timestep is None else config.max_timestep
    check_timesteps(config.min_timestep, last, model.num_train_timesteps)
    widest = max(model.configs["unet"]["block_out_channels"])
    if config.train == "lora" and config.rank > widest:
        raise InputError(
            f"rank must be at most {widest}, the width of the model's widest layers, above which a "
            f"LoRA cannot express more, got {config.rank}"
        )
    if config.subspace and config.schedule != 0.0:
        check_tau(config.tau, {e: model.configs[e]["hidden_size"] for e in model.kind.tokenizers})
    tiles = config.vae_tiles
    if tiles is None and (config.lean or weights != INT8):
        tiles = config.lean  # with int8 it stays None: where else the VAE takes more than the steps
    config = replace(
        config,
        device=device,
        resolution=resolution,
        weights=weights,
        max_timestep=last,
        vae_tiles=tiles,
    )
    if config.hollow is not None:
        config = replace(
            config,
            hollow=cut_of(config.hollow, model).name,
            hollow_dtype=config.hollow_dtype or float_name(weights, device),
        )
    low = config.low_resolution
    if config.schedule != 1.0 and (low % factor or low < smallest):
        fitting = sorted({max(smallest, low // factor * factor), (low // factor + 1) * factor})
        fitting = [side for side in fitting if smallest <= side <= resolution]
        raise InputError(
            f"low_res_ratio={config.low_res_ratio:g} makes pictures of {low} pixels, but a side "
            f"must be a multiple of the VAE's factor {factor} and at least {smallest}: "
            + " or ".join(f"{side / resolution:g} (side {side})" for side in fitting)
            + " would fit"
        )
    return config


def _weights(config: TrainConfig, model: Model) -> str | None:
    """What the settings, or a model that is int8 already, say of the weights."""
    if not model.int8:
        return config.weights
    if config.weights not in (None, INT8):
        raise InputError(
            f"weights={config.weights!r} does not go with model {model.name!r}, whose UNet is int8 "
            "already: take the float model that it was made of"
        )
    return INT8
