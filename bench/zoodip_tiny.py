"""Does textual inversion by forward passes alone learn a subject, and what do its parts add?
``python -m bench.zoodip_tiny [--steps N] [--seeds 0 1 2] [--json FILE] [--curves PNG]``.

The bundled model learns a word for a new subject from five pictures whose captions name all but
the subject and no class, by ZOODiP's steps: with and without its subspace gradient (SG) and its
partial uniform timestep sampling (PUTS), each variant with the same forwards. The word starts as
the subject's class; "before" is the model with that class. The judge scores 32 pictures of the word
alone. A loss curve is the mean of a moving average over the seeds; those with PUTS are of other
timesteps than those without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import sopt
from sopt.demo import BATCH, GUIDANCE, PHOTOS, SCORED
from sopt.files import write_bytes, write_json
from sopt.sampling import png_bytes
from sopt.tiny import judge
from sopt.tiny.drawings import draw
from sopt.tiny.scenes import BACKGROUNDS, Subject, place, random_subject, surroundings

TOKEN = "<subject>"
STEPS = 3000
SEEDS = (0, 1, 2)
COMMON: dict[str, Any] = {"weights": "float32", "samples": False, "checkpoint_every": 10**6}
# The paper's values but for the sizes of perturbation and step: an element of the bundled model's
# word embeddings is four to five times as large as one of SD1.5's.
ZEROTH_ORDER = {
    "method": "textual-inversion",
    "num_perturbations": 2,
    "perturbation_batch": 3,
    "eps": 5e-3,
    "zo_lr": 2e-2,
}
ALL_TIMESTEPS = {"min_timestep": 0, "max_timestep": 999}
VARIANTS: dict[str, dict[str, Any]] = {
    "SG and PUTS": {},
    "PUTS": {"subspace": False},
    "SG": ALL_TIMESTEPS,
    "neither": {"subspace": False, **ALL_TIMESTEPS},
}
COLOURS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#d62728")


def photos(subject: Subject, rng: np.random.Generator, folder: Path) -> Path:
    """Pictures of the subject in different places, with captions that do not describe it."""
    folder.mkdir(parents=True)
    for number, i in enumerate(rng.permutation(len(BACKGROUNDS))[:PHOTOS]):
        scene = place(subject, rng, BACKGROUNDS[i])
        draw(scene).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {TOKEN} {surroundings(scene)}")
    return folder


def score(adapter: Path | None, word: str, known: judge.Reference) -> float:
    pictures = sopt.generate(
        adapter=adapter,
        prompt=f"a {word}",
        guidance=GUIDANCE,
        num_images=SCORED,
        batch_size=BATCH,
    )
    return judge.subject_score(pictures, known)


def compare(seed: int, work: Path, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Scores and losses of every variant on one subject."""
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    known = judge.reference(subject)
    images = photos(subject, rng, work / f"photos{seed}")
    row: dict[str, Any] = {"seed": seed, "before": score(None, subject.kind, known), "after": {}}
    row |= {"losses": {}, "seconds": {}}
    for name, variant in VARIANTS.items():
        started = time.monotonic()
        run = sopt.train(
            images=str(images),
            prompt=f"a {TOKEN}",
            token=TOKEN,
            initializer=subject.kind,
            output=str(work / f"{name}{seed}"),
            steps=steps,
            seed=seed,
            **COMMON | ZEROTH_ORDER | settings | variant,
        )
        row["seconds"][name] = time.monotonic() - started
        row["losses"][name] = [entry["loss"] for entry in run.history]
        row["after"][name] = score(run.adapter, TOKEN, known)
        print(f"seed {seed}, {name}: {row['before']:.3f} -> {row['after'][name]:.3f}", flush=True)
    return row


def moving_average(values: list[float], window: int) -> np.ndarray:
    return np.convolve(values, np.ones(window) / window, mode="valid")


def curves(rows: list[dict[str, Any]], size: tuple[int, int] = (720, 400)) -> Image.Image:
    """The loss of each variant over the steps."""
    count = len(rows[0]["losses"]["neither"])
    window = max(1, count // 10)
    lines = {
        name: np.mean([moving_average(row["losses"][name], window) for row in rows], axis=0)
        for name in VARIANTS
    }
    low, high = min(map(np.min, lines.values())), max(map(np.max, lines.values()))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 20, size[0] - 20, size[1] - 40
    pen.rectangle((left, top, right, bottom), outline="black")
    for value, y in ((high, top), (low, bottom)):
        pen.text((8, y - 6), f"{value:.4f}", fill="black")
    pen.text((left, bottom + 8), f"step {window}", fill="black")
    pen.text((right - 60, bottom + 8), f"step {count}", fill="black")
    pen.text((left + 160, bottom + 8), f"loss, mean of {window} steps", fill="black")
    for number, (name, line) in enumerate(lines.items()):
        xs = np.linspace(left, right, len(line))
        ys = bottom - (line - low) / max(high - low, 1e-12) * (bottom - top)
        pen.line(list(zip(xs, ys, strict=True)), fill=COLOURS[number], width=2)
        pen.text((right - 100, top + 8 + 14 * number), name, fill=COLOURS[number])
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    for name in ("zo_lr", "eps", "zo_adam_eps", "nu"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("num_perturbations", "perturbation_batch", "tau"):
        parser.add_argument(f"--{name}", type=int)
    options = vars(parser.parse_args())
    json_file, png, steps, seeds = (options.pop(k) for k in ("json", "curves", "steps", "seeds"))
    settings = {name: value for name, value in options.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(seed, Path(folder), steps, settings) for seed in seeds]
    before = [row["before"] for row in rows]
    print(f"{'before':12} {np.mean(before):.3f} (spread {np.ptp(before):.3f})")
    for name in VARIANTS:
        after = [row["after"][name] for row in rows]
        gain = np.subtract(after, before)
        seconds = np.mean([row["seconds"][name] for row in rows])
        print(
            f"{name:12} {np.mean(after):.3f} (spread {np.ptp(after):.3f}), gain "
            f"{gain.mean():+.3f} ({gain.min():+.3f} to {gain.max():+.3f}), {seconds:.0f} s"
        )
    if png:
        write_bytes(png, png_bytes(curves(rows)))
    if json_file:
        write_json(json_file, {"steps": steps, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
