"""The configurations of the published models build networks of the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import sopt
from sopt.models import LORA_TARGETS

CONFIGS = Path(sopt.__file__).parent / "configs"
VAE_PARAMETERS = 83_653_863


def build(kind, folder):
    """The network on the meta device: shapes without storage."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        return kind.from_config(config)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("family", "unet_parameters", "lora_parameters_per_rank"),
    [
        ("sd15", 859_520_964, 199_296),
        ("sd21-base", 865_910_724, 207_488),
        ("sd21", 865_910_724, 207_488),
        ("sdxl", 2_567_463_684, None),
        ("ssd1b", 1_331_334_404, None),
    ],
)
def test_a_family_has_its_published_size(family, unet_parameters, lora_parameters_per_rank):
    unet = build(UNet2DConditionModel, CONFIGS / family / "unet")
    assert parameters(unet) == unet_parameters
    assert parameters(build(AutoencoderKL, CONFIGS / family / "vae")) == VAE_PARAMETERS
    if lora_parameters_per_rank is not None:
        targets = [m for name, m in unet.named_modules() if name.endswith(LORA_TARGETS)]
        assert len(targets) == 128  # 16 transformer blocks, 2 attentions, 4 projections
        assert sum(m.in_features + m.out_features for m in targets) == lora_parameters_per_rank
