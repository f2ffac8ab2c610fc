"""Time and memory of a ZOSGD step beside its forwards; size and replay of a seed log.

``python -m bench.zosgd [--threads N] [--device cuda --large] [--json FILE]``: MeZO's way in the
same process, rounds taken in turn, medians. With one thread, its CPU time, in which other processes
do not count; with more, by the clock on the wall, which needs an idle machine. torch draws its
normal samples in one thread whatever their number. The language model has 100.5 M float32
parameters, with --large the 1.3 G of OPT-1.3B; the LoRA is SD1.5's at rank 4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import mezo_reference
from bench.parameter_lists import Shape, language_model, sd15_lora
from bench.zosgd_cases import EPS, LR, RESTORES, language_model_100m, step_of
from sopt import replay
from sopt.memory import LiveStorage
from sopt.optim import ZOSGD, SeedLog
from sopt.optim.seed_log import GroupSettings, Update
from sopt_kernels import add_noise_

ROUNDS, STEPS, REFERENCE_STEPS = 5, 20_000, 50


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    own = torch.get_num_threads() == 1 and device == "cpu"
    clock = time.thread_time if own else time.perf_counter
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def extra_bytes(call: Callable[[], object], device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - allocated
    with LiveStorage() as live:
        before = live.bytes
        call()
        return live.peak - before


def steps(shapes: Sequence[Shape], noise: str, device: str) -> dict[str, dict[str, float]]:
    """Seconds and extra peak bytes of a step, by restore; "mezo" beside them."""
    tensors = [torch.zeros(shape, device=device) for shape in shapes]
    calls: dict[str, Callable[[], object]] = {
        restore: step_of(shapes, restore, noise, device) for restore in RESTORES
    }
    calls["mezo"] = lambda: mezo_reference.step(tensors, 1, EPS, 0.5, LR)
    peaks = {name: extra_bytes(call, device) for name, call in calls.items()}  # the warm-up, too
    rounds = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(ROUNDS)]
    return {
        name: {
            "seconds": statistics.median(r[name] for r in rounds),
            "times_mezo": statistics.median(r["mezo"] / r[name] for r in rounds),
            "extra_peak_bytes": peaks[name],
        }
        for name in calls
    }


def seed_log() -> dict[str, float]:
    """A log of 20,000 steps on the LoRA: its size, its replay, and the updates it stands for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zolog"
        base = {str(i): torch.full(shape, 0.02) for i, shape in enumerate(sd15_lora())}
        named = [(name, torch.nn.Parameter(x)) for name, x in base.items()]
        log = SeedLog.create(path, ZOSGD(named, LR, EPS).header())
        header = path.stat().st_size
        slopes = torch.randn(STEPS, generator=torch.Generator().manual_seed(0)) * LR
        for step, coefficient in enumerate(slopes.tolist(), 1):
            log.append(Update(step, [GroupSettings.rounded(1, EPS, 1)], [0], [[coefficient]]))
        first = {name: x.clone() for name, x in base.items()}
        replaying = seconds(lambda: replay(base, path))
        optimizer = ZOSGD([(name, torch.nn.Parameter(x)) for name, x in first.items()], LR, EPS)
        tensors, streams = list(first.values()), list(first)
        for update in log.updates():
            seed, _ = optimizer._setup.direction(update.step, 0)
            add_noise_(tensors, seed, update.coefficients[0], streams=streams)
        if not all(torch.equal(first[name], base[name]) for name in base):
            raise RuntimeError("the replay is not what the steps one by one give")
        reference = seconds(
            lambda: [
                mezo_reference.update(tensors, step, 0.5, LR, 0.0)
                for step in range(REFERENCE_STEPS)
            ]
        )
        return {
            "steps": STEPS,
            "bytes": path.stat().st_size,
            "header_bytes": header,
            "replay_seconds": replaying,
            "reference_seconds": reference / REFERENCE_STEPS * STEPS,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--large", action="store_true", help="1.3 G parameters: 30 GiB of memory")
    parser.add_argument("--json", help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    shapes = language_model() if arguments.large else language_model_100m()
    print("| noise | restore | s beside the forwards | times MeZO's | extra peak, MiB |")
    print("| --- | --- | --- | --- | --- |")
    for noise in ("gaussian", "rademacher"):
        figures[noise] = steps(shapes, noise, arguments.device)
        for name, row in figures[noise].items():
            peak = f"{row['extra_peak_bytes'] / 2**20:.1f}"
            times = f"{row['times_mezo']:.1f}"
            print(f"| {noise} | {name} | {row['seconds']:.3f} | {times} | {peak} |")
    figures["seed_log"] = log = seed_log()
    print(
        f"\nseed log of {log['steps']} steps: {log['bytes']} bytes; "
        f"replay {log['replay_seconds']:.1f} s, the same bits as step by step; "
        f"the reference's updates {log['reference_seconds']:.0f} s, from {REFERENCE_STEPS} of them"
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
