"""The segmenter of the bundled model: which pixels of a picture are background, body, parts,
accessory.

It is trained on drawings only, whose layout the renderer knows (``sopt/tiny/train_segmenter.py``);
how well it reads held-out ones stands in ``sopt/tiny/figures.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .drawings import LAYOUT
from .judge import to_pixels

WEIGHTS = Path(__file__).parent / "segmenter.safetensors"


class Segmenter(nn.Module):
    """A small U-shaped convolutional network."""

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.SiLU())

        self.fine = stage(3, 24, 5, 2)  # 32 x 32
        self.middle = nn.Sequential(stage(24, 64, 3, 2), stage(64, 64))  # 16 x 16
        self.coarse = nn.Sequential(stage(64, 96, 3, 2), stage(96, 96))  # 8 x 8
        self.to_middle = stage(96 + 64, 64)
        self.to_fine = stage(64 + 24, 48)
        self.out = nn.Conv2d(48, 4 * len(LAYOUT), 1)  # four pixels of each place

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, 4, 64, 64) of pixels (n, 3, 64, 64)."""
        fine = self.fine(pixels)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.to_middle(torch.cat([F.interpolate(coarse, scale_factor=2), middle], dim=1))
        fine = self.to_fine(torch.cat([F.interpolate(middle, scale_factor=2), fine], dim=1))
        return F.pixel_shuffle(self.out(fine), 2)


@cache
def load() -> Segmenter:
    """The trained segmenter, in float32."""
    segmenter = Segmenter()
    segmenter.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return segmenter.eval().requires_grad_(False)


@torch.no_grad()
def segment(images: Sequence[Image.Image]) -> Tensor:
    """What each pixel of pictures shows, (n, 64, 64): its index in ``LAYOUT``."""
    return load()(to_pixels(images)).argmax(dim=1)
