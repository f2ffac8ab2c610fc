"""Four questions about the methods, put to the bundled model:
``python -m bench.tiny_experiments {blocks,gain,timesteps,fused} [--subjects 0 1 2] [--seed 0]``.

``blocks``: where a LoRA by backprop-high changes the weights, and what each block is worth.
``gain``: what 200 zeroth-order steps gain at first, and after 25, 50 and 75 % of backprop-low.
``timesteps``: ZOODiP at timesteps below 500, above, and at all.
``fused``: the time of sampling without an adapter, with one, and with its weights added.
Each writes ``bench/results/tiny_<name>.json``, a row a subject; rows that are there stay.
Losses are on drawings of the subject that no step sees (``bench.tiny_steps``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bench.generated import RESULTS
from bench.tiny_steps import Steps
from sopt import tiny
from sopt.evaluation.tiny.observations import DTAP
from sopt.evaluation.tiny.running import BATCH, Protocol, run_line
from sopt.evaluation.tiny.scores import make_task
from sopt.files import write_json

STEPS = 400
TOKEN_STEPS = 200  # which are 1500 of a token
ZO_STEPS, ZO_RATES = 200, (0.01, 0.03, 0.1)
LR = 2.5e-4  # what the search of the benchmark chose
SHARES = (0, 0.25, 0.5, 0.75)
TIMESTEPS = {"below 500": (0, 499), "from 500 on": (500, 999), "all": (0, 999)}
ROUNDS, SAMPLING_STEPS = 5, 15


def blocks(subject: int, seed: int) -> dict[str, Any]:
    """By block of the U-Net: weight change; losses without its LoRA, and with no other."""
    steps = Steps(make_task(subject), seed, "backprop-high", steps=STEPS, lr=LR)
    before = steps.loss()["all"]
    nothing = steps.copy()
    steps.run(range(1, STEPS + 1))
    after, learned = steps.loss()["all"], steps.copy()
    names = by_block(learned)
    rows = {}
    for block, own in names.items():
        steps.put({name: nothing[name] for name in own})
        without = steps.loss()["all"]
        steps.put(nothing | {name: learned[name] for name in own})
        alone = steps.loss()["all"]
        steps.put(learned)
        rows[block] = {
            "change": relative_change(steps.unet, own, learned),
            "parameters": sum(learned[name].numel() for name in own),
            "loss_without": without,
            "loss_alone": alone,
        }
    kinds: dict[str, list[str]] = {}
    for name in learned:
        attention, projection = name.replace(".to_out.0.", ".to_out.").split(".")[-4:-2]
        kinds.setdefault(f"{attention}.{projection}", []).append(name)
    changes = {kind: relative_change(steps.unet, own, learned) for kind, own in kinds.items()}
    return {"before": before, "after": after, "blocks": rows, "projections": changes}


def by_block(names: Iterable[str]) -> dict[str, list[str]]:
    """The adapter's names by block, in the order of the forward pass."""
    found: dict[str, list[str]] = {}
    for name in names:
        _, block, index, *_ = name.split(".")
        key = "mid" if block == "mid_block" else f"{block.removesuffix('_blocks')}.{index}"
        found.setdefault(key, []).append(name)
    order = {"down": 0, "mid": 1, "up": 2}
    return dict(sorted(found.items(), key=lambda each: (order[each[0].split(".")[0]], each[0])))


def relative_change(unet: Any, names: Iterable[str], adapter: dict[str, Tensor]) -> float:
    """The Frobenius norm of the change of these layers' weights, over that of the weights."""
    modules = dict(unet.named_modules())
    changed, weights = 0.0, 0.0
    for name in names:
        if name.endswith("lora_B.weight"):
            down = adapter[name.replace("lora_B", "lora_A")]
            path = name.removeprefix("unet.").removesuffix(".lora_B.weight")
            changed += (adapter[name] @ down).square().sum().item()
            weights += modules[path].base_layer.weight.square().sum().item()
    return (changed / weights) ** 0.5


def gain(subject: int, seed: int) -> list[dict[str, Any]]:
    """Losses before and after the zeroth-order steps, by their rate, at each share."""
    rows, done = [], 0
    # Of the selective method, which has the latents of both kinds of step.
    steps = Steps(make_task(subject), seed, DTAP, steps=STEPS, lr=LR)
    for share in SHARES:
        first = round(share * STEPS)
        steps.run(range(done + 1, first + 1), always=False)
        done, kept = first, steps.copy()
        row: dict[str, Any] = {"share": share, "before": steps.loss(), "after": {}}
        for rate in ZO_RATES:
            steps.set_rate(rate)
            steps.run(range(STEPS + 1, STEPS + ZO_STEPS + 1), always=True)
            row["after"][str(rate)] = steps.loss()
            steps.put(kept)
        rows.append(row)
    return rows


def timesteps(subject: int, seed: int) -> dict[str, Any]:
    """The scores of ZOODiP's words, by the timesteps they were learned at."""
    rows = {}
    for name, (first, last) in TIMESTEPS.items():
        chosen = {"min_timestep": first, "max_timestep": last}
        protocol = Protocol(TOKEN_STEPS, 4, SAMPLING_STEPS)
        line = run_line("token-zoodip", subject, seed, protocol, chosen)
        rows[name] = {k: line[k] for k in ("scores", "core_seconds", "forwards")}
    return {"steps": TOKEN_STEPS, "by_timesteps": rows}


def fused(subject: int, seed: int) -> dict[str, Any]:
    """Seconds of one batch of pictures, the median of rounds."""
    task = make_task(subject)
    steps = Steps(task, seed, "backprop-high", steps=2)
    steps.run(range(1, 3))
    with tempfile.TemporaryDirectory() as folder:
        file = steps.save(Path(folder) / "lora.safetensors")
        pipelines = {}
        for name in ("no adapter", "adapter", "fused adapter"):
            pipeline = StableDiffusionPipeline.from_pretrained(tiny.path())
            pipeline.set_progress_bar_config(disable=True)
            if name != "no adapter":
                pipeline.load_lora_weights(file.parent, weight_name=file.name)
            if name == "fused adapter":
                pipeline.fuse_lora()
                pipeline.unload_lora_weights()
            pipelines[name] = pipeline
    taken: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(ROUNDS + 1):
        for name, pipeline in pipelines.items():
            started = time.perf_counter()
            pipeline(
                [steps.prompt] * BATCH,
                num_inference_steps=SAMPLING_STEPS,
                guidance_scale=2.0,
                generator=[torch.Generator().manual_seed(i) for i in range(BATCH)],
                output_type="latent",
            )
            taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
    return {"pictures": BATCH, "sampling_steps": SAMPLING_STEPS, "seconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["blocks", "gain", "timesteps", "fused"])
    parser.add_argument("--subjects", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    file = RESULTS / f"tiny_{arguments.name}.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    experiment = {"blocks": blocks, "gain": gain, "timesteps": timesteps, "fused": fused}
    for subject in arguments.subjects:
        key = f"{subject},{arguments.seed}"
        if key not in rows:
            rows[key] = experiment[arguments.name](subject, arguments.seed)
            write_json(file, rows)
        print(key, json.dumps(rows[key]), flush=True)


if __name__ == "__main__":
    main()
