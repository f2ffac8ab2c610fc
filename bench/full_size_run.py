"""A selective run of a full-size model under a memory budget, beside plain diffusers and peft.

    python -m bench.full_size_run [--model sd15] [--budget 2GiB] [--steps 20] [--rounds 3]
    python -m bench.full_size_run --weights int8 [--hollow a8] --checkpointing --steps 2 --rounds 0
                                  --folder runs/sd15-files

First the run, of random weights (drawn anew at each read, or in a diffusers folder, which is
written if it is not there) at the model's own size, ratio 0.5, one direction a zeroth-order
step and as many steps of either kind, with the peak of the process's anonymous resident memory
beside the peaks of its tensors and the plan's predictions; sampling, whose memory does not depend
on the number of denoising steps, takes two of them. Then
the time of its steps beside those of plain code in the same process: diffusers' U-Net with a peft
adapter in float32, checkpointing as the run had it, MeZO's perturbations. The kinds of step take
turns; figures are medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL import Image

import sopt
from sopt.config import TrainConfig
from sopt.data import load_pictures
from sopt.files import write_json
from sopt.memory import MemoryRecorder
from sopt.models import LORA_TARGETS, Model, open_model
from sopt.steps.loss import Sample, diffusion_loss
from sopt.training import LoraTraining

from . import mezo_reference
from .streamed_run import write_folder

MIB = 2**20
SEED = 11  # its first two steps are of both kinds
FRAMEWORKS = {"plain float32": torch.float32, "plain bfloat16": torch.bfloat16}


class PlainTrainer:
    """What one would write with diffusers and peft."""

    def __init__(self, model: Model, dtype: torch.dtype, checkpointing: bool) -> None:
        self._unet = model.load("unet", dtype)
        config = LoraConfig(
            r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS)
        )
        self._unet.requires_grad_(False)
        self._unet.add_adapter(config)
        self._trained = [p for p in self._unet.parameters() if p.requires_grad]
        for parameter in self._trained:
            parameter.data = parameter.data.float()
        if checkpointing:
            self._unet.enable_gradient_checkpointing()
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4)
        self._scheduler = model.noise_scheduler()

    def backprop(self, sample: Sample) -> None:
        diffusion_loss(self._unet, self._scheduler, sample).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def zeroth_order(self, sample: Sample) -> None:
        eps, losses = 1e-3, []
        for scale in (1, -2):
            mezo_reference.perturb(self._trained, 1, scale, eps)
            losses.append(diffusion_loss(self._unet, self._scheduler, sample).item())
        mezo_reference.perturb(self._trained, 1, 1, eps)
        g = (losses[0] - losses[1]) / (2 * eps)
        mezo_reference.update(self._trained, 1, g, 1e-6, 0.0)


def make_pictures(folder: Path, side: int) -> None:
    folder.mkdir()
    for k in range(4):
        pixels = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(k))
        Image.fromarray((pixels * 255).byte().numpy()).save(folder / f"{k}.png")


def run(
    name: str, source: str, budget: str | None, steps: int, work: Path, **more: Any
) -> dict[str, Any]:
    """The run's peaks and seconds beside the plan's."""
    model = open_model(source)
    make_pictures(work / "photos", model.native_resolution)
    settings: dict[str, Any] = {
        "images": str(work / "photos"),
        "prompt": "a sks dog",
        "output": str(work / "run"),
        "model": source,
        "steps": steps,
        "schedule": 0.5,
        "seed": SEED,
        "num_perturbations": 1,
        "memory_budget": budget,
        **more,
    }
    plan = {k: v for k, v in settings.items() if k not in ("images", "output", "prompt", "steps")}
    predicted = next(row for row in sopt.plan(method="selective", **plan) if row.fits)
    chosen = {"weights": predicted.weights, "checkpointing": predicted.checkpointing}
    result = sopt.train(**settings | chosen, samples=False)
    with MemoryRecorder(torch.device("cpu")) as memory, memory.phase("sample"):
        sopt.generate(
            source, result.output, prompt="a sks dog", steps=2,
            weights=predicted.weights, low_memory=True,
            offload="stream" if predicted.config.lean else "none",
        )  # fmt: skip
    peaks = {k: v for k, v in result.memory.items() if isinstance(v, int)} | memory.peaks
    process = result.memory["process_anonymous"]
    seconds = {
        branch: statistics.median(s)
        for branch in ("bp", "zo")
        if (s := [row["seconds"] for row in result.history if row["branch"] == branch][1:])
    }
    return {
        "model": name,
        "budget": budget,
        "weights": predicted.weights,
        "hollow": predicted.hollow,
        "checkpointing": predicted.checkpointing,
        "steps": {b: sum(row["branch"] == b for row in result.history) for b in ("bp", "zo")},
        "seconds": seconds,
        "peaks": peaks,
        "predicted": predicted.phases,
        "resident": process | {"sample": memory.process["sample"]},
    }


def compare(name: str, checkpointing: bool, rounds: int, work: Path) -> dict[str, dict[str, float]]:
    """Median seconds of a backprop step at half the side and of a zeroth-order step."""
    model = open_model(f"random:{name}")
    side = model.native_resolution
    config = TrainConfig.create(
        images=str(work / "photos"), prompt="a sks dog", output="-", model=f"random:{name}",
        weights="bfloat16", checkpointing=checkpointing, resolution=side, device="cpu",
        num_perturbations=1,
    )  # fmt: skip
    pictures = load_pictures(config.images, config.prompt)
    with MemoryRecorder(torch.device("cpu")) as memory:
        training = LoraTraining(config, model, pictures, memory)
    low, high = (training.draw(1, 500, s) for s in (config.low_resolution, side))
    calls: dict[str, dict[str, Callable[[], Any]]] = {
        "sopt": {
            "bp": lambda: training.backprop(1, 500),
            "zo": lambda: training.zeroth_order(1, 500),
        }
    }
    for label, dtype in FRAMEWORKS.items():
        plain = PlainTrainer(model, dtype, checkpointing)
        calls[label] = {
            "bp": lambda plain=plain: plain.backprop(low),
            "zo": lambda plain=plain: plain.zeroth_order(high),
        }
    found: dict[str, dict[str, list[float]]] = {k: {b: [] for b in v} for k, v in calls.items()}
    for repeat in range(rounds + 1):  # the first warms up
        for label, kinds in calls.items():
            for branch, call in kinds.items():
                start = time.perf_counter()
                call()
                if repeat:
                    found[label][branch].append(time.perf_counter() - start)
    return {k: {b: statistics.median(s) for b, s in v.items()} for k, v in found.items()}


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| phase | predicted MiB | measured | error | process |", "|" + "---|" * 5]
    resident = {k: v - found["resident"]["at_start"] for k, v in found["resident"].items()}
    for phase, size in found["predicted"].items():
        measured = found["peaks"][phase]
        error = 100 * (size / measured - 1)
        cells = [phase, f"{size / MIB:.0f}", f"{measured / MIB:.0f}", f"{error:+.1f} %"]
        lines.append(f"| {' | '.join(cells)} | {resident[phase] / MIB:.0f} |")
    peak = max(found["peaks"].values())
    grown = max(resident.values())
    allowed = 1.15 * peak + 120 * MIB
    lines += [
        "",
        f"{found['model']}, {found['weights']}, {_settings(found)}: peak {peak / MIB:.0f} MiB of "
        f"tensors; anonymous resident memory grew by {grown / MIB:.0f} MiB "
        f"(1.15 x peak + 120 MiB = {allowed / MIB:.0f})",
    ]
    if "compared" in found:
        ours = found["compared"]["sopt"]
        lines += [
            "",
            "Seconds of a step beside plain code, r = 0.5, one perturbation (the default is four):",
            "",
            "| code | BP-low s | ZO-high s |",
            "|---|---|---|",
        ]
        for label, seconds in found["compared"].items():
            cells = [f"{seconds[b]:.2f} ({seconds[b] / ours[b]:.2f}x)" for b in ("bp", "zo")]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings(found: dict[str, Any]) -> str:
    hollow = "no hollow" if found["hollow"] is None else f"hollow {found['hollow']}"
    budget = "no budget" if found["budget"] is None else f"budget {found['budget']}"
    kept = "" if found["checkpointing"] else "no "
    steps = f"{found['steps']['bp']} backprop and {found['steps']['zo']} zeroth-order steps"
    return f"{hollow}, {budget}, {kept}checkpointing, {steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--budget")
    parser.add_argument("--weights")
    parser.add_argument("--hollow")
    parser.add_argument("--checkpointing", action="store_true", help="also where none is needed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="0: no comparison with plain code")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds and (arguments.weights or arguments.hollow):
        parser.error("--weights and --hollow need --rounds 0: plain code is compared in bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        more = {k: v for k in ("weights", "hollow", "checkpointing") if (v := vars(arguments)[k])}
        source = f"random:{arguments.model}"
        if arguments.folder is not None:
            if not arguments.folder.exists():
                write_folder(source, arguments.folder, torch.bfloat16)
            source = str(arguments.folder)
        found = run(arguments.model, source, arguments.budget, arguments.steps, work, **more)
        gc.collect()
        if arguments.rounds:
            checkpointing = found["checkpointing"]
            found["compared"] = compare(arguments.model, checkpointing, arguments.rounds, work)
    print(report(found))
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
