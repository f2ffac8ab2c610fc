"""The VAE in tiles: blended to the bits of diffusers' own, line by line, loops."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from sopt.models.tiles import enable_tiles

SMALL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_are_blended_as_diffusers_blends_them(dtype):
    vae = AutoencoderKL(**SMALL).to(dtype).eval().requires_grad_(False)
    latents = torch.randn(2, 4, 25, 36).to(dtype)
    pixels = torch.randn(2, 3, 50, 72).to(dtype)
    with torch.no_grad():
        whole = vae.decode(latents).sample
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 16
        decoded, encoded = vae.decode(latents).sample, vae.encode(pixels).latent_dist.mean
        enable_tiles(vae, 32, 2)
        assert torch.equal(vae.decode(latents).sample, decoded)
        assert torch.equal(vae.encode(pixels).latent_dist.mean, encoded)
    assert not torch.equal(whole, decoded)  # there were tiles
