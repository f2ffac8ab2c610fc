"""Adapter files into the networks of a pipeline, as diffusers itself does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from torch import nn

from .model import Model

NAME = "sopt"  # the adapter's name inside the networks


def load_adapter(model: Model, file: Path, networks: Mapping[str, nn.Module], scale: float) -> None:
    """Put what a LoRA file holds for these networks into them, times ``scale``, in place.

    Args:
        file: Of diffusers, peft or kohya.
        networks: "unet" and the text encoders, or some of them.
    """
    loader = model.kind.pipeline
    options = {"unet_config": networks["unet"].config} if _is_sdxl_unet(model, networks) else {}
    state, alphas, metadata = loader.lora_state_dict(
        file.parent, weight_name=file.name, return_lora_metadata=True, **options
    )
    common = {
        "network_alphas": alphas,
        "adapter_name": NAME,
        "metadata": metadata,
        "low_cpu_mem_usage": True,  # else peft draws weights from torch's global generator first
    }
    for component, network in networks.items():
        if not any(key.startswith(f"{component}.") for key in state):
            continue
        if component == "unet":
            loader.load_lora_into_unet(state, unet=network, **common)
        else:
            loader.load_lora_into_text_encoder(
                state, text_encoder=network, prefix=component, **common
            )
        set_weights_and_activate_adapters(network, [NAME], [scale])


def _is_sdxl_unet(model: Model, networks: Mapping[str, nn.Module]) -> bool:
    return model.takes_sizes and "unet" in networks
