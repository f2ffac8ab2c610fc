"""All that a MeZO step does beside its forwards, on real parameter lists.

Ours is three calls for the whole list: +eps, -2 eps, and the restore in one with the update. Of
MeZO's way there are 18 launches for each tensor; of torch's foreach operations in place, one draw
for each tensor and three for the list.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import mezo_reference, parameter_lists
from bench.measure import STREAM, measure
from sopt_kernels import add_noise_

EPS, LR, G = 1e-3, 1e-4, 0.5


def fused(tensors, streams, kind):
    add_noise_(tensors, 1, EPS, streams=streams, kind=kind)
    add_noise_(tensors, 1, -2 * EPS, streams=streams, kind=kind)
    add_noise_(tensors, 1, EPS - LR * G, streams=streams, kind=kind)


def foreach(tensors):
    """The same three changes by the best that torch has: z drawn in place, then added."""
    for scale in (EPS, -2 * EPS, EPS - LR * G):
        torch.manual_seed(1)
        torch._foreach_add_(tensors, [torch.randn_like(x) for x in tensors], alpha=scale)


LISTS = {"SD1.5 LoRA": parameter_lists.sd15_lora, "1.3B LM": parameter_lists.language_model}


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", LISTS)
def test_step(benchmark, large, name, kind):
    if name == "1.3B LM" and not large:
        pytest.skip("5 GiB of parameters with --large only")
    # MeZO's way has parameters of its own, as it puts new memory in their place at each step.
    tensors, its_own = ([torch.zeros(shape) for shape in LISTS[name]()] for _ in range(2))
    yardsticks = {
        STREAM: lambda: [torch._foreach_mul_(tensors, 0.999) for _ in range(3)],
        "foreach": partial(foreach, tensors),
        "mezo": partial(mezo_reference.step, its_own, 1, EPS, G, LR),
    }
    run = partial(fused, tensors, list(range(len(tensors))), kind)
    benchmark.group = f"MeZO step, {name}"
    benchmark.extra_info["launches"] = 3
    benchmark.extra_info["launches of mezo"] = mezo_reference.LAUNCHES * len(tensors)
    measure(benchmark, run, yardsticks, 3 * 2 * sum(x.nbytes for x in tensors))
