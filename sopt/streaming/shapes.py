"""Sizes of what goes through a U-Net, found by running it without storage."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..models import Model
from .network import Inputs, UnitNetwork


def shapes_of(model: Model, side: int) -> tuple[UnitNetwork, Inputs]:
    """The U-Net and what it takes for one picture of ``side`` pixels, all on the meta device."""
    with _disable_current_modes():
        config, latent = model.configs["unet"], side // model.vae_factor
        meta = torch.device("meta")
        added = None
        if model.takes_sizes:
            pooled = config["projection_class_embeddings_input_dim"]
            pooled -= 6 * config["addition_time_embed_dim"]
            added = {
                "text_embeds": torch.empty(1, pooled, device=meta),
                "time_ids": torch.empty(1, 6, device=meta),
            }
        inputs = Inputs(
            torch.empty(1, config["in_channels"], latent, latent, device=meta),
            torch.empty(1, device=meta),
            torch.empty(1, 1, config["cross_attention_dim"], device=meta),
            added,
        )
        return UnitNetwork(model.skeleton("unet")), inputs


def skip_elements(model: Model, side: int) -> int:
    """Numbers in all skips of one forward together."""
    network, inputs = shapes_of(model, side)
    last = max(i for i, unit in enumerate(network.units) if unit.pushes)
    with _disable_current_modes(), torch.no_grad():
        (state,) = network.run([inputs], range(last + 1))
    return sum(skip.numel() for skip in state.skips)
