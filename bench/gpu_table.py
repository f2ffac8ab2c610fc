"""The README's table of GPU figures, generated from the newest file in bench/results.

``python -m bench.gpu_table`` rewrites the place between its two marks in README.md;
``--check`` fails if that would change it.
"""

from __future__ import annotations

import json
from typing import Any

from .generated import RESULTS, rewrite

COMMAND = "bench.gpu_table"
CASES = (  # of bench.gpu_speed
    "64Mi",
    "64Mi, 8 seeds",
    "64Mi, stochastic",
    "64Mi, restore and accumulate",
    "64Mi, perturb codes",
    "64Mi, update codes",
    "SD1.5 LoRA",
    "LLaMA-7B LoRA",
    "OPT-1.3B",
)
NOT_YET = """\
- **Nothing here has run on a GPU yet.** Triton and CUDA kernels are compiled, and their arithmetic
  runs on the CPU, Triton's in its interpreter and the CUDA source with emulated thread indices.
  GPU figures: not yet run. `make gpu-check` on a machine with a GPU proves the kernels there,
  measures them, and puts its table here.
"""


def newest() -> dict[str, Any] | None:
    """The results of the last run by date, if there was one."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    runs = [result for result in found if "gpu" in result]
    return max(runs, key=lambda result: result["date"], default=None)


def table(result: dict[str, Any], cases: tuple[str, ...] | None = None) -> str:
    """Speed as a Markdown table: all cases, or those named."""
    columns = ["tensors", "dtype", "noise", "body", "time", "in a graph", "GB/s", "of copy"]
    columns += ["x MeZO", "x foreach"]
    rows = [columns, ["---"] * len(columns)]
    for row in result["speed"]:
        if cases is None or row["case"] in cases:
            ratios = (f"{row['of_copy']:.2f}", f"{row['x_mezo']:.1f}", f"{row['x_foreach']:.1f}")
            times = (_microseconds(row["seconds"]), _microseconds(row["graph_seconds"]))
            speed = f"{row['bytes_per_second'] / 1e9:.0f}"
            names = (row["case"], row["dtype"], row["kind"], row["body"])
            rows.append([*names, *times, speed, *ratios])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f} us"


def summary(result: dict[str, Any]) -> str:
    """What was run and what came of it, in one line for each."""
    tests = result["tests"]
    lines = [
        f"{result['gpu']}, {result['date']}, commit {result['commit']}, {result['versions']}",
        f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped",
    ]
    lines += [f"compute-sanitizer {tool}: {found}" for tool, found in result["sanitizer"].items()]
    return "\n".join(lines) + "\n"


def section(result: dict[str, Any] | None) -> str:
    """What stands in the README."""
    if result is None:
        return NOT_YET
    lines = summary(result).splitlines()
    return (
        "- Kernels on a GPU, one call each, of `add_noise_` where no other op is named\n"
        "  (`make gpu-check`; all rows in [bench/results](bench/results)):\n"
        + "".join(f"  {line}\n" for line in lines)
        + "\n"
        + table(result, CASES)
    )


def main() -> None:
    rewrite("README.md", COMMAND, section(newest()), __doc__)


if __name__ == "__main__":
    main()
