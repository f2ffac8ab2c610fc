"""Shapes of real lists of trained parameters."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import sopt

Shape = tuple[int, ...]


def sd15_lora(rank: int = 4) -> list[Shape]:
    """LoRA on the attention of Stable Diffusion 1.5: 256 tensors, 797,184 parameters at rank 4."""
    from diffusers import UNet2DConditionModel

    from sopt.models import LORA_TARGETS

    config = Path(sopt.__file__).parent / "configs" / "sd15" / "unet" / "config.json"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config.read_text()))
    shapes: list[Shape] = []
    for name, module in unet.named_modules():
        if name.endswith(LORA_TARGETS):
            shapes += [(rank, module.in_features), (module.out_features, rank)]
    return shapes


def language_model(width: int = 2048, layers: int = 24, vocabulary: int = 50_272) -> list[Shape]:
    """A decoder of OPT's layout; as called, OPT-1.3B's (Zhang et al. 2022): 1.3 G parameters."""
    layer: list[Shape] = [(width, width), (width,)] * 4  # attention: q, k, v, out
    layer += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    layer += [(width,)] * 4  # two layer norms
    return [(vocabulary, width), (2050, width), *layer * layers, (width,), (width,)]
