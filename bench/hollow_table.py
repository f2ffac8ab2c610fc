"""Memory of hollowed and of streamed training, simulated at full size.

    python -m bench.hollow_table [--models sd21-base sd15] [--json bench/results/hollow_table.json]
    python -m bench.hollow_table --models sd21-base --measured  # steps of real tensors: 17 GiB

Two accountings. The paper's, as reconstructed from its table (arXiv 2411.01179): one training step
in float32 at 512 pixels with AdamW and batch 1, no checkpointing, the U-Net alone in memory; the
peaks of full fine-tuning, LoRA of rank 128 and of rank 1, and of the same LoRA on what the cut a8
leaves, beside that of a forward pass. "plain" is autograd as it is, "ours" has frozen convolutions
that keep no inputs and gated layers that keep one tensor. And ours: all phases of selective runs
with a part of the network in memory, from ``sopt.plan``. ``python -m bench.hollow_page`` puts both
into docs/hollow.md.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sopt
from sopt.files import write_json
from sopt.frozen import forget_inputs_of_frozen_convolutions
from sopt.hollow.cuts import Cut, cut_of
from sopt.hollow.precompute import central_shape
from sopt.models import Model, inject_lora, open_model
from sopt.models.gates import recompute_gates
from sopt.steps.backprop import backprop_step
from sopt.steps.loss import Sample, diffusion_loss
from sopt.streaming import open_network

from .counting import counted
from .generated import RESULTS

SIDE = 512  # pixels; 1024 for the models that are told sizes
MODELS = ("sd21-base", "sd15", "sdxl", "ssd1b")
# GiB for SD2.1, and over inference.
PAPER = {
    "full fine-tuning": (16.62, 376),
    "lora r=128": (5.23, 50),
    "lora r=1": (4.84, 39),
    "hollowed a8 r=128": (3.88, 11),
    "inference": (3.49, 0),
}
# Of whole runs, beside method="selective": r = 0.5, the model's own size.
RUNS: dict[str, dict[str, Any]] = {
    "streamed bfloat16": {"offload": "stream", "weights": "bfloat16"},
    "streamed int8": {"offload": "stream", "weights": "int8"},
    "int8 and hollow a8": {"hollow": "a8", "weights": "int8", "checkpointing": True},
}
PHASES = ("load", "cache", "precompute", "train-zo", "train-bp", "sample")
MEASURED = ", measured"
MIB = 2**20
CPU = torch.device("cpu")


def step_peak(
    model: Model,
    side: int,
    *,
    rank: int | None,
    cut: Cut | None = None,
    ours: bool = False,
    measured: bool = False,
) -> int:
    """Peak bytes of a training step, with the optimizer's state of the steps before.

    Args:
        rank: Of the LoRA; None trains the whole network.
        measured: Of real tensors, else of simulated ones.
    """
    with counted(model, measured) as (source, memory):
        with memory.phase("load"):
            hole = range(0) if cut is None else cut.hole
            network = open_network(source, torch.float32, CPU, hole=hole)
            trained: dict[str, Tensor] = (
                dict(network.unet.requires_grad_(True).named_parameters())
                if rank is None
                else inject_lora(network.unet, rank, 0)
            )
        if ours:
            forget_inputs_of_frozen_convolutions(network.unet)
            recompute_gates(network.unet)
        optimizer = torch.optim.AdamW(trained.values(), foreach=False)
        sample, scheduler = _sample(model, side, cut), model.noise_scheduler()
        with memory.phase("step"):
            for _ in range(2):
                backprop_step(
                    trained, lambda: diffusion_loss(network, scheduler, sample), optimizer
                )
        return memory.peaks["step"]


def inference_peak(model: Model, side: int, measured: bool = False) -> int:
    """Peak bytes of a forward pass."""
    with counted(model, measured) as (source, memory):
        with memory.phase("load"):
            network = open_network(source, torch.float32, CPU)
        sample = _sample(model, side, None)
        with memory.phase("forward"), torch.no_grad():
            diffusion_loss(network, model.noise_scheduler(), sample)
        return memory.peaks["forward"]


def _sample(model: Model, side: int, cut: Cut | None) -> Sample:
    config, latent = model.configs["unet"], side // model.vae_factor
    latents = torch.zeros(1, config["in_channels"], latent, latent)
    added = None
    if model.takes_sizes:
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
    central = None if cut is None else torch.zeros(central_shape(model, cut, side))
    prompt = torch.zeros(1, 77, config["cross_attention_dim"])
    return Sample(latents, latents + 0, 500, prompt, added=added, central=central)


def rows_of(family: str, measured: bool) -> dict[str, Any]:
    """Peaks of steps of one model, in bytes."""
    model = open_model(f"random:{family}")
    side = 1024 if model.takes_sizes else SIDE
    a8 = cut_of("a8", model)
    found: dict[str, Any] = {"model": family, "side": side, "fraction": a8.fraction}
    peak = partial(step_peak, model, side, measured=measured)
    inference, full = inference_peak(model, side, measured), peak(rank=None)
    for name, ours in (("plain", False), ("ours", True)):
        found[name + MEASURED * measured] = {
            "full fine-tuning": full,
            "lora r=128": peak(rank=128, ours=ours),
            "lora r=1": peak(rank=1, ours=ours),
            "hollowed a8 r=128": peak(rank=128, cut=a8, ours=ours),
            "inference": inference,
        }
    return found


def runs_of(family: str) -> dict[str, Any]:
    """Bytes of each phase of selective runs with less than the whole network in memory."""
    found = {}
    for name, settings in RUNS.items():
        (row,) = sopt.plan(f"random:{family}", method="selective", **settings)
        found[name] = {"phases": row.phases, "peak": row.peak_bytes}
    return found


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    steps = ["| model, accounting | " + " | ".join(PAPER) + " |", "|" + "---|" * (len(PAPER) + 1)]
    cells = [f"{gib:.2f} GiB, +{more} %" for gib, more in PAPER.values()]
    steps.append(f"| SD2.1, paper | {' | '.join(cells)} |")
    runs = ["| model | run | " + " | ".join(PHASES) + " | peak |", "|---" * (len(PHASES) + 3) + "|"]
    for family, found in results.items():
        for name in ("plain", "plain" + MEASURED, "ours", "ours" + MEASURED):
            if name not in found:
                continue
            base = found[name]["inference"]
            cells = [
                f"{found[name][key] / 2**30:.2f} GiB, {100 * (found[name][key] / base - 1):+.1f} %"
                for key in PAPER
            ]
            steps.append(f"| {family}, {name} | {' | '.join(cells)} |")
        for name, run in found.get("runs", {}).items():
            sizes = [run["phases"].get(phase) for phase in PHASES]
            cells = ["-" if x is None else f"{x / MIB:.0f}" for x in (*sizes, run["peak"])]
            runs.append(f"| {family} | {name} | {' | '.join(cells)} |")
    return "\n".join([*steps, "", "Whole runs, MiB:", "", *runs]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--measured", action="store_true", help="steps of real tensors")
    parser.add_argument("--json", type=Path, default=RESULTS / "hollow_table.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.json.exists():
        results = json.loads(arguments.json.read_text())
    for family in tqdm(arguments.models, desc="models"):
        known = results.setdefault(family, {})
        known |= rows_of(family, arguments.measured)
        if not arguments.measured:
            known["runs"] = runs_of(family)
        write_json(arguments.json, results)
    print(report(results))


if __name__ == "__main__":
    main()
