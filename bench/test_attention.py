"""``attention_forward`` beside PyTorch's attention; the limit is the rate of its matrix product.

Run: pytest bench/test_attention.py -s (--threads 1). ``extra_info``: ``GFLOP/s`` of the two
products alone, 4 n m d for each head; ``x torch``, how many times faster than PyTorch's attention;
``of gemm``, the rate over that of ``torch.mm`` of 2048 x 2048 matrices in the same dtype. Times are
of the processor, summed over threads, so another process costs little but its share of the caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sopt_kernels import _native, attention_forward

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
LEVELS = {  # of SD1.5 at 512 pixels: queries, head size
    "64x64": (4096, 40),
    "32x32": (1024, 80),
    "16x16": (256, 160),
    "8x8": (64, 160),
}
HEADS, TEXT, SIDE, ROUNDS = 8, 77, 2048, 9
LEAST_FLOP = 4e9  # of a round: small calls are repeated


def seconds(call: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("keys", ["self", "text"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_levels_of_sd15(benchmark, dtype, level, keys, batch):
    n, d = LEVELS[level]
    m = n if keys == "self" else TEXT
    heads = [
        torch.randn(batch, rows, HEADS * d).to(DTYPES[dtype]).view(batch, rows, HEADS, d)
        for rows in (n, m, m)
    ]
    arguments = [x.transpose(1, 2) for x in heads]
    square = torch.randn(SIDE, SIDE).to(DTYPES[dtype])
    flop, gemm_flop = 4 * batch * HEADS * n * m * d, 2 * SIDE**3
    times = max(1, round(LEAST_FLOP / flop))
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "own": (partial(attention_forward, *arguments), times),
        "torch": (partial(scaled_dot_product_attention, *arguments), times),
        "gemm": (partial(torch.mm, square, square), 1),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}

    def one_round() -> None:
        for name, call in calls.items():
            found[name].append(seconds(*call))

    benchmark.group = f"attention_forward {dtype}"
    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    own, other, gemm = (statistics.median(values[1:] or values) for values in found.values())
    benchmark.extra_info |= {
        "GFLOP/s": round(flop / own / 1e9, 1),
        "x torch": round(other / own, 2),
        "of gemm": round(flop / own / (gemm_flop / gemm), 3),
        "level": _native.cpu_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")
