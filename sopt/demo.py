"""``sopt demo``: a new subject, five pictures of it, and the bundled model before and after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .config import TrainConfig
from .errors import InputError
from .files import check_writable, write_bytes
from .sampling import generate, picture_grid, png_bytes
from .tiny import judge
from .tiny.drawings import draw
from .tiny.scenes import BACKGROUNDS, Subject, full_caption, place, random_subject
from .trainer import train

PHOTOS = 5
STEPS = 600
LOW_RES_RATIO = 0.75  # at 0.5 the bundled model's backprop would see 8 x 8 latents
WEIGHTS = "float32"  # of a model so small that bfloat16 would save 5 MiB
SCORED = 32  # pictures, seeds 0 to 31, behind every score
BATCH = 8  # drawn at once
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
        ``seconds``; ``peak_bytes`` of the run by phase; ``subject_before``, ``subject_after``,
        ``prompt_before``, ``prompt_after`` (scores of :mod:`sopt.tiny.judge`); ``subject`` in
        words; paths of ``grid`` and ``adapter``.
    """
    started = time.monotonic()
    files = [output / "photos" / f"{number:02d}.png" for number in range(1, PHOTOS + 1)]
    grid = output / "grid.png"
    settings: dict[str, Any] = {
        "model": "tiny",
        "images": [str(file) for file in files],
        "prompt": "a sks subject",
        "output": str(output / "run"),
        "steps": STEPS if steps is None else steps,
        "low_res_ratio": LOW_RES_RATIO,
        "weights": WEIGHTS,
        "seed": seed,
    }
    TrainConfig.create(**settings)
    check_writable(output)
    if grid.exists() and not (output / "run").exists():
        raise InputError(
            f"output: {grid} is not of this demo, and is not overwritten: choose another folder"
        )
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    photos = draw_photos(subject, rng)
    _write_photos(files, photos)
    prompt = f"a sks {subject.kind}"
    run = train(**settings | {"prompt": prompt})
    known = judge.reference(subject)
    before, after = score_adapter(None, subject, known), score_adapter(run.adapter, subject, known)
    rows, labels = [photos], [f"{PHOTOS} pictures of a new subject"]
    for when, scores in (("before", before), ("after", after)):
        rows += [scores.plain[:SHOWN], scores.placed]
        labels += [f"{when}: {prompt}", f"{when}: ... {', '.join(PLACES.values())}"]
    write_bytes(grid, png_bytes(picture_grid(rows, labels)))
    return {
        "seconds": time.monotonic() - started,
        "peak_bytes": {k: v for k, v in run.memory.items() if isinstance(v, int)},
        "subject_before": before.subject,
        "subject_after": after.subject,
        "prompt_before": before.prompt,
        "prompt_after": after.prompt,
        "subject": full_caption(place(subject, np.random.default_rng(0))),
        "grid": str(grid),
        "adapter": str(run.adapter),
    }


def draw_photos(subject: Subject, rng: np.random.Generator) -> list[Image.Image]:
    """``PHOTOS`` pictures of ``subject``, each in another place."""
    places = rng.permutation(len(BACKGROUNDS))[:PHOTOS]
    return [draw(place(subject, rng, BACKGROUNDS[i])) for i in places]


def _write_photos(files: list[Path], photos: list[Image.Image]) -> None:
    contents = dict(zip(files, map(png_bytes, photos), strict=True))
    for file, content in contents.items():
        if file.exists() and file.read_bytes() != content:
            raise InputError(
                f"output: {file} is another picture, and is not overwritten: choose another folder"
            )
    for file, content in contents.items():
        write_bytes(file, content)


@dataclass(frozen=True)
class Scores:
    """The judge's scores of an adapter, and some of the pictures behind them."""

    subject: float
    prompt: float
    plain: list[Image.Image]  # of the training prompt
    placed: list[Image.Image]  # two of each place


def score_adapter(adapter: Path | None, subject: Subject, known: judge.Reference) -> Scores:
    """Draw SCORED pictures of the prompt alone and SCORED in places it names, and judge them."""
    prompt = f"a sks {subject.kind}"
    plain = generate(adapter=adapter, prompt=prompt, num_images=SCORED, batch_size=BATCH)
    shown, scores = [], []
    for background, phrase in PLACES.items():
        images = generate(
            adapter=adapter,
            prompt=f"{prompt} {phrase}",
            num_images=SCORED // len(PLACES),
            batch_size=BATCH,
        )
        scores.append(judge.prompt_score(images, {"class": subject.kind, "background": background}))
        shown += images[: SHOWN // len(PLACES)]
    return Scores(judge.subject_score(plain, known), float(np.mean(scores)), plain, shown)
