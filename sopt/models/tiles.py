"""The VAE in overlapping tiles of the picture, each encoded or decoded by itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor


def enable_tiles(vae: Any, side: int, factor: int) -> None:
    """Have a diffusers VAE see larger pictures in square tiles of ``side`` pixels.

    Args:
        factor: Pixels a latent element, along one side.
    """
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor
    # diffusers' own blends go line by line: 30 tiles of a picture of 1024 pixels are 11,000
    # operations, half of what a plan of sampling took.
    vae.blend_v = partial(_blend, dim=2)
    vae.blend_h = partial(_blend, dim=3)


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """Fade from the end of the tile ``before`` into the beginning of ``tile``, in place.

    ``tile[i] = before[i - extent] * (1 - i / extent) + tile[i] * (i / extent)`` for the first
    ``extent`` lines along ``dim``, to the bits of that in the tile's dtype, line after line.
    """
    extent = min(before.shape[dim], tile.shape[dim], extent)
    lines = [extent if d == dim else 1 for d in range(tile.dim())]
    share = torch.arange(extent, dtype=torch.float64, device="cpu") / extent
    into = share.float().to(tile.device).view(lines)
    away = (1 - share).float().to(tile.device).view(lines)
    start = tile.narrow(dim, 0, extent)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start.copy_((end * away).to(tile.dtype) + (start * into).to(tile.dtype))
    return tile
