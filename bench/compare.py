"""Has a kernel lost speed? ``python -m bench.compare [--update]``.

Runs a short form of the benchmarks and compares their ratios (never the times) with those committed
for the same processor and instruction-set level, ``bench/baseline/<level>-<processor>.json``. Fails
where one has lost more than a fifth, each of three times: the best counts, as what else runs on
the machine can only make a ratio look worse. ``--update`` writes the median of three measurements
into that file: MeZO's way, which ratios are to, took a fifth less time in one of two runs of the
same code. On a processor that has no such file there is nothing to compare with, which is no
failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

BASELINE = Path(__file__).parent / "baseline"
SHORT_FORM = ("bench", "-k", "4Mi and not 64Mi and not -f16 or step and LoRA")
YARDSTICKS = ("mezo", "stream")
ALLOWED_LOSS, TRIES = 0.2, 3

Ratios = dict[str, dict[str, float]]  # by benchmark: of time saved, so larger is better


def run(selection: Sequence[str]) -> tuple[str, Ratios]:
    """The name of the baseline, and the ratios of the benchmarks that pytest selects."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        options = ("-q", "--benchmark-only", f"--benchmark-json={results}")
        subprocess.run([sys.executable, "-m", "pytest", *selection, *options], check=True)
        found = json.loads(results.read_text())
    cpu = found["machine_info"]["cpu"]
    processor = "-".join(str(cpu.get(k, "unknown")) for k in ("vendor_id_raw", "family", "model"))
    names = {f"{b['extra_info']['level']}-{processor}.json" for b in found["benchmarks"]}
    return names.pop(), {b["fullname"]: _ratios(b["extra_info"]) for b in found["benchmarks"]}


def _ratios(info: dict) -> dict[str, float]:
    return {k: v for k, v in info["of least times"].items() if k in YARDSTICKS}


def lost(old: Ratios, new: Ratios) -> list[tuple[str, str]]:
    """The benchmarks and the ratios of theirs that lost more than is allowed."""
    return [
        (name, key)
        for name, values in new.items()
        for key, value in values.items()
        if value < old.get(name, {}).get(key, 0) * (1 - ALLOWED_LOSS)
    ]


def best_of(old: Ratios, new: Ratios, again: Callable[[Sequence[str]], Ratios]) -> Ratios:
    """``new``, with the best of TRIES where ratios were lost, measured ``again``."""
    best = {name: dict(values) for name, values in new.items()}
    for _ in range(TRIES - 1):
        names = sorted({name for name, _ in lost(old, best)})
        for name, values in again(names).items() if names else ():
            best[name] = {k: max(v, best[name][k]) for k, v in values.items()}
    return best


def median_of(runs: Sequence[Ratios]) -> Ratios:
    """The median of each ratio."""
    return {
        name: {key: median(run[name][key] for run in runs) for key in values}
        for name, values in runs[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    update = parser.parse_args().update
    baseline, new = run(SHORT_FORM)
    path = BASELINE / baseline
    if update:
        BASELINE.mkdir(exist_ok=True)
        middle = median_of([new, *(run(SHORT_FORM)[1] for _ in range(TRIES - 1))])
        path.write_text(json.dumps(middle, indent=2, sort_keys=True) + "\n")
        return
    if not path.exists():
        print(f"nothing to compare with: there is no {path.name} yet")
        return
    old = json.loads(path.read_text())
    best = best_of(old, new, lambda names: run(names)[1])
    losses = lost(old, best)
    for name, values in best.items():
        for key, value in values.items():
            mark = "LOST" if (name, key) in losses else ""
            before = old.get(name, {}).get(key, float("nan"))
            print(f"{mark:5}{name:70}{key:15}{value:9.3f}  was {before:.3f}")
    sys.exit(f"{len(losses)} ratios lost more than {ALLOWED_LOSS:.0%}" if losses else 0)


if __name__ == "__main__":
    main()
