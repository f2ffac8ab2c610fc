"""Pictures inside the page: the subject's, and the samples."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image

from ..data import Picture, load_pictures
from ..errors import InputError
from ..run_folder import picture_fingerprint
from ..sampling import png_bytes
from ..settings_file import is_described
from .markup import Markup, element
from .reading import RunFiles

LARGEST_SIDE = 768  # pixels of a picture in the page
LOSSLESS_SIDE = 256  # up to it a sample is embedded as PNG
MOST_PHOTOS = 6
PHOTO_SIDE = 128


def photos(run: RunFiles) -> Markup:
    """The first of the pictures that the run learned from, or a sentence on why there are none."""
    own = _subjects(run)
    if not own:
        if is_described(run.settings.get("images")):
            why = "they were given as objects"
        elif run.subjects is None:
            why = "without a checkpoint nothing says whether they are the same"
        else:
            why = "they are not where the run found them, or have changed since"
        return element("p", f"No pictures of the subject: {why}.", class_="quiet")
    shown = []
    for each in own[:MOST_PHOTOS]:
        image = each.image
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        shown.append(element("figure", _img(image, f"The subject: {each.name}")))
    rest = f"The first {len(shown)} of {len(own)}." if len(own) > len(shown) else None
    return element(
        "section",
        element("h2", "Pictures of the subject"),
        element("div", *shown, class_="pictures photos"),
        element("p", rest, class_="quiet") if rest else None,
    )


def _subjects(run: RunFiles) -> list[Picture]:
    """The pictures where the run found them, if they are the same; a path that is relative to
    another folder may lead to other people's."""
    if run.subjects is None:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself has given them
            found = load_pictures(run.settings.get("images", ()), run.settings.get("prompt"))
    except InputError:  # moved since, or given as objects
        return []
    own = [each for each in found if not each.regularization]
    return own if picture_fingerprint(own) == run.subjects else []


def pictures(run: RunFiles) -> Markup | None:
    """The samples, or a sentence on why there are none."""
    prompt, seed = run.settings.get("prompt"), run.settings.get("seed")
    found = [(name, run.picture(name)) for name in ("before", "after")]
    shown = [
        picture(file, f"{name} training", f"Drawn for “{prompt}”, seed {seed}, {name} training")
        for name, file in found
        if file is not None
    ]
    if not shown:
        why = "samples=false" if run.settings.get("samples") is False else "none was drawn"
        return element("p", f"No sample pictures: {why}.", class_="quiet")
    return element("section", element("h2", "Samples"), element("div", *shown, class_="pictures"))


def picture(file: Path, caption: str, alt: str) -> Markup:
    """A picture inside the page."""
    (loaded,) = load_pictures(str(file), caption, argument="run")
    image = loaded.image
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return element("figure", _img(image, alt), element("figcaption", caption))


def _img(image: Image.Image, alt: str) -> Markup:
    return element(
        "img",
        src=data_uri(image),
        alt=alt,
        width=image.width,
        height=image.height,
        class_="small" if max(image.size) <= LOSSLESS_SIDE else None,
    )


def data_uri(image: Image.Image) -> str:
    """A picture inside an address: PNG if it is small, JPEG otherwise."""
    if max(image.size) <= LOSSLESS_SIDE:
        return _uri("png", png_bytes(image))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=90)
    return _uri("jpeg", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
