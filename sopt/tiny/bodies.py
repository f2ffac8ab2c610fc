"""The shapes of the eight classes and of the accessories, bent by the identity's numbers.

Every shape is a polygon in the subject's own frame: x to the front, y down, the body about
[-1, 1] squared. The first six identity numbers set proportions; the other four place the markings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (corners, 2)
Part = tuple[str, Points]  # colour role, outline


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    a = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    c, s = np.cos(turn), np.sin(turn)
    px, py = rx * np.cos(a), ry * np.sin(a)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, float)


class Body:
    """The parts of one subject, and where an accessory and the markings go."""

    def __init__(self) -> None:
        self.behind: list[Part] = []
        self.main: list[Points] = []
        self.top: list[Part] = []
        self.crest = (0.0, -0.8)  # where a hat sits
        self.crest_width = 0.4
        self.neck = (0.0, 0.0)
        self.torso = (0.0, 0.0, 0.5, 0.4)  # ellipse that markings lie in


def _dog(v: tuple[float, ...]) -> Body:
    b = Body()
    rx, ry = 0.52 + 0.2 * v[0], 0.24 + 0.14 * v[1]
    leg, head = 0.28 + 0.3 * v[2], 0.22 + 0.13 * v[3]
    hx, hy = 0.48 + 0.2 * v[0], -0.26 - 0.22 * v[4]
    b.behind = [
        ("second", polygon((-rx, 0.0), (-rx - 0.3, -0.25 - 0.35 * v[5]), (-rx + 0.14, -0.1))),
        ("dark", box(-rx * 0.45, 0.2, -rx * 0.45 + 0.13, 0.25 + leg)),
        ("dark", box(rx * 0.35, 0.2, rx * 0.35 + 0.13, 0.25 + leg)),
    ]
    b.main = [
        ellipse(0, 0.12, rx, ry),
        ellipse(hx, hy, head, head),
        ellipse(hx + head, hy + 0.07, 0.1 + 0.12 * v[5], 0.09),
        polygon((rx * 0.5, 0.0), (hx - 0.16, hy), (hx + 0.14, hy), (rx * 0.9, 0.2)),
        box(-rx * 0.85, 0.15, -rx * 0.85 + 0.16, 0.25 + leg),
        box(rx * 0.65, 0.15, rx * 0.65 + 0.16, 0.25 + leg),
    ]
    b.top = [
        ("second", ellipse(hx - head * 0.6, hy + 0.1, 0.09, 0.14 + 0.16 * v[5], 0.2)),
        ("dark", ellipse(hx + 0.1, hy - 0.05, 0.05, 0.05)),
        ("dark", ellipse(hx + head + 0.08 + 0.1 * v[5], hy + 0.03, 0.06, 0.05)),
    ]
    b.crest, b.crest_width = (hx, hy - head), head
    b.neck, b.torso = (hx - 0.12, hy + head + 0.04), (0, 0.12, rx, ry)
    return b


def _cat(v: tuple[float, ...]) -> Body:
    b = Body()
    rx, ry, head = 0.3 + 0.16 * v[0], 0.4 + 0.16 * v[1], 0.27 + 0.12 * v[3]
    hx, hy, ear = 0.12 + 0.16 * v[4], -0.42, 0.2 + 0.22 * v[2]
    tail = 0.3 + 0.5 * v[5]
    b.behind = [
        (
            "second",
            polygon(
                (-rx * 0.6, 0.62),
                (-rx - 0.45, 0.55),
                (-rx - 0.5, 0.5 - tail),
                (-rx - 0.34, 0.5 - tail),
                (-rx - 0.3, 0.42),
                (-rx * 0.6, 0.42),
            ),
        ),
        (
            "second",
            polygon((hx - head, hy), (hx - head * 0.85, hy - head - ear), (hx, hy - head * 0.6)),
        ),
        (
            "second",
            polygon((hx + head, hy), (hx + head * 0.85, hy - head - ear), (hx, hy - head * 0.6)),
        ),
    ]
    b.main = [
        ellipse(0, 0.3, rx, ry),
        ellipse(hx, hy, head * 1.1, head),
        ellipse(rx * 0.3, 0.7, 0.3, 0.11),
    ]
    b.top = [
        ("dark", ellipse(hx - 0.08, hy - 0.04, 0.05, 0.07)),
        ("dark", ellipse(hx + 0.17, hy - 0.04, 0.05, 0.07)),
        ("light", ellipse(hx + 0.05, hy + 0.13, 0.1, 0.06)),
    ]
    b.crest, b.crest_width = (hx, hy - head), head
    b.neck, b.torso = (hx - 0.04, hy + head + 0.02), (0, 0.3, rx, ry)
    return b


def _bird(v: tuple[float, ...]) -> Body:
    b = Body()
    rx, ry, head = 0.42 + 0.18 * v[0], 0.3 + 0.14 * v[1], 0.19 + 0.12 * v[3]
    hx, hy, leg = rx * 0.75, -0.32 - 0.2 * v[4], 0.22 + 0.28 * v[2]
    b.behind = [
        ("second", polygon((-rx * 0.7, 0.0), (-rx - 0.35 - 0.2 * v[5], -0.2), (-rx - 0.3, 0.25))),
        ("dark", box(-0.12, 0.3, -0.05, 0.4 + leg)),
        ("dark", box(0.12, 0.3, 0.19, 0.4 + leg)),
        (
            "beak",
            polygon((hx, hy - 0.09), (hx + head + 0.2 + 0.15 * v[5], hy + 0.04), (hx, hy + 0.14)),
        ),
    ]
    b.main = [
        ellipse(0, 0.1, rx, ry, -0.2),
        ellipse(hx, hy, head, head),
        polygon((rx * 0.2, -0.1), (hx - 0.12, hy), (hx + 0.14, hy + 0.1), (rx * 0.9, 0.1)),
    ]
    b.top = [
        ("second", ellipse(-rx * 0.25, 0.06, 0.18 + 0.16 * v[2], 0.12 + 0.06 * v[0], -0.35)),
        ("dark", ellipse(hx + 0.05, hy - 0.04, 0.05, 0.05)),
    ]
    b.crest, b.crest_width = (hx, hy - head), head
    b.neck, b.torso = (hx - 0.08, hy + head + 0.04), (0, 0.1, rx, ry)
    return b


def _fish(v: tuple[float, ...]) -> Body:
    b = Body()
    rx, ry, tail = 0.55 + 0.18 * v[0], 0.28 + 0.2 * v[1], 0.25 + 0.3 * v[2]
    b.behind = [
        (
            "second",
            polygon(
                (-rx * 0.7, 0.05),
                (-rx - 0.32, 0.05 - tail),
                (-rx - 0.16, 0.05),
                (-rx - 0.32, 0.05 + tail),
            ),
        ),
        (
            "second",
            polygon(
                (-0.25 + 0.3 * v[4], -ry * 0.6),
                (-0.3 + 0.3 * v[4], -ry - 0.15 - 0.2 * v[3]),
                (0.22 + 0.3 * v[4], -ry * 0.6),
            ),
        ),
    ]
    b.main = [ellipse(0, 0.05, rx, ry)]
    b.top = [
        ("second", ellipse(0.02, 0.15, 0.16 + 0.08 * v[5], 0.08, 0.5)),
        ("light", ellipse(rx * 0.62, -0.05, 0.1 + 0.05 * v[5], 0.1 + 0.05 * v[5])),
        ("dark", ellipse(rx * 0.65, -0.05, 0.06, 0.06)),
    ]
    b.crest, b.crest_width = (rx * 0.45, 0.08 - ry), 0.3
    b.neck, b.torso = (rx * 0.72, 0.05 + ry * 0.72), (-0.1, 0.05, rx * 0.8, ry)
    return b


def _car(v: tuple[float, ...]) -> Body:
    b = Body()
    w, h, wheel = 0.72 + 0.16 * v[0], 0.22 + 0.12 * v[1], 0.16 + 0.11 * v[2]
    roof, lean = 0.28 + 0.2 * v[3], 0.1 + 0.2 * v[4]
    b.main = [
        polygon((-w, 0.4), (-w, 0.4 - h * 1.5), (w * 0.9, 0.4 - h * 1.5), (w, 0.4 - h), (w, 0.4)),
        polygon(
            (-w * 0.7, 0.42 - h * 1.5),
            (-w * 0.7 + lean, 0.4 - h * 1.5 - roof),
            (w * 0.35 - lean * 0.3, 0.4 - h * 1.5 - roof),
            (w * 0.6, 0.42 - h * 1.5),
        ),
    ]
    x = 0.42 + 0.14 * v[5]
    top = 0.4 - h * 1.5
    b.top = [
        (
            "glass",
            polygon(
                (-w * 0.5, top - 0.02),
                (-w * 0.5 + lean * 0.7, top - roof * 0.75),
                (-0.08, top - roof * 0.75),
                (-0.08, top - 0.02),
            ),
        ),
        (
            "glass",
            polygon(
                (0.02, top - 0.02),
                (0.02, top - roof * 0.75),
                (w * 0.28, top - roof * 0.75),
                (w * 0.42, top - 0.02),
            ),
        ),
        ("dark", ellipse(-x, 0.42, wheel, wheel)),
        ("dark", ellipse(x, 0.42, wheel, wheel)),
        ("second", ellipse(-x, 0.42, wheel * 0.55, wheel * 0.55)),
        ("second", ellipse(x, 0.42, wheel * 0.55, wheel * 0.55)),
        ("light", ellipse(w * 0.92, 0.36 - h * 0.8, 0.07, 0.07)),
    ]
    b.crest, b.crest_width = (-0.1, top - roof), 0.36
    b.neck, b.torso = (w * 0.8, 0.3), (0, 0.2, w * 0.8, h)
    return b


def _teapot(v: tuple[float, ...]) -> Body:
    b = Body()
    rx, ry, spout = 0.42 + 0.14 * v[0], 0.36 + 0.16 * v[1], 0.3 + 0.25 * v[2]
    ring = 0.2 + 0.12 * v[3]
    b.behind = [
        ("second", ellipse(-rx - 0.06, 0.1, ring, ring * 1.1)),
        ("hole", ellipse(-rx - 0.06, 0.1, ring * 0.55, ring * 0.65)),
        (
            "second",
            polygon(
                (rx * 0.5, 0.35),
                (rx + spout, -0.3 - 0.2 * v[4]),
                (rx + spout - 0.2, -0.32 - 0.2 * v[4]),
                (rx * 0.6, -0.1),
            ),
        ),
        ("second", ellipse(0, 0.18 - ry, 0.26, 0.13 + 0.08 * v[5])),
        ("dark", ellipse(0, 0.02 - ry - 0.1 * v[5], 0.08, 0.08)),
    ]
    b.main = [ellipse(0, 0.2, rx, ry), box(-rx * 0.6, 0.2 + ry * 0.7, rx * 0.6, 0.24 + ry)]
    b.crest, b.crest_width = (0.0, 0.04 - ry - 0.1 * v[5]), 0.3
    b.neck, b.torso = (rx * 0.5, 0.2 + ry * 0.5), (0, 0.2, rx, ry)
    return b


def _robot(v: tuple[float, ...]) -> Body:
    b = Body()
    w, h, head = 0.3 + 0.14 * v[0], 0.3 + 0.12 * v[1], 0.2 + 0.1 * v[3]
    leg, arm = 0.2 + 0.2 * v[2], 0.3 + 0.25 * v[4]
    hy = 0.05 - h - head * 0.9
    b.behind = [
        ("second", box(-w - 0.17, 0.08 - h * 0.8, -w + 0.02, 0.08 - h * 0.8 + arm)),
        ("second", box(w - 0.02, 0.08 - h * 0.8, w + 0.17, 0.08 - h * 0.8 + arm)),
        ("dark", box(-w * 0.75, h, -w * 0.75 + 0.18, 0.05 + h + leg)),
        ("dark", box(w * 0.75 - 0.18, h, w * 0.75, 0.05 + h + leg)),
        ("dark", box(-0.03, hy - head - 0.1 - 0.15 * v[5], 0.03, hy)),
    ]
    b.main = [
        box(-w, 0.08 - h, w, 0.08 + h),
        box(-head * 1.15, hy - head * 0.8, head * 1.15, hy + head * 0.8),
        box(-0.08, hy, 0.08, 0.1 - h),
    ]
    b.top = [
        ("light", ellipse(-head * 0.35, hy - 0.04, 0.09, 0.09)),
        ("light", ellipse(head * 0.65, hy - 0.04, 0.09, 0.09)),
        ("dark", ellipse(-head * 0.3, hy - 0.04, 0.045, 0.045)),
        ("dark", ellipse(head * 0.7, hy - 0.04, 0.045, 0.045)),
        ("second", box(-0.1, hy + head * 0.4, 0.18, hy + head * 0.6)),
    ]
    b.crest, b.crest_width = (0.0, hy - head * 0.8), head * 1.2
    b.neck, b.torso = (0.02, 0.1 - h), (0, 0.08, w, h)
    return b


def _backpack(v: tuple[float, ...]) -> Body:
    b = Body()
    w, h = 0.38 + 0.14 * v[0], 0.5 + 0.14 * v[1]
    pocket, flap = 0.2 + 0.14 * v[2], 0.12 + 0.16 * v[3]
    b.behind = [
        ("second", ellipse(-w, 0.2, 0.16 + 0.12 * v[4], 0.42)),
        ("hole", ellipse(-w, 0.2, 0.05 + 0.1 * v[4], 0.28)),
        ("dark", ellipse(0, -h + 0.06, 0.16, 0.14)),
        ("hole", ellipse(0, -h + 0.06, 0.09, 0.07)),
    ]
    b.main = [
        polygon(
            (-w, 0.7),
            (-w, -h + 0.35),
            (-w * 0.7, -h + 0.1),
            (w * 0.7, -h + 0.1),
            (w, -h + 0.35),
            (w, 0.7),
        ),
    ]
    b.top = [
        ("second", box(-w * 0.7, 0.62 - pocket * 1.5, w * 0.7, 0.62)),
        ("dark", box(-w, -h + 0.3 + flap, w, -h + 0.36 + flap)),
        ("light", box(-0.06 + 0.2 * v[5], 0.5 - pocket, 0.06 + 0.2 * v[5], 0.58 - pocket)),
    ]
    b.crest, b.crest_width = (0.0, -h + 0.08), 0.34
    b.neck, b.torso = (0.0, -h + 0.5), (0, 0.05, w, h * 0.8)
    return b


BODIES: dict[str, Callable[[tuple[float, ...]], Body]] = {
    "dog": _dog,
    "cat": _cat,
    "bird": _bird,
    "fish": _fish,
    "car": _car,
    "teapot": _teapot,
    "robot": _robot,
    "backpack": _backpack,
}


def accessory_parts(name: str, body: Body) -> list[Part]:
    (x, y), w = body.crest, 0.8 * body.crest_width + 0.08
    nx, ny = body.neck
    if name == "hat":
        return [
            ("dark", box(x - 1.5 * w, y - 0.08, x + 1.5 * w, y + 0.05)),
            ("dark", box(x - 0.85 * w, y - 0.5, x + 0.85 * w, y)),
            ("light", box(x - 0.85 * w, y - 0.2, x + 0.85 * w, y - 0.1)),
        ]
    if name == "crown":
        points = [(x - w, y + 0.06), (x - w, y - 0.34), (x - 0.5 * w, y - 0.12), (x, y - 0.4)]
        points += [(x + 0.5 * w, y - 0.12), (x + w, y - 0.34), (x + w, y + 0.06)]
        return [("gold", polygon(*points))]
    if name == "bow":
        return [
            ("cyan", polygon((nx, ny), (nx - 0.3, ny - 0.2), (nx - 0.3, ny + 0.2))),
            ("cyan", polygon((nx, ny), (nx + 0.3, ny - 0.2), (nx + 0.3, ny + 0.2))),
            ("dark", ellipse(nx, ny, 0.08, 0.08)),
        ]
    if name == "balloon":
        bx, by = -0.72, -0.95
        return [
            ("dark", polygon((-0.3, 0.2), (bx - 0.02, by), (bx + 0.03, by), (-0.26, 0.2))),
            ("magenta", ellipse(bx, by, 0.25, 0.3)),
        ]
    return []
