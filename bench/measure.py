"""How all benchmarks of kernels measure: alternating with what they are compared with.

Ratios are of medians within one process, taken round by round, so they hold on a busy machine too.
``extra_info`` says: ``GB/s`` by the bytes the op has to move; ``x <yardstick>``, how many times
faster than the yardstick; ``of stream``, the share of the in-place stream ``x.mul_(c)``, the limit
that the memory sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sopt_kernels import _native

STREAM = "stream"  # the yardstick that is a limit rather than a rival
ROUNDS = 25
LARGE, ROUNDS_OF_LARGE = 2**27, 9  # bytes; rounds of what moves more


def measure(
    benchmark: Any, run: Callable[[], Any], yardsticks: Mapping[str, Callable[[], Any]], moved: int
) -> None:
    """Time ``run`` and each of ``yardsticks``, which move ``moved`` bytes, alternating."""
    rounds = ROUNDS if moved <= LARGE else ROUNDS_OF_LARGE
    times: dict[str, list[float]] = {name: [] for name in yardsticks}

    def yardsticks_first() -> None:
        for name, call in yardsticks.items():
            times[name].append(_seconds(call))

    benchmark.pedantic(run, setup=yardsticks_first, rounds=rounds, warmup_rounds=1)
    if benchmark.disabled:
        return
    own = benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(moved / own / 1e9, 2)
    for name, values in times.items():
        ratio = statistics.median(values[1:]) / own  # the first belongs to the warm-up
        benchmark.extra_info["of stream" if name == STREAM else f"x {name}"] = round(ratio, 3)
    benchmark.extra_info |= {
        "level": _native.cpu_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
