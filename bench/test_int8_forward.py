"""A forward pass of the full-size U-Net of SD1.5 at 512 pixels: int8 beside bfloat16, one process.

Run: pytest bench/test_int8_forward.py -s --threads 2 --large. ``extra_info``: ``x plain`` and
``x own bf16``, how many times faster than stock diffusers in bfloat16 and than this package's
bfloat16 path (``attention_forward``); ``error``, the relative distance of the output from that of
the float32 network, in the norm. With one thread times are of the processor, else by the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d, linear

from sopt.models import open_model
from sopt.models.forwards import speed_up_forwards
from sopt.quantization import quantize
from sopt_kernels import _native, int8_conv2d, int8_linear

ROUNDS = 5
# Of SD1.5 at 512 pixels. Convolutions: side, inputs, outputs, kernel; those that take most time.
CONVOLUTIONS = [
    (64, 320, 320, 3),
    (64, 960, 320, 3),
    (64, 320, 320, 1),
    (32, 640, 640, 3),
    (16, 1280, 1280, 3),
    (8, 1280, 1280, 3),
]
LINEARS = [  # rows, outputs, inputs
    (4096, 320, 320),
    (4096, 2560, 320),
    (4096, 320, 1280),
    (1024, 640, 640),
    (256, 10240, 1280),
    (77, 640, 768),
]


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(benchmark: Any, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, alternating."""
    found: dict[str, list[float]] = {name: [] for name in calls}

    def one_round() -> None:
        for name, call in calls.items():
            start = clock()
            call()
            found[name].append(clock() - start)

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info |= {
        "level": _native.cpu_level(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {name: statistics.median(values[1:] or values) for name, values in found.items()}


def report(benchmark: Any, calls: dict[str, Callable[[], Any]], operations: float) -> None:
    """Rates in 10^9 multiplications and additions a second; how many times torch in bfloat16."""
    times = medians(benchmark, calls, 9)
    for name, seconds in times.items():
        benchmark.extra_info[f"G/s {name}"] = round(operations / seconds / 1e9, 1)
    benchmark.extra_info["x torch"] = round(times["torch"] / times["int8"], 2)
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")


@pytest.mark.parametrize("rows, outputs, inputs", LINEARS)
@torch.no_grad()
def test_linear(benchmark, rows, outputs, inputs):
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    codes = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
    own = partial(int8_linear, x, codes, torch.rand(outputs))
    calls = {"torch": partial(linear, x, weight), "int8": own}
    calls["float"] = partial(own, activations="float")
    benchmark.group = "int8_linear"
    report(benchmark, calls, 2.0 * rows * outputs * inputs)


@pytest.mark.parametrize("side, inputs, outputs, kernel", CONVOLUTIONS)
@torch.no_grad()
def test_conv2d(benchmark, side, inputs, outputs, kernel):
    x = torch.randn(1, inputs, side, side).bfloat16()
    weight = torch.randn(outputs, inputs, kernel, kernel).bfloat16()
    codes = torch.randint(-127, 128, (outputs, kernel, kernel, inputs), dtype=torch.int8)
    last, padding = x.contiguous(memory_format=torch.channels_last), kernel // 2
    own = partial(int8_conv2d, last, codes, torch.rand(outputs), padding=padding)
    calls = {"torch": partial(conv2d, x, weight, padding=padding), "int8": own}
    calls["float"] = partial(own, activations="float")
    benchmark.group = "int8_conv2d"
    report(benchmark, calls, 2.0 * weight.numel() * side**2)


@torch.no_grad()
def test_forward_of_sd15(benchmark, large):
    if not large:
        pytest.skip("7 GiB of U-Nets with --large only")
    model = open_model("random:sd15")
    torch.manual_seed(0)
    x, text, t = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768), torch.tensor(500)
    exact = model.load("unet")(x, t, text).sample
    x, text = x.bfloat16(), text.bfloat16()
    calls, errors = {}, {}
    for name in ("plain", "own bf16", "int8", "weight-only"):
        unet = model.load("unet", torch.bfloat16)
        if name != "plain":
            speed_up_forwards(unet)
        if name in ("int8", "weight-only"):
            quantize(unet, "int8" if name == "int8" else "float")
        calls[name] = partial(unet, x, t, text)
        errors[name] = float((calls[name]().sample.float() - exact).norm() / exact.norm())
    benchmark.group = "forward of SD1.5, 512 pixels"
    times = medians(benchmark, calls, ROUNDS)
    for name, seconds in times.items():
        benchmark.extra_info[f"seconds {name}"] = round(seconds, 3)
        benchmark.extra_info[f"error {name}"] = round(errors[name], 4)
    for name in ("plain", "own bf16"):
        benchmark.extra_info[f"x {name}"] = round(times[name] / times["int8"], 2)
    print(f"\n  {benchmark.name}: {benchmark.extra_info}")
