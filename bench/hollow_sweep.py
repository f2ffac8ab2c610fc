"""Quality against memory of every cut, on the bundled model.

    python -m bench.hollow_sweep [--seeds 0 1 2] [--json FILE] [--plot FILE.svg]

For each subject: a ``backprop-high`` run on the whole network, and a ``hollowed`` one at each cut,
of the demo's length and on the demo's pictures; subject score and prompt score as in the demo,
drawn by two paths. The plot has the mean scores over the peak of the training steps. Also the
seconds of a picture by one path and by two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import sopt
from sopt import demo
from sopt.files import write_json, write_text
from sopt.hollow.cuts import list_cuts
from sopt.lean_settings import CUTS
from sopt.models import open_model
from sopt.sampling import png_bytes
from sopt.streaming import list_units
from sopt.tiny import judge
from sopt.tiny.scenes import random_subject

WIDTH, HEIGHT, MARGIN = 640, 400, 56  # of the plot, in pixels
COLOURS = {"subject": "#0b63b5", "prompt": "#c2571a"}


def runs_of(seed: int, work: Path, steps: int) -> list[dict[str, Any]]:
    """Scores and peaks of one subject, without a cut and with each."""
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    photos = work / "photos"
    photos.mkdir(parents=True)
    for number, photo in enumerate(demo.draw_photos(subject, rng)):
        (photos / f"{number}.png").write_bytes(png_bytes(photo))
    known = judge.reference(subject)
    unet = open_model("tiny").skeleton("unet")
    fractions = {cut.name: cut.fraction for cut in list_cuts(unet, list_units(unet))}
    found = []
    for cut in (None, *(name for name in CUTS if name in fractions)):
        run = sopt.train(
            images=str(photos),
            prompt=f"a sks {subject.kind}",
            output=str(work / str(cut)),
            method="backprop-high" if cut is None else "hollowed",
            hollow=cut,
            weights=demo.WEIGHTS,
            steps=steps,
            seed=seed,
            samples=False,
        )
        scores = demo.score_adapter(run.adapter, subject, known)
        found.append(
            {
                "seed": seed,
                "cut": cut,
                "fraction": 0.0 if cut is None else fractions[cut],
                "subject": scores.subject,
                "prompt": scores.prompt,
                "peak": run.memory["train-bp"],
                "seconds_a_picture": _seconds(run.adapter, two_paths=True),
                "seconds_by_one_path": _seconds(run.adapter, two_paths=False),
            }
        )
        print(found[-1], flush=True)
    return found


def _seconds(adapter: Path, two_paths: bool) -> float:
    """The least of three, for pictures drawn without guidance in many steps."""
    draw = partial(sopt.generate, adapter=adapter, prompt="a sks bird", guidance=1, steps=100)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        draw(two_paths=two_paths)
        times.append(time.perf_counter() - started)
    return min(times)


def plot(rows: list[dict[str, Any]]) -> str:
    """Mean scores of each cut over the peak memory of its steps, as SVG."""
    cuts = list(dict.fromkeys(row["cut"] for row in rows))
    peaks = [max(r["peak"] for r in rows if r["cut"] == cut) / 2**20 for cut in cuts]
    low, high = min(peaks), max(peaks)
    span = (high - low) or 1.0

    def at(peak: float, score: float) -> tuple[float, float]:
        x = MARGIN + (peak - low) / span * (WIDTH - 2 * MARGIN)
        return round(x, 1), round(HEIGHT - MARGIN - score * (HEIGHT - 2 * MARGIN), 1)

    text = '<text x="{}" y="{}" font-size="12" font-family="sans-serif" fill="{}">{}</text>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text.format(WIDTH // 2 - 80, HEIGHT - 8, "black", "peak of a training step, MiB"),
    ]
    for score in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = at(low, score)
        parts.append(f'<path d="M{MARGIN} {y}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(text.format(8, y + 4, "black", f"{score:.2f}"))
    for line, (name, colour) in enumerate(COLOURS.items()):
        parts.append(text.format(WIDTH - 140, 20 + 16 * line, colour, f"{name} score"))
        for cut, peak in zip(cuts, peaks, strict=True):
            x, y = at(peak, float(np.mean([r[name] for r in rows if r["cut"] == cut])))
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
            if line == 0:
                parts.append(text.format(x - 10, HEIGHT - MARGIN + 16, "black", cut or "whole"))
                parts.append(text.format(x - 10, HEIGHT - MARGIN + 30, "#777", f"{peak:.1f}"))
    return "\n".join([*parts, "</svg>", ""])


def report(rows: list[dict[str, Any]]) -> str:
    """Mean scores of each cut, and their standard deviation over subjects, as Markdown."""
    lines = [
        "| cut | left out | peak of a step, MiB | subject score | prompt score |",
        "|---" * 5 + "|",
    ]
    for cut in dict.fromkeys(row["cut"] for row in rows):
        of_cut = [row for row in rows if row["cut"] == cut]
        scores = [
            f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
            for values in ([row[name] for row in of_cut] for name in COLOURS)
        ]
        left_out, peak = of_cut[0]["fraction"], max(row["peak"] for row in of_cut) / 2**20
        lines.append(
            f"| {cut or 'none'} | {100 * left_out:.0f} % | {peak:.1f} | {' | '.join(scores)} |"
        )
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--json", type=Path, default=Path("bench/results/hollow_sweep.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/hollow_sweep.svg"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += runs_of(seed, Path(folder), arguments.steps)
        write_json(arguments.json, rows)
        write_text(arguments.plot, plot(rows))


if __name__ == "__main__":
    main()
