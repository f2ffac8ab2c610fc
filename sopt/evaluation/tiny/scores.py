"""The scores of one method's pictures of one subject, by group of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ...errors import InputError
from ...tiny import judge, segmenter
from ...tiny.drawings import draw
from ...tiny.prompts import GROUPS, Prompt, prompts_for, training_prompt
from ...tiny.scenes import BACKGROUNDS, Scene, Subject, place, random_subject, surroundings
from ...tiny.structure import pose_grid, structure_score
from .methods import CEILING

SCORES = ("subject", "prompt", "structure", "diversity")
PHOTOS = 5
STREAM = 1411  # keeps these subjects apart from those of other seeded draws
TUNING = 100  # number of the first subject of the search

Scores = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Task:
    """A subject, its training pictures, and what to draw of it; a function of its number."""

    subject: Subject
    photos: list[Scene]
    prompts: list[Prompt]

    def captions(self, word: str) -> list[str]:
        """A caption of each photo that describes all but the subject."""
        return [f"a {word} {surroundings(scene)}" for scene in self.photos]


def make_task(number: int) -> Task:
    """The subject ``number``: from 0 those of the table, from ``TUNING`` those of the search."""
    rng = np.random.default_rng([STREAM, number])
    subject = random_subject(rng)
    seen = [BACKGROUNDS[i] for i in rng.permutation(len(BACKGROUNDS))[:PHOTOS]]
    photos = [place(subject, rng, background) for background in seen]
    return Task(subject, photos, [training_prompt(subject), *prompts_for(subject, seen, rng)])


def draw_real(task: Task, method: str, seed: int, count: int) -> list[list[Image.Image]]:
    """Drawings in place of a method's pictures, ``count`` of each prompt.

    Args:
        method: The ceiling: the subject, as each prompt wants it. The floor: other subjects of its
            class, elsewhere.
    """
    rng = np.random.default_rng([STREAM, seed, task.photos[0].variation])

    def one(prompt: Prompt) -> Image.Image:
        if method == CEILING:
            return draw(place(prompt.shown, rng, prompt.background))
        while (other := random_subject(rng)).kind != task.subject.kind:
            pass
        return draw(place(other, rng))

    return [[one(prompt) for _ in range(count)] for prompt in task.prompts]


def score(task: Task, pictures: Sequence[Sequence[Image.Image]]) -> Scores:
    """Mean scores of the pictures of each prompt, by group: "training" and those of ``GROUPS``.

    A prompt score is None where the prompt asks for nothing but the subject, and diversity where
    there is one picture a prompt: 1 minus the mean cosine of the judge's features over the pairs of
    pictures of one prompt.

    Raises:
        InputError: Pictures are missing, or a score is not a finite number.
    """
    groups: dict[str, list[dict[str, float | None]]] = {k: [] for k in ("training", *GROUPS)}
    for prompt, drawn in zip(task.prompts, pictures, strict=True):
        if not drawn:
            raise InputError(f"there are no pictures of the prompt {prompt.text('subject')!r}")
        known = _reference(prompt.shown)
        found: dict[str, float | None] = {
            "subject": judge.subject_score(drawn, known),
            "prompt": judge.prompt_score(drawn, dict(prompt.named)) if prompt.named else None,
            "structure": structure_score(drawn, prompt.shown),
            "diversity": diversity(judge.features(drawn).numpy()) if len(drawn) > 1 else None,
        }
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                raise InputError(
                    f"the {name} score of the prompt {prompt.text('subject')!r} is {value}: "
                    "its pictures have values that are not finite"
                )
        groups[prompt.group].append(found)
    return {
        group: {name: mean([each[name] for each in rows]) for name in SCORES}
        for group, rows in groups.items()
    }


def nothing_drawn() -> Scores:
    """The scores of a run whose pictures are not finite: 0 of all that has a best value."""
    rows: Scores = {k: {"subject": 0.0, "prompt": 0.0, "structure": 0.0} for k in GROUPS}
    rows |= {"training": {"subject": 0.0, "prompt": None, "structure": 0.0}}
    return {group: row | {"diversity": None} for group, row in rows.items()}


def overall(scores: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """The mean of a score over the four groups, which all have as many prompts."""
    return mean([scores[group][name] for group in GROUPS])


def diversity(features: np.ndarray) -> float:
    """1 minus the mean cosine over the pairs of different rows, at least two."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    n = len(rows)
    return float(1 - ((rows @ rows.T).sum() - n) / (n * (n - 1)))


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def forget() -> None:
    """Have what scores in memory no more, so that it does not count as a run's."""
    for kept in (judge.load, segmenter.load, pose_grid):
        kept.cache_clear()


@lru_cache(maxsize=64)  # the eight targets of a subject, for all its methods
def _reference(shown: Subject) -> judge.Reference:
    return judge.reference(shown)
