"""``add_noise_`` and ``write_noisy_`` beside what they replace and the limit of the memory.

Run: pytest bench/test_add_noise.py (--threads 1, --large)
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import mezo_reference
from bench.measure import STREAM, measure
from sopt_kernels import add_noise_, write_noisy_

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LOG2_SIZES = {"64Ki": 16, "4Mi": 22, "64Mi": 26, "256Mi": 28}


def yardsticks(x):
    other = torch.empty_like(x)
    return {
        "copy": partial(other.copy_, x),
        STREAM: partial(x.mul_, 0.999),
        "randn and add": lambda: x.add_(torch.randn_like(x), alpha=1e-3),
        "mezo": partial(mezo_reference.perturb, [x], 1, 1, 1e-3),
    }


@pytest.mark.parametrize("size", LOG2_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_one_tensor(benchmark, large, kind, dtype, size):
    if size == "256Mi" and not large:
        pytest.skip("256 Mi elements with --large only")
    x = torch.zeros(1 << LOG2_SIZES[size], dtype=DTYPES[dtype])
    run = partial(add_noise_, x, 1, 1e-3, streams=1, kind=kind)
    benchmark.group = f"add_noise_ {dtype} {size}"
    measure(benchmark, run, yardsticks(x), 2 * x.nbytes)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_write_noisy(benchmark, kind):
    base = torch.zeros(1 << 22)
    out = torch.empty_like(base)
    run = partial(write_noisy_, out, base, 1, 1e-3, streams=1, kind=kind)
    benchmark.group = "write_noisy_ f32 4Mi"
    measure(benchmark, run, yardsticks(base), 2 * base.nbytes)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_eight_seeds_in_one_pass(benchmark, kind):
    x = torch.zeros(1 << 24)
    seeds, coefficients = list(range(8)), [1e-3] * 8
    run = partial(add_noise_, x, seeds, coefficients, streams=1, kind=kind)

    def one_by_one():
        for seed in seeds:
            add_noise_(x, seed, 1e-3, streams=1, kind=kind)

    benchmark.group = "add_noise_ f32 16Mi K=8"
    measure(benchmark, run, {"eight passes": one_by_one}, 2 * x.nbytes)


def test_call_overhead(benchmark):
    """Four elements: what a call costs that does almost nothing."""
    x = torch.zeros(4)
    benchmark.group = "call overhead"
    benchmark(partial(add_noise_, x, 1, 1e-3, streams=1))
