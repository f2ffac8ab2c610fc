"""Time of ``add_noise_`` beside what it replaces and beside the limit of the memory.

Run: pytest bench/test_add_noise.py -m "" (--threads 1, --sizes 16 22 26)

Every benchmark alternates its subject and the yardsticks in one process, round by round, so that
its ratios hold on a busy machine too. ``extra_info`` states, from medians: bytes/s (one read and
one write per element), ``x <yardstick>`` = times faster, ``of stream`` = share of ``x.mul_(c)``.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import pytest
import torch

from sopt_kernels import _native, add_noise_, write_noisy_

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LOG2_SIZES = {"64Ki": 16, "4Mi": 22, "64Mi": 26}


def mezo_perturb(x, seed, scale):
    """As MeZO's reference does: z drawn at full size, three more passes, a new tensor."""
    torch.manual_seed(seed)
    z = torch.normal(mean=0, std=1, size=x.size(), dtype=x.dtype)
    return x + scale * z


def yardsticks(x):
    other = torch.empty_like(x)
    return {
        "copy_": partial(other.copy_, x),
        "mul_": partial(x.mul_, 0.999),
        "randn_add_": lambda: x.add_(torch.randn_like(x), alpha=1e-3),
        "mezo": partial(mezo_perturb, x, 1, 1e-3),
    }


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(benchmark, run, others, moved):
    """Median seconds of ``run`` and of each of ``others``, interleaved round by round."""
    rounds = 9 if moved > 2**27 else 25
    times: dict[str, list[float]] = {name: [] for name in others}

    def others_first():
        for name, call in others.items():
            times[name].append(seconds(call))

    benchmark.pedantic(run, setup=others_first, rounds=rounds, warmup_rounds=1)
    if benchmark.disabled:
        return
    own = benchmark.stats.stats.median
    benchmark.extra_info |= {"GB/s": round(moved / own / 1e9, 2)}
    for name, values in times.items():
        ratio = statistics.median(values[1:]) / own  # the first belongs to the warm-up
        benchmark.extra_info[f"x {name}" if name != "mul_" else "of stream"] = round(ratio, 2)
    benchmark.extra_info |= {
        "level": _native.cpu_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("size", LOG2_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_one_tensor(benchmark, kind, dtype, size):
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


def test_a_lora(benchmark):
    """256 small tensors, as of a U-Net's attention at rank 4: one call against one call each."""
    shapes = [(4, 320), (320, 4)] * 64 + [(4, 640), (640, 4)] * 32 + [(4, 1280), (768, 4)] * 32
    tensors = [torch.zeros(shape) for shape in shapes]
    run = partial(add_noise_, tensors, 1, 1e-3, streams=list(range(len(tensors))))

    def torch_way():
        for x in tensors:
            x.add_(torch.randn_like(x), alpha=1e-3)

    others = {"randn_add_": torch_way, "mezo": lambda: [mezo_perturb(x, 1, 1e-3) for x in tensors]}
    benchmark.group = "add_noise_ f32, 256 tensors"
    measure(benchmark, run, others, 2 * sum(x.nbytes for x in tensors))


def test_call_overhead(benchmark):
    """Four elements: what a call costs that does almost nothing."""
    x = torch.zeros(4)
    benchmark.group = "call overhead"
    benchmark(partial(add_noise_, x, 1, 1e-3, streams=1))
