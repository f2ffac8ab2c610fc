"""What to ask of a model that knows a subject: eight prompts in four groups, and what they mean.

The groups are those of Hollowed Net's evaluation (arXiv 2411.01179): another property, a new
context, an accessory, a style. The bundled model knows no photographs and no paintings: what stands
for style is the pattern that the subject is drawn in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .scenes import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    PATTERN_NOUNS,
    PLACES,
    WEARING,
    Subject,
)

GROUPS = ("property", "context", "accessory", "style")
A_GROUP = 2  # prompts


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what a picture that obeys it shows.

    ``template`` has braces where the words for the subject go; ``shown`` is the subject as the
    prompt wants it, ``background`` the place it names; ``named`` are the judge's attributes.
    """

    group: str
    template: str
    shown: Subject
    background: str | None
    named: Mapping[str, str]

    def text(self, words: str) -> str:
        """The prompt with ``words`` for the subject, such as "sks dog"."""
        return self.template.format(words)


def training_prompt(subject: Subject) -> Prompt:
    """The subject and nothing else, as in training."""
    return Prompt("training", "a {}", subject, None, {})


def prompts_for(subject: Subject, seen: Collection[str], rng: np.random.Generator) -> list[Prompt]:
    """Two prompts of each group, none of which asks for what the subject already has.

    Args:
        seen: Backgrounds of the training pictures; at least two others must be left.

    Example:
        >>> subject = Subject("dog", "red", "blue", "plain", "none", (0.5,) * 10)
        >>> prompts_for(subject, ["beach"], np.random.default_rng(0))[0].text("sks dog")
        'a yellow sks dog'
    """

    def two(values: Collection[str], without: Collection[str]) -> list[str]:
        left = [value for value in values if value not in without]
        return [left[i] for i in rng.choice(len(left), A_GROUP, replace=False)]

    found = []
    for colour in two(COLOURS, (subject.colour, subject.second_colour)):
        article = "an" if colour[0] in "aeiou" else "a"
        shown = replace(subject, colour=colour)
        found.append(
            Prompt("property", f"{article} {colour} {{}}", shown, None, {"colour": colour})
        )
    for place in two(BACKGROUNDS, seen):
        template = f"a {{}} {PLACES[place]}"
        found.append(Prompt("context", template, subject, place, {"background": place}))
    for accessory in two(ACCESSORIES, ("none", subject.accessory)):
        template, shown = f"a {{}} {WEARING[accessory]}", replace(subject, accessory=accessory)
        found.append(Prompt("accessory", template, shown, None, {"accessory": accessory}))
    for pattern in two(tuple(PATTERN_NOUNS), (subject.pattern,)):
        template = f"a {{}} with {subject.second_colour} {PATTERN_NOUNS[pattern]}"
        shown = replace(subject, pattern=pattern)
        found.append(Prompt("style", template, shown, None, {"pattern": pattern}))
    return found
