"""The eight backgrounds: flat areas and a few details whose places come from the scene's seed."""

from __future__ import annotations

import aggdraw
import numpy as np
from PIL import Image

from .scenes import Scene

# sky, ground, height of the horizon
_AREAS = {
    "beach": ((135, 206, 240), (238, 214, 165), 0.62),
    "meadow": ((170, 220, 250), (120, 200, 90), 0.55),
    "snow": ((205, 215, 228), (250, 252, 255), 0.60),
    "night": ((22, 24, 60), (40, 42, 70), 0.75),
    "city": ((200, 205, 210), (110, 110, 115), 0.78),
    "desert": ((250, 200, 130), (225, 165, 85), 0.60),
    "room": ((240, 225, 200), (160, 115, 80), 0.72),
    "forest": ((70, 110, 75), (55, 75, 45), 0.70),
}


def background(scene: Scene, side: int) -> Image.Image:
    """The backdrop of ``scene``, RGB, ``side`` x ``side``."""
    rng = np.random.default_rng(scene.variation)
    sky, ground, horizon = _AREAS[scene.background]
    level = (horizon + rng.uniform(-0.04, 0.04)) * side
    image = Image.new("RGB", (side, side), sky)
    canvas = aggdraw.Draw(image)

    def box(x0: float, y0: float, x1: float, y1: float, colour: tuple[int, int, int]) -> None:
        canvas.rectangle((x0, y0, x1, y1), None, aggdraw.Brush(colour))

    def disc(x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
        canvas.ellipse((x - r, y - r, x + r, y + r), None, aggdraw.Brush(colour))

    name, u = scene.background, side / 64
    if name == "forest":
        for x in np.arange(4, 64, 13) + rng.uniform(-3, 3, 5):
            box(x * u, 0, (x + 5) * u, level, (85, 60, 40))
    if name == "city":
        for x in range(0, 64, 13):
            top = rng.uniform(6, 30) * u
            box(x * u, top, (x + 11) * u, level, (125, 135, 155))
            for y in np.arange(top + 3 * u, level - 3 * u, 7 * u):
                box((x + 3) * u, y, (x + 8) * u, y + 3 * u, (240, 225, 150))
    box(0, level, side, side, ground)
    if name == "beach":
        box(0, level - 9 * u, side, level, (50, 130, 200))
        disc(rng.uniform(8, 56) * u, 8 * u, 5 * u, (255, 235, 120))
    elif name == "meadow":
        for x in rng.uniform(2, 62, 7):
            disc(x * u, level + rng.uniform(4, 22) * u, 1.6 * u, (250, 250, 250))
    elif name == "snow":
        for x, y in rng.uniform(2, 62, (14, 2)):
            disc(x * u, y * u, 1.3 * u, (255, 255, 255))
    elif name == "night":
        for x, y in rng.uniform(2, 62, (12, 2)) * (1, 0.65):
            disc(x * u, y * u, 1.0 * u, (250, 250, 220))
        disc(rng.uniform(10, 54) * u, 9 * u, 6 * u, (245, 240, 205))
    elif name == "desert":
        disc(rng.uniform(10, 54) * u, 10 * u, 6 * u, (255, 120, 60))
        x = rng.uniform(-5, 40)
        canvas.polygon(
            [x * u, level, (x + 14) * u, level - 9 * u, (x + 30) * u, level],
            None,
            aggdraw.Brush((235, 180, 105)),
        )
    elif name == "room":
        x = rng.uniform(6, 42) * u
        box(x, 6 * u, x + 16 * u, 22 * u, (255, 255, 255))
        box(x + 2 * u, 8 * u, x + 14 * u, 20 * u, (150, 205, 240))
    canvas.flush()
    return image
