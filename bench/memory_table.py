"""Peak memory of every model and method, simulated at full size, beside what the paper reports.

    python -m bench.memory_table [--models sd15 ssd1b] [--json bench/results/memory_table.json]
    python -m bench.memory_table --models sd15 sd21-base --measured  # real steps, beside these

Two accountings. The paper's, as reconstructed: all components resident, one VAE encoding a step, no
checkpointing, float32 for SD1.5 and SD2.1 at 512 pixels, float16 autocast with a float32 VAE for
SDXL and SSD-1B at 1024. Ours: what ``sopt.plan`` predicts for bfloat16 weights at the native size,
where components come and go; and, for a comparison of like with like, ours with all components
resident. Source of the paper's figures: arXiv 2507.10029, table 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import sopt
from sopt.files import write_json
from sopt.frozen import forget_inputs_of_frozen_convolutions
from sopt.models import Model, inject_lora, open_model
from sopt.steps.loss import Sample, diffusion_loss

from .counting import counted

RATIOS = (1.0, 0.75, 0.625, 0.5)
PHASES = ("load", "cache", "train-bp", "train-zo", "sample")
SEED = 11  # its first two steps are of both kinds
# MiB: of a backprop step by ratio of the side, and of a zeroth-order step at the full side.
PAPER: dict[str, dict[Any, int]] = {
    "sd15": {1.0: 5722, 0.75: 5033, 0.625: 4737, 0.5: 4547, "zo": 4756},
    "sd21-base": {1.0: 6485, 0.75: 5832, 0.625: 5561, 0.5: 5368, "zo": 5613},
    "sdxl": {1.0: 14397, 0.75: 11260, 0.625: 9958, 0.5: 8957, "zo": 9546},
    "ssd1b": {1.0: 9030, 0.75: 7115, 0.625: 6338, 0.5: 5729, "zo": 7109},
}
MIB = 2**20


def resident_peak(
    model: Model, side: int, *, backward: bool, ours: bool, measured: bool = False
) -> int:
    """Peak bytes of one step with all components in memory.

    Args:
        side: Of the pictures, in pixels.
        backward: Backprop, else a forward pass alone.
        ours: Frozen convolutions that keep no inputs and a VAE in tiles, else plain code.
        measured: Of real tensors, else of simulated ones.
    """
    half = model.takes_sizes
    dtype = torch.float16 if half else torch.float32
    with counted(model, measured) as (source, memory):
        with memory.phase("load"):
            networks = {c: source.load(c, dtype) for c in model.kind.networks if c != "vae"}
            unet, vae = networks["unet"], source.load("vae")
            adapter = inject_lora(unet, 4, 0)
        if ours:
            forget_inputs_of_frozen_convolutions(unet)
            vae.enable_tiling()
            vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 256 // model.vae_factor
        with memory.phase("step"):
            with torch.no_grad():
                latents = vae.encode(torch.zeros(1, 3, side, side)).latent_dist.mean
            sample = _sample(model, latents, networks)
            with (
                _autocast(dtype) if half else contextlib.nullcontext(),
                torch.set_grad_enabled(backward),
            ):
                loss = diffusion_loss(unet, model.noise_scheduler(), sample)
                if backward:
                    loss.backward()
                    torch.optim.AdamW(adapter.values()).step()
        return memory.peaks["step"]


@contextlib.contextmanager
def _autocast(dtype: torch.dtype) -> Iterator[None]:
    """As on a GPU, where norms are computed in float32: a CPU's autocast leaves them in 16 bits."""
    with torch.autocast("cpu", dtype), _NormsInFloat32():
        yield


class _NormsInFloat32(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in (functional.group_norm, functional.layer_norm):
            return func(*args, **kwargs)
        single = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
        named = {k: x.float() if isinstance(x, torch.Tensor) else x for k, x in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*single, **named)


def _sample(model: Model, latents: torch.Tensor, networks: dict[str, Any]) -> Sample:
    ids = torch.zeros(1, 77, dtype=torch.int64)
    hidden, added = [], None
    with torch.no_grad():
        for name in model.kind.tokenizers:
            out = networks[name](ids, output_hidden_states=model.takes_sizes)
            hidden.append(out.hidden_states[-2] if model.takes_sizes else out[0])
            if name == "text_encoder_2":
                added = {"text_embeds": out[0], "time_ids": torch.zeros(1, 6)}
    return Sample(latents, torch.zeros_like(latents), 500, torch.cat(hidden, dim=-1), added=added)


def resident_columns(family: str, measured: bool) -> dict[str, dict[str, float]]:
    """The paper's columns of one model, by the paper's path and by ours, in MiB."""
    model = open_model(f"random:{family}")
    native = model.native_resolution
    found = {}
    for name, ours in (("paper_path", False), ("ours_resident", True)):
        peak = partial(resident_peak, model, ours=ours, measured=measured)
        found[name] = {
            str(ratio): peak(round(native * ratio), backward=True) / MIB
            for ratio in tqdm(RATIOS, desc=f"{family} {name}", leave=False)
        }
        found[name]["zo"] = peak(native, backward=False) / MIB
    return found


def measured_run(family: str, row: dict[str, Any], picture: Path) -> dict[str, float]:
    """Peaks by phase, in MiB, of a real run of two steps with the settings of a row."""
    selective: dict[str, Any] = {"low_res_ratio": row["low_res_ratio"], "schedule": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        run = sopt.train(
            model=f"random:{family}",
            images=str(picture),
            prompt="a sks dog",
            output=str(Path(folder) / "run"),
            method=row["method"],
            weights=row["weights"],
            checkpointing=row["checkpointing"],
            steps=2,
            seed=SEED,
            num_perturbations=1,
            samples=False,
            **selective if row["method"] == "selective" else {},
        )
    return {phase: run.memory[phase] / MIB for phase in PHASES if phase in run.memory}


def measured_of(known: dict[str, Any]) -> dict[str, Any]:
    """What real steps take of what is simulated in ``known``."""
    family = known["model"]
    found: dict[str, Any] = resident_columns(family, measured=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.linear_gradient("L").resize((known["side"],) * 2).convert("RGB").save(picture)
        found["ours"] = [measured_run(family, row, picture) for row in known["ours"]]
    return found


def rows_of(family: str) -> dict[str, Any]:
    """All simulated figures of one model, in MiB."""
    native = open_model(f"random:{family}").native_resolution
    found: dict[str, Any] = {"model": family, "side": native}
    if family in PAPER:
        found |= resident_columns(family, measured=False)
        found["paper"] = {str(key): value for key, value in PAPER[family].items()}
    found["ours"] = []
    for method, ratios in (("backprop-high", [1.0]), ("selective", RATIOS[1:])):
        for ratio in ratios:
            settings = {} if ratio == 1.0 else {"low_res_ratio": ratio}
            for row in sopt.plan(f"random:{family}", method=method, **settings):
                values = row.to_dict()
                phases = {phase: size / MIB for phase, size in values["phases"].items()}
                found["ours"].append(
                    {
                        "method": method,
                        "low_res_ratio": ratio,
                        "checkpointing": row.checkpointing,
                        "weights": row.weights,
                        "phases": phases,
                        "peak": row.peak_bytes / MIB,
                    }
                )
    return found


def saving(figures: dict[str, float], ratio: str = "0.5") -> float:
    """What a selective run saves of BP-high's peak, in percent."""
    return 100 * (1 - max(figures[ratio], figures["zo"]) / figures["1.0"])


def columns(results: list[dict[str, Any]]) -> str:
    """The paper's columns, its code path as simulated, and ours in its accounting: Markdown."""
    header = "| model | | BP-high | r = 0.75 | 0.625 | 0.5 | ZO-high | saved at 0.5 |"
    lines = [header, "|" + "---|" * 8]
    for found in results:
        for name in ("paper", "paper_path", "ours_resident"):
            if figures := found.get(name):
                keys = (*map(str, RATIOS), "zo")
                cells = [f"{figures[key]:.0f}" for key in keys]
                if name == "paper_path":
                    pairs = zip(cells, found["paper"].values(), strict=True)
                    cells = [f"{c} ({100 * (int(c) / p - 1):+.1f} %)" for c, p in pairs]
                lines.append(
                    f"| {found['model']} | {name.replace('_', ' ')} | {' | '.join(cells)} "
                    f"| {saving(figures):.1f} % |"
                )
            if real := found.get("measured", {}).get(name):
                cells = [with_error(figures[key], real[key]) for key in keys]
                lines.append(
                    f"| {found['model']} | {name.replace('_', ' ')}, measured "
                    f"| {' | '.join(cells)} | {saving(real):.1f} % |"
                )
    return "".join(f"{line}\n" for line in lines)


def with_error(predicted: float, measured: float) -> str:
    """What was measured, and the error of the prediction."""
    return f"{measured:.0f} ({100 * (predicted / measured - 1):+.1f} %)"


def runs(results: list[dict[str, Any]]) -> str:
    """What real runs took of the plans' predictions, as Markdown."""
    lines = [f"| model | method | r | checkpointing | {' | '.join(PHASES)} |"]
    lines.append("|" + "---|" * (4 + len(PHASES)))
    for found in results:
        real_runs = found.get("measured", {}).get("ours", [])
        for row, real in zip(found["ours"], real_runs, strict=False):  # of some models only
            cells = [with_error(row["phases"][p], real[p]) if p in real else "-" for p in PHASES]
            lines.append(
                f"| {found['model']} | {row['method']} | {row['low_res_ratio']:g} "
                f"| {'on' if row['checkpointing'] else 'off'} | {' | '.join(cells)} |"
            )
    return "".join(f"{line}\n" for line in lines)


def plans(results: list[dict[str, Any]]) -> str:
    """What ``sopt.plan`` predicts for whole runs, as Markdown."""
    if not any("ours" in found for found in results):
        return ""
    lines = [f"| model | method | r | checkpointing | {' | '.join(PHASES)} | peak |"]
    lines.append("|" + "---|" * (5 + len(PHASES)))
    for found in results:
        for row in found.get("ours", []):  # not simulated yet
            sizes = [f"{row['phases'][p]:.0f}" if p in row["phases"] else "-" for p in PHASES]
            lines.append(
                f"| {found['model']} | {row['method']} | {row['low_res_ratio']:g} "
                f"| {'on' if row['checkpointing'] else 'off'} | {' | '.join(sizes)} "
                f"| {row['peak']:.0f} |"
            )
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*PAPER, "sd21"])
    parser.add_argument("--measured", action="store_true", help="real steps of what is known")
    parser.add_argument("--json", type=Path, default=Path("bench/results/memory_table.json"))
    arguments = parser.parse_args()
    known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    results = {found["model"]: found for found in known}
    for family in arguments.models:
        if arguments.measured:
            results[family]["measured"] = measured_of(results[family])
        else:
            results[family] = rows_of(family)
        write_json(arguments.json, list(results.values()))
    print(columns(list(results.values())), plans(list(results.values())), sep="\n")


if __name__ == "__main__":
    main()
