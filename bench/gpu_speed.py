"""Speed of the GPU bodies of the ops, beside what they replace and the limit of the memory.

``python -m bench.gpu_speed --json FILE``; :mod:`bench.gpu_check` runs it. Each case alternates the
bodies and the yardsticks in one process, round by round, and takes medians. A time is that of many
calls in a row, by the GPU's clock: for small tensors and for lists it is what the host needs to
launch them. ``graph_seconds`` is that of replays of a CUDA graph of the call: the GPU's part alone.

``copy``: ``y.copy_(x)``, one read and one write of each byte, as the ops. ``mul``: ``x.mul_(c)``.
For lists both are ``torch._foreach_*_``, and of codes the second is ``x.add_(1)``.
``mezo``: ``x.add_(torch.randn_like(x), alpha=c)`` for each tensor, of codes with the noise rounded
and converted. ``foreach``: the same with one ``torch._foreach_add_`` for all tensors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sopt_kernels._registry import OPS

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i8": torch.int8}
FLOATS = ("f32", "bf16", "f16")
KINDS = ("gaussian", "rademacher")
LOG2_SIZES = {"64Ki": 16, "4Mi": 22, "64Mi": 26, "256Mi": 28}
ROUNDS = 9
ROUND_SECONDS = 0.004  # of calls in a row, so that the clock's step of 1 us does not show
Shapes = list[tuple[int, ...]]


def sd15_lora() -> Shapes:
    """SD1.5's U-Net, rank 4, all attention projections: 256 tensors, 797,184 parameters."""
    shapes: Shapes = []
    for channels in [320] * 5 + [640] * 5 + [1280] * 6:
        inputs = [channels] * 6 + [768] * 2  # q, k, v, out; q, out, then k, v of the text
        shapes += [s for n in inputs for s in ((4, n), (channels, 4))]
    return shapes


def llama7b_lora() -> Shapes:
    """LLaMA-7B, rank 8, all seven projections of 32 layers: 448 tensors, 20 M parameters."""
    projections = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    return [s for n, m in projections * 32 for s in ((8, n), (m, 8))]


def opt1b() -> Shapes:
    """OPT-1.3B, all of it: 388 tensors, 1.3 G parameters."""
    layer: Shapes = [(2048, 2048), (2048,)] * 4
    layer += [(8192, 2048), (8192,), (2048, 8192), (2048,), *[(2048,)] * 4]
    return [(50272, 2048), (2050, 2048), *layer * 24, (2048,), (2048,)]


LISTS = {
    "SD1.5 LoRA": (sd15_lora, "f32"),
    "LLaMA-7B LoRA": (llama7b_lora, "f32"),
    "OPT-1.3B": (opt1b, "bf16"),
}


@dataclass
class Case:
    name: str
    dtype: str
    seeds: int
    tensors: list[Tensor]
    op: str = "add_noise_"
    rounding_seeds: Tensor | None = None

    def arguments(self, kind: str) -> tuple:
        """Of the op; what it reads beside tensors is on their device."""
        device, streams = self.tensors[0].device, list(range(len(self.tensors)))
        seeds = torch.arange(self.seeds, device=device)
        coefficients = torch.full((self.seeds,), 1e-3, device=device)
        if self.op == "add_noise_":
            sums = (seeds, coefficients, streams, kind, 1.0, [], self.rounding_seeds)
            return self.tensors, *sums
        if self.op == "restore_accumulate_":
            params, grads = self.tensors[:1], self.tensors[1:]
            return params, grads, seeds, -coefficients, coefficients, streams[:1], kind
        scales = [torch.full((x.shape[0],), 1e-3, device=device) for x in self.tensors]
        perturb = (self.tensors, scales, seeds, coefficients, streams, kind, 8, seeds[:1])
        if self.op == "perturb_int8_":
            return perturb
        clamped = torch.zeros((), dtype=torch.int64, device=device)
        return *perturb, seeds, coefficients[:1], clamped


def cases(device: str, small: bool) -> Iterator[Case]:
    """Small ones for a rehearsal without a GPU."""

    def zeros(dtype: str, log2: int) -> Tensor:
        return torch.zeros(16, 1 << (6 if small else log2 - 4), dtype=DTYPES[dtype], device=device)

    for size, log2 in LOG2_SIZES.items():
        for dtype in FLOATS:
            yield Case(size, dtype, 1, [zeros(dtype, log2)])
    for dtype in ("f32", "bf16"):
        yield Case("64Mi, 8 seeds", dtype, 8, [zeros(dtype, 26)])
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    yield Case("64Mi, stochastic", "bf16", 1, [zeros("bf16", 26)], rounding_seeds=seed)
    both = [zeros("f32", 26), zeros("f32", 26)]
    yield Case("64Mi, restore and accumulate", "f32", 1, both, "restore_accumulate_")
    yield Case("64Mi, perturb codes", "i8", 1, [zeros("i8", 26)], "perturb_int8_")
    yield Case("64Mi, update codes", "i8", 1, [zeros("i8", 26)], "update_int8_")
    for name, (shapes, dtype) in LISTS.items():
        chosen = shapes()[:8] if small else shapes()
        if small:
            chosen = [tuple(min(n, 64) for n in shape) for shape in chosen]
        yield Case(
            name, dtype, 1, [torch.zeros(s, dtype=DTYPES[dtype], device=device) for s in chosen]
        )


def bodies(case: Case, kind: str) -> dict[str, Callable]:
    """Calls of each body that runs here, but for the reference."""
    found, arguments = OPS[case.op].backends(case.tensors[0].device.type), case.arguments(kind)
    return {name: partial(found[name], *arguments) for name in found if name != "reference"}


def noise_like(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return torch.randn_like(x)
    return torch.randn(x.shape, device=x.device).round_().to(x.dtype)


def yardsticks(tensors: list[Tensor]) -> dict[str, Callable]:
    others = [torch.empty_like(x) for x in tensors]
    floating = tensors[0].is_floating_point()
    alpha = 1e-3 if floating else 1

    def mezo():
        for x in tensors:
            x.add_(noise_like(x), alpha=alpha)

    def foreach():
        torch._foreach_add_(tensors, [noise_like(x) for x in tensors], alpha=alpha)

    if len(tensors) > 1:
        copy = partial(torch._foreach_copy_, others, tensors)
        mul = partial(torch._foreach_mul_, tensors, 0.999)
    else:
        copy = partial(others[0].copy_, tensors[0])
        mul = partial(tensors[0].mul_, 0.999) if floating else partial(tensors[0].add_, 1)
    return {
        "copy": copy,
        "mul": mul,
        "mezo": mezo,
        "foreach": foreach,
    }


def seconds(call: Callable, calls: int, device: str) -> float:
    """Of one of ``calls`` calls in a row."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def replay(call: Callable) -> Callable:
    """Replays a CUDA graph of ``call``, which has been called before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def medians(calls: dict[str, Callable], device: str) -> dict[str, float]:
    """Seconds of each, interleaved round by round."""
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, and fills caches of tables and memory
        repeats[name] = max(1, min(100, int(ROUND_SECONDS / seconds(call, 3, device))))
    rounds = [
        {name: seconds(call, repeats[name], device) for name, call in calls.items()}
        for _ in range(ROUNDS)
    ]
    return {name: statistics.median(r[name] for r in rounds) for name in calls}


def measure(device: str, small: bool = False) -> list[dict[str, Any]]:
    """One row for each case, kind and body."""
    rows = []
    for case in cases(device, small):
        tensors, seeds = case.tensors, case.seeds
        moved = 2 * sum(x.nbytes for x in tensors)
        calls = yardsticks(tensors)
        for kind in KINDS:
            for name, call in bodies(case, kind).items():
                calls[f"{name} {kind}"] = call
        times = medians(calls, device)
        for name in list(times)[4:]:
            own = times[name]
            graph = medians({name: replay(calls[name])}, device) if device == "cuda" else {}
            rows.append(
                {
                    "case": case.name,
                    "op": case.op,
                    "dtype": case.dtype,
                    "tensors": len(tensors),
                    "elements": sum(x.numel() for x in tensors),
                    "seeds": seeds,
                    "body": name.split()[0],
                    "kind": name.split()[1],
                    "seconds": own,
                    "graph_seconds": graph.get(name),
                    "bytes_per_second": moved / own,
                    "of_copy": times["copy"] / own,
                    "of_mul": times["mul"] / own,
                    "x_mezo": seeds * times["mezo"] / own,
                    "x_foreach": seeds * times["foreach"] / own,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="tiny tensors on the CPU")
    arguments = parser.parse_args()
    rows = measure("cpu" if arguments.rehearse else "cuda", arguments.rehearse)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
