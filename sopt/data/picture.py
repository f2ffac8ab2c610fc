"""A picture: from a file or a PIL image to upright RGB and to pixels in [-1, 1]."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Named to Pillow, so that no other of its decoders (PostScript among them) ever sees a user's file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# What Pillow 13 raised on 30 000 damaged files of these formats, and nothing else.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Picture:
    """One picture and what it shows in words. The pixels are decoded on request and not kept: four
    photos of a telephone take 150 MB decoded, more than the rest of a small run."""

    name: str  # for people: the path below the folder that was given
    source: Path | Image.Image = field(repr=False)
    caption: str
    repeats: int = 1  # a step draws it this many times as often as a picture of 1
    regularization: bool = False  # shows the class, not the subject: for prior preservation

    @property
    def image(self) -> Image.Image:
        """Upright RGB: EXIF rotation applied, transparency flattened on white, 16 bits scaled to 8.

        Raises InputError if the file is damaged or is not a picture.
        """
        where = self.source if isinstance(self.source, Path) else self.name
        try:
            if isinstance(self.source, Image.Image):
                return _upright_rgb(self.source)
            with Image.open(self.source, formats=FORMATS) as image:
                return _upright_rgb(image)
        except UnidentifiedImageError as error:
            raise InputError(f"{where} is not a {list_formats()} picture inside") from error
        except DAMAGED as error:
            raise InputError(f"{where} is damaged or cut off: {error}") from error


def weighted_index(draw: int, pictures: Sequence[Picture]) -> int:
    """Which picture a draw takes, if each has as many tickets as it has repeats.

    Args:
        draw: Number of a ticket, in [0, sum of the repeats); uniform draws give each picture its
            repeats' share.
        pictures: At least one.

    Example:
        >>> once = Picture("a", Path("a.png"), "sks dog")
        >>> thrice = Picture("b", Path("b.png"), "sks dog", repeats=3)
        >>> [weighted_index(draw, [once, thrice]) for draw in range(4)]
        [0, 1, 1, 1]
    """
    return bisect_right(list(accumulate(picture.repeats for picture in pictures)), draw)


def square_crop(image: Image.Image) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the square in the middle that :func:`to_pixels` takes."""
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side


def to_pixels(image: Image.Image, resolution: int) -> torch.Tensor:
    """Centre crop to a square, antialiased (Lanczos) resize, and ``v / 127.5 - 1``.

    Returns a float32 tensor (1, 3, resolution, resolution) in [-1, 1]. An image that has the
    wanted size already keeps its exact values.

    Example:
        >>> from PIL import Image
        >>> to_pixels(Image.new("RGB", (30, 20), "white"), 8).shape
        torch.Size([1, 3, 8, 8])
    """
    left, top, side = square_crop(image)
    square = image.convert("RGB").resize(
        (resolution, resolution), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    values = torch.from_numpy(np.array(square, dtype=np.float32))  # (height, width, 3)
    return values.div_(127.5).sub_(1).permute(2, 0, 1)[None].contiguous()


def is_picture_file(path: Path) -> bool:
    """By its name: not hidden, not a folder, and of an ending that is read."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in SUFFIXES and not path.is_dir()


def list_formats() -> str:
    """The endings that are read, as part of a sentence."""
    return ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT:  # Pillow's own conversion clips at 255 instead of scaling
        values = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        image = Image.fromarray(values.round().astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
