"""``sopt demo``: a new subject, five pictures of it, and the bundled model before and after."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import write_bytes
from .sampling import generate, picture_grid, png_bytes
from .tiny import judge
from .tiny.drawings import draw
from .tiny.scenes import BACKGROUNDS, Subject, full_caption, place, random_subject
from .trainer import train

PHOTOS = 5
STEPS = 400
SCORED = 32  # pictures, seeds 0 to 31, behind every score
SHOWN = 8  # of them in the grid
PLACES = {
    "snow": "in the snow",
    "beach": "on the beach",
    "night": "at night",
    "city": "in the city",
}


def demo(output: Path, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """Draw a subject, personalize the bundled model on it, and judge pictures before and after.

    Args:
        output: Folder for ``photos/``, ``run/`` and ``grid.png``.
        seed: Which subject, and the seed of the run.
        steps: Training steps; ``STEPS`` if not given.

    Returns:
        ``seconds``; ``peak_bytes`` by phase; ``subject_before``, ``subject_after``,
        ``prompt_before``, ``prompt_after`` (scores of :mod:`sopt.tiny.judge`); paths of ``grid``
        and ``adapter``.
    """
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    photos = draw_photos(subject, rng)
    for number, photo in enumerate(photos, start=1):
        write_bytes(output / "photos" / f"{number:02d}.png", png_bytes(photo))
    prompt = f"a sks {subject.kind}"
    run = train(
        model="tiny",
        images=str(output / "photos"),
        prompt=prompt,
        output=str(output / "run"),
        steps=steps or STEPS,
        seed=seed,
    )
    known = judge.reference(subject)
    figures: dict[str, Any] = {}
    rows = [photos]
    labels = [f"{PHOTOS} pictures of a new subject"]
    for when, adapter in (("before", None), ("after", run.adapter)):
        plain = generate(adapter=adapter, prompt=prompt, num_images=SCORED)
        placed, score = _in_places(prompt, subject, adapter)
        figures[f"subject_{when}"] = judge.subject_score(plain, known)
        figures[f"prompt_{when}"] = score
        rows += [plain[:SHOWN], placed]
        labels += [f"{when}: {prompt}", f"{when}: ... {', '.join(PLACES.values())}"]
    grid = output / "grid.png"
    write_bytes(grid, png_bytes(picture_grid(rows, labels)))
    return {
        "seconds": time.monotonic() - started,
        "peak_bytes": {k: v for k, v in run.memory.items() if isinstance(v, int)},
        **figures,
        "subject": full_caption(place(subject, np.random.default_rng(0))),
        "grid": str(grid),
        "adapter": str(run.adapter),
    }


def draw_photos(subject: Subject, rng: np.random.Generator) -> list[Image.Image]:
    """``PHOTOS`` pictures of ``subject``, each in another place."""
    places = rng.permutation(len(BACKGROUNDS))[:PHOTOS]
    return [draw(place(subject, rng, BACKGROUNDS[i])) for i in places]


def _in_places(
    prompt: str, subject: Subject, adapter: Path | None
) -> tuple[list[Image.Image], float]:
    """Two pictures of each place to show, and the prompt score over SCORED pictures."""
    shown, scores = [], []
    for background, phrase in PLACES.items():
        images = generate(
            adapter=adapter, prompt=f"{prompt} {phrase}", num_images=SCORED // len(PLACES)
        )
        scores.append(judge.prompt_score(images, {"class": subject.kind, "background": background}))
        shown += images[:2]
    return shown, float(np.mean(scores))
