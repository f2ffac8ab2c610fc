"""Peak memory of each phase of a short run on the bundled model: ``python -m bench.tiny_peaks``.

The sizes of tensors are the same on every machine, so the figures are compared with those committed
in ``bench/baseline/tiny_peaks.json`` to a fiftieth (tests/test_tiny_peaks.py); ``--update`` writes
what was found there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import sopt

from .full_size_run import make_pictures

BASELINE = Path(__file__).parent / "baseline" / "tiny_peaks.json"
WEIGHTS = ("float32", "bfloat16")
ALLOWED_GROWTH = 0.02
STEPS = 6  # with the schedule 0.5 and seed 0, of both kinds


def peaks(weights: str, work: Path) -> dict[str, int]:
    """Bytes by phase of a selective run whose frozen weights have this dtype."""
    make_pictures(work / "photos", 64)
    run = sopt.train(
        images=str(work / "photos"),
        prompt="a sks dog",
        output=str(work / "run"),
        weights=weights,
        schedule=0.5,
        steps=STEPS,
    )
    return {phase: size for phase, size in run.memory.items() if isinstance(size, int)}


def grown(old: dict[str, int], new: dict[str, int]) -> list[str]:
    """The phases that take more than they may."""
    return [k for k, size in new.items() if size > old.get(k, 0) * (1 + ALLOWED_GROWTH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true")
    update = parser.parse_args().update
    found = {}
    for weights in WEIGHTS:
        with tempfile.TemporaryDirectory() as folder:
            found[weights] = peaks(weights, Path(folder))
    print(json.dumps(found, indent=2))
    if update:
        BASELINE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
