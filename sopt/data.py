"""Pictures: from a folder, files or PIL images to upright RGB and to pixels in [-1, 1]."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Named to Pillow, so that no other of its decoders (PostScript among them) ever sees a user's file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# What Pillow 13 raised on 30 000 damaged files of these formats, and nothing else.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
NAMED_IN_A_WARNING = 10

PictureSource = str | Path | Image.Image


@dataclass(frozen=True)
class Picture:
    """One picture of the subject. The pixels are decoded on request and not kept: four photos of a
    telephone take 150 MB decoded, more than the rest of a small run."""

    name: str
    source: Path | Image.Image = field(repr=False)

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
            raise InputError(f"images: {where} is not a {_formats()} picture inside") from error
        except DAMAGED as error:
            raise InputError(f"images: {where} is damaged or cut off: {error}") from error


def load_pictures(images: PictureSource | Sequence[PictureSource]) -> list[Picture]:
    """The pictures of a folder (in order of their names), of files, or given as PIL images.

    ``images`` is one of these or a sequence of them, in the order given. Files of a folder that are
    hidden or have another ending are skipped with one warning that names them; a file named by
    itself must be a picture. Every picture is decoded once, completely, so that a damaged one is
    reported before long work begins.

    Raises InputError: nothing there, an empty folder, a damaged file, or not a picture.

    Example:
        >>> from PIL import Image
        >>> [picture.name for picture in load_pictures(Image.new("RGB", (8, 8)))]
        ['image-1']
    """
    sources = [images] if isinstance(images, PictureSource) else images
    if not isinstance(sources, Sequence) or not sources:
        raise InputError(
            f"images: expected a folder, files or PIL images, at least one, got {images!r}"
        )
    pictures: list[Picture] = []
    for position, source in enumerate(sources, start=1):
        pictures += _pictures_of(source, position)
    for picture in pictures:
        picture.image  # noqa: B018  decodes, and raises for a damaged one
    return pictures


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


def square_crop(image: Image.Image) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the square in the middle that :func:`to_pixels` takes."""
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side


def _pictures_of(source: PictureSource, position: int) -> list[Picture]:
    if isinstance(source, Image.Image):
        if 0 in source.size or source.mode == "F":  # F: floats of an unknown range
            raise InputError(
                f"images: image {position} must have pixels, in a mode other than F, "
                f"got size {source.size} and mode {source.mode}"
            )
        return [Picture(f"image-{position}", source)]
    if not isinstance(source, (str, Path)):
        raise InputError(f"images: expected a path or a PIL image, got {source!r}")
    path = Path(source).expanduser()
    if path.is_dir():
        return _pictures_in(path)
    if not path.exists():
        raise InputError(f"images: there is no folder or file {source}")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"images: {source} is not a {_formats()} file")
    return [Picture(path.name, path)]


def _pictures_in(folder: Path) -> list[Picture]:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    pictures = [entry for entry in entries if _is_picture(entry)]
    others = [entry.name for entry in entries if not _is_picture(entry)]
    listed = ", ".join(others[:NAMED_IN_A_WARNING])
    if len(others) > NAMED_IN_A_WARNING:
        listed += f" and {len(others) - NAMED_IN_A_WARNING} more"
    if not pictures:
        content = f"it holds {listed}" if others else "it is empty"
        raise InputError(f"images: the folder {folder} has no {_formats()} file; {content}")
    if others:
        warnings.warn(f"images: skipped in {folder}: {listed}", stacklevel=4)
    return [Picture(entry.name, entry) for entry in pictures]


def _is_picture(entry: Path) -> bool:
    hidden = entry.name.startswith(".")
    return not hidden and entry.suffix.lower() in SUFFIXES and not entry.is_dir()


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


def _formats() -> str:
    return ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]
