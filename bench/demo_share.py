"""How much of backprop-high does the demo reach? ``python -m bench.demo_share [--json FILE]``.

The demo, then a ``backprop-high`` run of as many steps on the same pictures, judged alike. The
share is (after - before) / (backprop-high - before) of the subject score, none where
backprop-high gained nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import sopt
from sopt.demo import STEPS, WEIGHTS, demo, score_adapter
from sopt.files import write_json
from sopt.tiny import judge
from sopt.tiny.scenes import random_subject


def compare(seed: int, work: Path) -> dict[str, float]:
    figures = demo(work, seed)
    subject = random_subject(np.random.default_rng(seed))
    run = sopt.train(
        images=str(work / "photos"),
        prompt=f"a sks {subject.kind}",
        output=str(work / "backprop-high"),
        method="backprop-high",
        weights=WEIGHTS,
        steps=STEPS,
        seed=seed,
    )
    scores = score_adapter(run.adapter, subject, judge.reference(subject))
    before, after = figures["subject_before"], figures["subject_after"]
    return {
        "seed": seed,
        "seconds": figures["seconds"],
        "subject_before": before,
        "subject_after": after,
        "subject_backprop_high": scores.subject,
        "share": (after - before) / gained if (gained := scores.subject - before) > 0 else None,
        "prompt_before": figures["prompt_before"],
        "prompt_after": figures["prompt_after"],
        "prompt_backprop_high": scores.prompt,
        **{f"peak_{k}": v for k, v in figures["peak_bytes"].items() if k.startswith("train")},
        "peak_train_backprop_high": run.memory["train-bp"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(seed, Path(folder)))
        print(rows[-1], flush=True)
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
