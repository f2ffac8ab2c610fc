"""Charts as inline SVG: a frame with axes, marks in it, and horizontal bars.

They scale with the page; at the width of a telephone their text is 10 pixels high. Branches differ
in shape as well as in colour, for print and for eyes that do not tell the colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .markup import Markup, element, join

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 42
COLOURS = {"bp": "#2457c5", "zo": "#c2570c"}
INK, FAINT = "#3c3c43", "#d9d9de"
BAR, BAR_GAP, BAR_LEFT, BAR_RIGHT = 18, 12, 108, 84

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values; ``log`` for logarithmic, which takes values above 0."""

    label: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at ``low``, 1 at ``high``."""
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(value) - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values in the range, about five."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten.

    Example:
        >>> linear_ticks(0, 1000)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough * 0.999)
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{step * i:.12g}") for i in count]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone where these are many; where there are
    fewer than two, those of a linear axis.

    Example:
        >>> log_ticks(0.02, 0.3), log_ticks(0.21, 0.49)
        ([0.02, 0.05, 0.1, 0.2], [0.3, 0.4])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    values = [float(f"{factor}e{power}") for power in powers for factor in factors]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) > 1 else linear_ticks(low, high)


class Frame:
    """A chart with two axes; ``marks`` go inside."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y

    def place(self, point: Point) -> Point:
        """A point's position in pixels of the drawing."""
        across, up = self._x.share(point[0]), self._y.share(point[1])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def dots(self, points: Iterable[Point], branch: str) -> Markup:
        """Round dots for backprop, crosses for zeroth-order: one path for all of them."""
        shape = {"bp": "h0", "zo": "m-2-2l4 4m0-4l-4 4"}[branch]
        moves = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in map(self.place, points))
        width = {"bp": 4, "zo": 1.2}[branch]
        return self._path(moves, branch, width, opacity=0.55)

    def line(self, points: Iterable[Point], branch: str) -> Markup:
        """A line through the points; broken into dashes for zeroth-order."""
        moves = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(self.place, points))
        dashes = "7 4" if branch == "zo" else None
        return self._path(f"M{moves}", branch, 2.5, dashes=dashes)

    def picture(self, uri: str) -> Markup:
        """A picture that fills the frame."""
        return element(
            "image",
            href=uri,
            x=LEFT,
            y=TOP,
            width=WIDTH - LEFT - RIGHT,
            height=HEIGHT - TOP - BOTTOM,
            preserveAspectRatio="none",
        )

    def drawing(self, title: str, description: str, *marks: Markup) -> Markup:
        """The whole chart, with texts for those who cannot see it."""
        return _svg(HEIGHT, title, description, *self._grid(), *marks, *self._labels())

    def _path(
        self, moves: str, branch: str, width: float, opacity: float = 1, dashes: str | None = None
    ) -> Markup:
        return element(
            "path",
            d=moves,
            fill="none",
            stroke=COLOURS[branch],
            stroke_width=width,
            stroke_opacity=None if opacity == 1 else opacity,
            stroke_linecap="round" if dashes is None else "butt",
            stroke_linejoin="round",
            stroke_dasharray=dashes,
        )

    def _grid(self) -> list[Markup]:
        heights = [self.place((self._x.low, value))[1] for value in self._y.ticks()]
        return [_line(LEFT, y, WIDTH - RIGHT, y, FAINT) for y in heights]

    def _labels(self) -> list[Markup]:
        bottom = HEIGHT - BOTTOM
        labels = [_line(LEFT, bottom, WIDTH - RIGHT, bottom, INK)]
        for value in self._y.ticks():
            y = self.place((self._x.low, value))[1]
            labels.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
        for value in self._x.ticks():
            x = self.place((value, self._y.low))[0]
            labels.append(_text(x, bottom + 16, f"{value:g}", "middle"))
        labels.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, self._x.label, "middle"))
        middle = (TOP + bottom) / 2
        turned = f"rotate(-90 12 {middle:.0f})"
        labels.append(_text(12, middle, self._y.label, "middle", transform=turned))
        return labels


def bars(
    rows: Sequence[tuple[str, float, str]],
    title: str,
    description: str,
    limit: tuple[float, str] | None = None,
) -> Markup:
    """Horizontal bars: name, value, and the value in words; ``limit`` is a line across them."""
    most = max([value for _, value, _ in rows] + [limit[0] if limit else 0]) or 1
    width = WIDTH - BAR_LEFT - BAR_RIGHT
    top = TOP + (16 if limit else 0)
    parts = []
    for number, (name, value, words) in enumerate(rows):
        y = top + number * (BAR + BAR_GAP)
        length = width * value / most
        colour = COLOURS.get(name.removeprefix("train-"), "#6b7280")
        parts += [
            _text(BAR_LEFT - 8, y + 14, shortened(name), "end"),
            element("rect", x=BAR_LEFT, y=y, width=f"{length:.1f}", height=BAR, rx=2, fill=colour),
            _text(BAR_LEFT + length + 6, y + 14, words, "start"),
        ]
    height = top + len(rows) * (BAR + BAR_GAP)
    if limit:
        x = BAR_LEFT + width * limit[0] / most
        parts += [
            _line(x, top - 6, x, height - 4, "#b42318", dashes="5 3"),
            _text(x, top - 10, limit[1], "end" if x > WIDTH / 2 else "start", fill="#b42318"),
        ]
    return _svg(height, title, description, *parts)


def _svg(height: float, title: str, description: str, *parts: Markup) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        aria_label=f"{title}. {description}",
        font_size=13,
        fill=INK,
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str | None = None
) -> Markup:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    places = {name: f"{value:.1f}" for name, value in ends.items()}
    return element("line", stroke=colour, stroke_dasharray=dashes, **places)


def _text(x: float, y: float, words: str, anchor: str, **attributes: object) -> Markup:
    return element("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **attributes)


def shortened(name: str) -> str:
    """A name that fits beside a bar: its start and its end, by which names of runs often differ.

    Example:
        >>> shortened("subject-dog-seed-1")
        'subjec…seed-1'
    """
    return name if len(name) <= 13 else f"{name[:6]}…{name[-6:]}"


def key(branch: str, words: str) -> Markup:
    """An entry of a legend: a mark in the branch's colour and shape, and what it stands for."""
    mark = {"bp": "●", "zo": "✕"}[branch]
    return join(
        element("b", mark, style=f"color:{COLOURS[branch]}", aria_hidden="true"), f" {words}"
    )
