"""What two paths cost in sampling: ``python -m bench.two_paths [--model sd21-base] [--hollow a8]``.

A model of random weights in bfloat16, at its own size, draws with a hollowed adapter of random
factors by one path and by two, in turns. Seconds of a denoising step of both halves of guidance,
medians of the rounds: the difference of five steps and one, so that loading is not in them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from sopt.drawing import Stages, Wanted
from sopt.export import save_diffusers_lora
from sopt.files import write_json
from sopt.hollow.cuts import cut_of
from sopt.models import LORA_TARGETS, Model, inject_lora, open_model
from sopt.streaming import open_network

from .generated import RESULTS

RANK = 4
GUIDANCE = 7.5


def save_random_adapter(model: Model, hollow: str, file: Path) -> None:
    """A LoRA of what the hole leaves, with random non-zero factors."""
    hole = cut_of(hollow, model).hole
    unet = open_network(model, torch.bfloat16, torch.device("cpu"), hole=hole).unet
    adapter = inject_lora(unet, RANK, seed=0)
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: torch.randn(factor.shape, generator=generator) * 0.01
        for name, factor in adapter.items()
    }
    save_diffusers_lora(file, factors, RANK, RANK, LORA_TARGETS, hollow)


def seconds_a_step(stages: Stages, side: int) -> float:
    texts = stages.encode(["a sks dog"], guided=True)
    times = []
    for steps in (1, 5):
        started = time.perf_counter()
        stages.denoise(texts, [[Wanted(prompt=0, seed=0)]], side, steps, GUIDANCE)
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="sd21-base")
    parser.add_argument("--hollow", default="a8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "two_paths.json")
    arguments = parser.parse_args()
    model = open_model(f"random:{arguments.model}")
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.safetensors"
        save_random_adapter(model, arguments.hollow, file)
        one = Stages(model, torch.bfloat16, cpu, low_memory=True, adapter=file)
        two = replace(one, cut=cut_of(arguments.hollow, model))
        times = [
            [seconds_a_step(stages, model.native_resolution) for stages in (one, two)]
            for _ in tqdm(range(arguments.rounds))
        ]
    by_one, by_two = (statistics.median(column) for column in zip(*times, strict=True))
    found = {
        "model": arguments.model,
        "hollow": arguments.hollow,
        "seconds_by_one_path": by_one,
        "seconds_by_two_paths": by_two,
    }
    print(f"one path {by_one:.2f} s a step, two {by_two:.2f}: {by_two / by_one:.2f}x")
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
