"""What a drawing shows: the attributes of a scene, their sampling, and the captions that name them.

A subject is a class, two colours, a pattern, an accessory and an *identity*: ten numbers in [0, 1]
(proportions, part layout, positions of markings) that no caption names, so that it can only be
learned from pictures. A scene adds background, viewpoint and pose.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

CLASSES = ("dog", "cat", "bird", "fish", "car", "teapot", "robot", "backpack")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
PATTERNS = ("plain", "striped", "dotted", "checkered")
ACCESSORIES = ("none", "hat", "crown", "bow", "balloon")
BACKGROUNDS = ("beach", "meadow", "snow", "night", "city", "desert", "room", "forest")
VIEWPOINTS = ("left", "right")
RARE_TOKENS = ("sks", "zwx", "olis", "pky")  # known to the tokenizer, meaningless by training
IDENTITY_NUMBERS = 10
HELD_OUT_SHARE = 0.1  # of the 512 (class, colour, background) combinations

PLACES = {
    "beach": "on the beach",
    "meadow": "in a meadow",
    "snow": "in the snow",
    "night": "at night",
    "city": "in the city",
    "desert": "in the desert",
    "room": "in a room",
    "forest": "in the forest",
}
PATTERN_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
WEARING = {
    "hat": "wearing a hat",
    "crown": "wearing a crown",
    "bow": "wearing a bow",
    "balloon": "with a balloon",
}


@dataclass(frozen=True)
class Subject:
    """One individual. ``identity``: ``IDENTITY_NUMBERS`` numbers in [0, 1]."""

    kind: str
    colour: str
    second_colour: str
    pattern: str
    accessory: str
    identity: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """A subject somewhere. Pose: centre in units of the side, scale, tilt in radians."""

    subject: Subject
    background: str
    viewpoint: str
    centre: tuple[float, float] = (0.5, 0.56)
    scale: float = 0.38
    tilt: float = 0.0
    variation: int = 0  # seed of the background's details

    def labels(self) -> dict[str, int]:
        """Index of every named attribute in its vocabulary, as the judge learns them."""
        s = self.subject
        return {
            "class": CLASSES.index(s.kind),
            "colour": COLOURS.index(s.colour),
            "second_colour": COLOURS.index(s.second_colour),
            "pattern": PATTERNS.index(s.pattern),
            "accessory": ACCESSORIES.index(s.accessory),
            "background": BACKGROUNDS.index(self.background),
            "viewpoint": VIEWPOINTS.index(self.viewpoint),
        }


VOCABULARIES = {
    "class": CLASSES,
    "colour": COLOURS,
    "second_colour": COLOURS,
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
    "background": BACKGROUNDS,
    "viewpoint": VIEWPOINTS,
}


def is_held_out(kind: str, colour: str, background: str) -> bool:
    """Whether this combination was kept out of pretraining: a tenth of all, by a fixed hash."""
    return zlib.crc32(f"{kind} {colour} {background}".encode()) % 1000 < 1000 * HELD_OUT_SHARE


def random_subject(rng: np.random.Generator) -> Subject:
    """A subject with every attribute uniform, the two colours different."""
    colour, second = rng.choice(len(COLOURS), 2, replace=False)
    return Subject(
        kind=CLASSES[rng.integers(len(CLASSES))],
        colour=COLOURS[colour],
        second_colour=COLOURS[second],
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        accessory=ACCESSORIES[rng.integers(len(ACCESSORIES))],
        identity=tuple(rng.random(IDENTITY_NUMBERS).round(4).tolist()),
    )


def place(subject: Subject, rng: np.random.Generator, background: str | None = None) -> Scene:
    """``subject`` in a random pose, from a random side, before ``background`` or a random one."""
    return Scene(
        subject=subject,
        background=background or BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        viewpoint=VIEWPOINTS[rng.integers(2)],
        centre=(0.5 + rng.uniform(-0.08, 0.08), 0.56 + rng.uniform(-0.05, 0.05)),
        scale=rng.uniform(0.34, 0.43),
        tilt=rng.uniform(-0.12, 0.12),
        variation=int(rng.integers(2**31)),
    )


def random_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """A random scene from the pretraining combinations, or from those kept out of it."""
    while True:
        scene = place(random_subject(rng), rng)
        if is_held_out(scene.subject.kind, scene.subject.colour, scene.background) == held_out:
            return scene


def full_caption(scene: Scene) -> str:
    """The caption that names every attribute of ``scene`` but the identity."""
    return _caption(scene, second=True, accessory=True, place_named=True, viewpoint=True)


def surroundings(scene: Scene) -> str:
    """What a caption says about ``scene`` beside the subject: where it is, and which way it faces.

    Example:
        >>> subject = Subject("dog", "red", "blue", "plain", "none", (0.5,) * IDENTITY_NUMBERS)
        >>> surroundings(Scene(subject, "night", "left", (0.5, 0.5), 0.4, 0.0, 0))
        'at night facing left'
    """
    return f"{PLACES[scene.background]} facing {scene.viewpoint}"


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that names a random part of the attributes; empty once in ten, for guidance."""
    if rng.random() < 0.1:
        return ""
    named = rng.random(5) < (0.75, 0.6, 0.8, 0.75, 0.3)  # colour, second, accessory, place, view
    text = _caption(scene, named[1], named[2], named[3], named[4], colour=bool(named[0]))
    if not named[0] and rng.random() < 0.3:  # a word without meaning in the colour's place
        text = f"a {RARE_TOKENS[rng.integers(len(RARE_TOKENS))]} {text[2:]}"
    return ("", "a photo of ", "a picture of ", "a drawing of ")[rng.integers(4)] + text


def _caption(
    scene: Scene,
    second: bool,
    accessory: bool,
    place_named: bool,
    viewpoint: bool,
    colour: bool = True,
) -> str:
    s = scene.subject
    words = ["a"]
    if colour:
        words.append(s.colour)
        if second and s.pattern == "plain":
            words += ["and", s.second_colour]
    words.append(s.kind)
    if second and s.pattern != "plain":
        words += ["with", s.second_colour, PATTERN_NOUNS[s.pattern]]
    if accessory and s.accessory != "none":
        words.append(WEARING[s.accessory])
    if place_named:
        words.append(PLACES[scene.background])
    if viewpoint:
        words.append(f"facing {scene.viewpoint}")
    if words[1][0] in "aeiou":
        words[0] = "an"
    return " ".join(words)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and the rare tokens, sorted."""
    text = " ".join([*PLACES.values(), *WEARING.values(), *PATTERN_NOUNS.values()])
    rest = "a an photo picture drawing painting of and with facing the on in at without"
    words = {*text.split(), *rest.split(), *CLASSES, *COLOURS, *PATTERNS, *VIEWPOINTS}
    return sorted(words | set(RARE_TOKENS) | {"plain", "wearing"})


def without_accessory(subject: Subject) -> Subject:
    """The same individual with nothing on."""
    return replace(subject, accessory="none")
