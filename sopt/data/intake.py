"""Pictures of a run: from folders, files and PIL images to pictures with captions."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import InputError
from .captions import Rows, fill_placeholders, key, read_rows, subject_words
from .kohya_toml import find_in_toml
from .layouts import Found, Located, find_pictures, list_names, locate, short_name
from .picture import SUFFIXES, Picture, list_formats

logger = logging.getLogger(__name__)

SHOWN_OF_A_CAPTION = 70  # characters

PictureSource = str | Path | Image.Image


def load_pictures(
    images: PictureSource | Sequence[PictureSource],
    prompt: str | None,
    regularization: bool = False,
    argument: str | None = None,
) -> list[Picture]:
    """The pictures of a folder (in order of their names), of files, or given as PIL images.

    The layout of a folder is recognised from its files (see
    :func:`~sopt.data.layouts.find_pictures`). The caption of a picture is, in this order, that of
    the file beside it, of its row in a list, the name of its kohya folder, or ``prompt``; the
    placeholders ``[trigger]`` and ``{}`` become the subject's words (see
    :func:`~sopt.data.captions.fill_placeholders`). One warning names the files of folders that are
    none of these, and one the masks, which are not used. Every picture is decoded once, completely,
    so that a damaged one is reported before long work begins.

    Args:
        images: A folder, a file, a PIL image or a dataset file of kohya's (.toml), or a sequence of
            these, in the order given.
        prompt: The caption of pictures that have none; None if all must have one.
        regularization: The pictures are for prior preservation, all of them. Otherwise those of a
            kohya folder's ``reg/`` are.
        argument: What messages begin with; the setting's name if not given.

    Raises:
        InputError: Nothing there, an empty folder, a file that is damaged or not a picture; a
            caption that is missing, empty or not text; a list of captions that does not fit.

    Example:
        >>> from PIL import Image
        >>> load_pictures(Image.new("RGB", (8, 8)), "a sks dog")
        [Picture(name='image-1', caption='a sks dog', repeats=1, regularization=False)]
    """
    argument = argument or ("prior_images" if regularization else "images")
    sources = [images] if isinstance(images, PictureSource) else images
    if not isinstance(sources, Sequence) or not sources:
        raise InputError(
            f"{argument}: expected a folder, files or PIL images, at least one, got {images!r}"
        )
    intake = _Intake(prompt, regularization)
    try:
        for position, source in enumerate(sources, start=1):
            intake.take(source, position)
        for picture in intake.pictures:
            picture.image  # noqa: B018  decodes, and raises for a damaged one
    except InputError as error:
        raise InputError(f"{argument}: {error}") from error
    for skipped in intake.skipped:
        warnings.warn(
            f"{argument}: skipped in {skipped} (pictures are {list_formats()} files)", stacklevel=2
        )
    if intake.masked:
        listed = list_names(Path(), intake.masked)
        warnings.warn(
            f"{argument}: masks are not supported and not used, those of {listed}", stacklevel=2
        )
    return intake.pictures


def describe_pictures(pictures: Sequence[Picture]) -> str:
    """A table of file names, repeats and captions, long captions cut; pictures for prior
    preservation last, under a line of their own.

    Example:
        >>> from PIL import Image
        >>> print(describe_pictures(load_pictures(Image.new("RGB", (8, 8)), "a sks dog")))
        picture  repeats  caption
        image-1        1  a sks dog
    """
    width = max(map(len, ["picture", *(picture.name for picture in pictures)]))
    lines = [f"{'picture':{width}}  repeats  caption"]
    for regularization in (False, True):
        chosen = [picture for picture in pictures if picture.regularization == regularization]
        if chosen and regularization:
            lines.append("for prior preservation:")
        for picture in chosen:
            caption = textwrap.shorten(picture.caption, SHOWN_OF_A_CAPTION, placeholder=" ...")
            lines.append(f"{picture.name:{width}}  {picture.repeats:7}  {caption}")
    return "\n".join(lines)


def warn_of_enlarging(pictures: Sequence[Picture], side: int) -> None:
    """Say which pictures have fewer pixels than the run shows the model of them."""
    small = [(min(each.image.size), each.name) for each in pictures if min(each.image.size) < side]
    if small:
        smallest, name = min(small)
        logger.warning(
            "enlarged to %d pixels, and the model learns their blur: %d of %d pictures; the "
            "smallest is %s with %d", side, len(small), len(pictures), name, smallest,
        )  # fmt: skip


class _Intake:
    """Sources taken one by one."""

    def __init__(self, prompt: str | None, regularization: bool) -> None:
        self.pictures: list[Picture] = []
        self.skipped: list[str] = []  # a folder and the names in it
        self.masked: list[Path] = []
        self._prompt = prompt
        self._regularization = regularization
        self._rows: dict[Path, Rows] = {}  # of the folders of files given by themselves

    def take(self, source: object, position: int) -> None:
        if isinstance(source, Image.Image):
            if 0 in source.size or source.mode == "F":  # F: floats of an unknown range
                raise InputError(
                    f"image {position} must have pixels, in a mode other than F, "
                    f"got size {source.size} and mode {source.mode}"
                )
            name = f"image-{position}"
            caption = self._caption(Located(Path(name)), name)
            self.pictures.append(
                Picture(name, source, caption, regularization=self._regularization)
            )
        elif isinstance(source, (str, Path)):
            self._take_path(Path(source).expanduser())
        else:
            raise InputError(f"expected a path or a PIL image, got {source!r}")

    def _take_path(self, path: Path) -> None:
        if path.is_dir():
            self._take_found(find_pictures(path), path)
        elif not path.exists():
            raise InputError(f"there is no folder or file {path}")
        elif path.suffix.lower() == ".toml":
            self._take_found(find_in_toml(path), path.parent)
        elif path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is not a {list_formats()} or .toml file")
        else:
            folder = path.parent
            if folder not in self._rows:
                self._rows[folder] = read_rows(folder)
            rows = self._rows[folder]
            self._add(locate(path, rows), folder)
            self.masked += [path] if key(path) in rows.masks else []

    def _take_found(self, found: Found, folder: Path) -> None:
        for located in found.pictures:
            self._add(located, folder)
        if found.skipped:
            self.skipped.append(f"{folder}: {list_names(folder, found.skipped)}")
        self.masked += found.masked

    def _add(self, located: Located, folder: Path) -> None:
        name = short_name(located.path, folder)
        self.pictures.append(
            Picture(
                name,
                located.path,
                self._caption(located, str(located.path)),
                located.repeats,
                self._regularization or located.regularization,
            )
        )

    def _caption(self, located: Located, name: str) -> str:
        caption = located.caption or located.folder_caption or self._prompt
        if caption is None:
            raise InputError(f"{name} has no caption of its own, so prior_prompt must be given")
        if located.caption is None:
            return caption
        subject = located.folder_caption or subject_words(self._prompt)
        return fill_placeholders(caption, subject, f"the caption of {name}")
