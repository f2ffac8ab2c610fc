"""How all benchmarks of kernels measure: alternating with what they are compared with.

Ratios are of medians within one process, taken round by round, and with one thread of its CPU time,
in which the time slices of other processes do not count: so they hold on a busy machine too. The
times that pytest-benchmark prints are by the clock on the wall. ``of least times`` has the ratios
of the least times instead of the medians: steadier, for ``bench.compare``.
``extra_info`` says: ``GB/s`` by the bytes the op has to move; ``x <yardstick>``, how many times
faster than the yardstick; ``of stream``, the share of the in-place stream ``x.mul_(c)``, the limit
that the memory sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from sopt_kernels import _native

STREAM = "stream"  # the yardstick that is a limit rather than a rival
OWN = "own"
ROUNDS = 25
LARGE, ROUNDS_OF_LARGE = 2**27, 9  # bytes; rounds of what moves more


def measure(
    benchmark: Any, run: Callable[[], Any], yardsticks: Mapping[str, Callable[[], Any]], moved: int
) -> None:
    """Time ``run`` and each of ``yardsticks``, which move ``moved`` bytes, alternating."""
    rounds = ROUNDS if moved <= LARGE else ROUNDS_OF_LARGE
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in (*yardsticks, OWN)}

    def timed(name: str, call: Callable[[], Any]) -> None:
        start = clock()
        call()
        times[name].append(clock() - start)

    def yardsticks_first() -> None:
        for name, call in yardsticks.items():
            timed(name, call)

    own_run = partial(timed, OWN, run)
    benchmark.pedantic(own_run, setup=yardsticks_first, rounds=rounds, warmup_rounds=1)
    if benchmark.disabled:
        return
    medians = {k: statistics.median(v[1:]) for k, v in times.items()}  # without the warm-up
    own = medians.pop(OWN)
    benchmark.extra_info["GB/s"] = round(moved / own / 1e9, 2)
    for name, median in medians.items():
        ratio = median / own
        benchmark.extra_info["of stream" if name == STREAM else f"x {name}"] = round(ratio, 3)
    least = {k: min(v[1:]) for k, v in times.items()}
    benchmark.extra_info |= {
        "of least times": {k: round(v / least[OWN], 3) for k, v in least.items() if k != OWN},
        "level": _native.cpu_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")
