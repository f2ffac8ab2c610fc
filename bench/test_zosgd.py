"""A step of ZOSGD beside its forwards, against MeZO's way and torch's stream, in one process."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import mezo_reference, parameter_lists
from bench.measure import STREAM, measure
from bench.zosgd_cases import EPS, LR, RESTORES, language_model_100m, step_of

LISTS = {
    "SD1.5 LoRA": parameter_lists.sd15_lora,
    "100 M LM": language_model_100m,
    "1.3B LM": parameter_lists.language_model,
}


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("name", LISTS)
def test_step(benchmark, large, name, restore, noise):
    if name == "1.3B LM" and not large:
        pytest.skip("15 GiB of parameters with --large only")
    shapes = LISTS[name]()
    tensors = [torch.zeros(shape) for shape in shapes]
    yardsticks = {
        STREAM: lambda: [torch._foreach_mul_(tensors, 0.999) for _ in range(3)],
        "mezo": partial(mezo_reference.step, tensors, 1, EPS, 0.5, LR),
    }
    benchmark.group = f"ZOSGD step beside its forwards, {name}"
    run = step_of(shapes, restore, noise)
    measure(benchmark, run, yardsticks, 3 * 2 * sum(x.nbytes for x in tensors))
