"""What settings do on the bundled model: for choosing the rates and the perturbation.

``python -m bench.tune lr=3e-4,1e-3,3e-3 --method backprop-high --steps 400`` trains the bundled
model with each combination of the settings named, on subjects that no other experiment uses, and
prints the judge's subject score, the prompt score (does the adapter still listen to the rest of
the prompt), and the full-resolution loss at timesteps >= 750 of :mod:`bench.zeroth_order_proof`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import sopt
from bench.zeroth_order_proof import FixedLoss
from sopt.demo import WEIGHTS, draw_photos, score_adapter
from sopt.tiny import judge
from sopt.tiny.scenes import random_subject

FIRST_SUBJECT = 100  # seeds 100, 101, ...


def prepare(seed: int, work: Path) -> dict[str, Any]:
    """A subject with its photos, prompt, judge's reference and fixed loss."""
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    photos, prompt = work / f"photos{seed}", f"a sks {subject.kind}"
    photos.mkdir()
    for number, photo in enumerate(draw_photos(subject, rng)):
        photo.save(photos / f"{number}.png")
    return {
        "subject": subject,
        "photos": photos,
        "prompt": prompt,
        "reference": judge.reference(subject),
        "loss": FixedLoss(photos, prompt),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axes", nargs="*", help="setting=value,value,...")
    parser.add_argument("--method", default="selective")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--subjects", type=int, default=2)
    arguments = parser.parse_args()
    axes = {}
    for axis in arguments.axes:
        name, _, values = axis.partition("=")
        number = int if name in ("num_perturbations", "rank") else float
        axes[name] = [number(v) if v[0].isdigit() else v for v in values.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = [prepare(FIRST_SUBJECT + k, work) for k in range(arguments.subjects)]
        for number, values in enumerate(itertools.product(*axes.values())):
            settings = dict(zip(axes, values, strict=True))
            rows = []
            for k, case in enumerate(cases):
                started = time.monotonic()
                run = sopt.train(
                    images=str(case["photos"]),
                    prompt=case["prompt"],
                    output=str(work / f"run{number}-{k}"),
                    method=arguments.method,
                    steps=arguments.steps,
                    weights=WEIGHTS,
                    **settings,
                )
                seconds = time.monotonic() - started
                scores = score_adapter(run.adapter, case["subject"], case["reference"])
                before = case["loss"](None).mean().item()
                change = case["loss"](run.adapter).mean().item() / before - 1
                rows.append((scores.subject, scores.prompt, change, seconds))
            subject, prompt, change, seconds = np.mean(rows, axis=0)
            print(
                f"{arguments.method} {settings}: subject {subject:.3f}, prompt {prompt:.3f}, "
                f"loss at high t {change:+.2%}, {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
