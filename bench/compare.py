"""Has a kernel lost speed? ``python -m bench.compare RESULTS [--update]``.

Compares the ratios (never the times) in a results file of pytest-benchmark with those committed for
the same instruction-set level in ``bench/baseline/<level>.json``, and fails where one has lost more
than a fifth. ``--update`` writes the results' ratios into that file instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

BASELINE = Path(__file__).parent / "baseline"
ALLOWED_LOSS = 0.2


def ratios(results: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """The level, and by benchmark its ratios: of time saved, so larger is better."""
    found, levels = {}, set()
    for benchmark in json.loads(results.read_text())["benchmarks"]:
        info = benchmark["extra_info"]
        values = {k: v for k, v in info.items() if k.startswith("x ") or k == "of stream"}
        if values:
            found[benchmark["name"]] = values
            levels.add(info["level"])
    if len(levels) != 1:
        sys.exit(f"{results} must have ratios of one instruction-set level, got {sorted(levels)}")
    return levels.pop(), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    level, new = ratios(arguments.results)
    baseline = BASELINE / f"{level}.json"
    old = json.loads(baseline.read_text()) if baseline.exists() else {}
    if arguments.update:
        BASELINE.mkdir(exist_ok=True)
        baseline.write_text(json.dumps(dict(sorted({**old, **new}.items())), indent=2) + "\n")
        return
    if not old:
        print(f"nothing to compare with: there is no {baseline.name} yet")
        return
    losses = 0
    for name, values in new.items():
        for key, value in values.items():
            before = old.get(name, {}).get(key)
            lost = before is not None and value < before * (1 - ALLOWED_LOSS)
            losses += lost
            change = "new" if before is None else f"was {before:g}"
            print(f"{'LOST ' if lost else '     '}{name:60}{key:18}{value:9g}  {change}")
    sys.exit(f"{losses} ratios lost more than {ALLOWED_LOSS:.0%}" if losses else 0)


if __name__ == "__main__":
    main()
