"""Draws scenes, anti-aliased, with aggdraw. A drawing is a pure function of its scene.

Parts behind, the patterned body with its markings, parts on top, then the accessory are painted in
that order, all moved by the scene's pose.
"""

from __future__ import annotations

from collections.abc import Callable

import aggdraw
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backgrounds import background
from .bodies import BODIES, Body, Part, Points, accessory_parts, box, ellipse
from .scenes import Scene

SIDE = 64  # pixels
LAYOUT = ("background", "body", "parts", "accessory")  # what a pixel can show

RGB = {
    "red": (214, 45, 40),
    "orange": (245, 140, 30),
    "yellow": (248, 220, 55),
    "green": (60, 165, 70),
    "blue": (50, 95, 215),
    "purple": (130, 60, 175),
    "pink": (250, 145, 190),
    "brown": (125, 80, 45),
}
_ROLES = {
    "dark": (35, 32, 38),
    "light": (245, 245, 248),
    "glass": (190, 225, 240),
    "beak": (240, 170, 40),
    "gold": (255, 215, 90),
    "cyan": (60, 215, 225),
    "magenta": (225, 40, 150),
}


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """The picture of ``scene``, RGB, ``side`` x ``side`` pixels, anti-aliased.

    Example:
        >>> from sopt.tiny.scenes import random_scene
        >>> draw(random_scene(np.random.default_rng(0))).size
        (64, 64)
    """
    s = scene.subject
    body = BODIES[s.kind](s.identity)
    to_pixels = _placement(scene, side)
    image = background(scene, side)
    backdrop = image.copy()
    colours = _ROLES | {"second": RGB[s.second_colour]}
    pen = aggdraw.Pen(_ROLES["dark"], side / 32)

    def paint(parts: list[Part]) -> None:
        for role, points in parts:
            if role == "hole":
                image.paste(backdrop, mask=_mask([to_pixels(points)], side))
                continue
            canvas = aggdraw.Draw(image)
            outlined = None if role == "dark" else aggdraw.Pen(_ROLES["dark"], side / 64)
            canvas.polygon(to_pixels(points), outlined, aggdraw.Brush(colours[role]))
            canvas.flush()

    paint(body.behind)
    outlines = [to_pixels(points) for points in body.main]
    canvas = aggdraw.Draw(image)
    for outline in outlines:
        canvas.polygon(outline, pen, None)
    canvas.flush()
    skin = _skin(scene, side, to_pixels, body)
    image.paste(skin, mask=_mask(outlines, side))
    paint(body.top)
    paint(accessory_parts(s.accessory, body))
    return image


def layout(scene: Scene, side: int = SIDE) -> NDArray[np.uint8]:
    """Which of ``LAYOUT`` each pixel of ``scene`` shows, (side, side): its index there.

    Example:
        >>> from sopt.tiny.scenes import random_scene
        >>> layout(random_scene(np.random.default_rng(0))).max() < len(LAYOUT)
        True
    """
    s = scene.subject
    body, to_pixels = BODIES[s.kind](s.identity), _placement(scene, side)
    shown = np.zeros((side, side), np.uint8)

    def fill(label: int, outlines: list[Points]) -> None:
        mask = _mask([to_pixels(points) for points in outlines], side)
        shown[np.asarray(mask) >= 128] = label

    for role, points in body.behind:
        fill(0 if role == "hole" else 2, [points])
    fill(1, body.main)
    for _, points in body.top:
        fill(2, [points])
    for _, points in accessory_parts(s.accessory, body):
        fill(3, [points])
    return shown


def _placement(scene: Scene, side: int) -> Callable[[Points], list[float]]:
    """From the subject's own frame to pixels, by the scene's pose."""
    c, w = np.cos(scene.tilt), np.sin(scene.tilt)
    mirror = -1.0 if scene.viewpoint == "left" else 1.0

    def to_pixels(points: Points) -> list[float]:
        x, y = points[:, 0] * mirror, points[:, 1]
        turned = np.stack([c * x - w * y, w * x + c * y], axis=1) * scene.scale
        return ((turned + scene.centre) * side).ravel().tolist()

    return to_pixels


def _mask(outlines: list[list[float]], side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    canvas = aggdraw.Draw(mask)
    for outline in outlines:
        canvas.polygon(outline, None, aggdraw.Brush(255))
    canvas.flush()
    return mask


def _skin(
    scene: Scene, side: int, to_pixels: Callable[[Points], list[float]], body: Body
) -> Image.Image:
    """The body's colour, pattern and markings, to be cut out by its mask."""
    s = scene.subject
    image = Image.new("RGB", (side, side), RGB[s.colour])
    canvas = aggdraw.Draw(image)
    brush = aggdraw.Brush(RGB[s.second_colour])
    steps = np.arange(-1.4, 1.4, 0.34)
    if s.pattern == "striped":
        for x in steps:
            canvas.polygon(to_pixels(box(x, -2, x + 0.15, 2)), None, brush)
    elif s.pattern == "dotted":
        for row, y in enumerate(steps):
            for x in steps + 0.17 * (row % 2):
                canvas.polygon(to_pixels(ellipse(x, y, 0.085, 0.085)), None, brush)
    elif s.pattern == "checkered":
        for row, y in enumerate(np.arange(-1.4, 1.4, 0.2)):
            for x in np.arange(-1.4, 1.4, 0.4) + 0.2 * (row % 2):
                canvas.polygon(to_pixels(box(x, y, x + 0.15, y + 0.15)), None, brush)
    x, y, rx, ry = body.torso
    marking = aggdraw.Brush(_ROLES["dark"])
    for k, size in ((6, 0.10), (8, 0.07)):  # two blots at the identity's own places
        angle, radius = 2 * np.pi * s.identity[k], 0.25 + 0.45 * s.identity[k + 1]
        blot = ellipse(x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle), size, size)
        canvas.polygon(to_pixels(blot), None, marking)
    canvas.flush()
    return image
