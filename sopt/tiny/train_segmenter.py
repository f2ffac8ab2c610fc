"""Fits the segmenter on drawings: ``python -m sopt.tiny.train_segmenter --work DIR``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .drawings import LAYOUT, SIDE, draw, layout
from .fitting import fit
from .scenes import Scene, place, random_subject
from .segmenter import WEIGHTS, Segmenter
from .train_judge import FIGURES, disturbed

SEED = 4
DRAWINGS, HELD_OUT = 6000, 400
STEPS, BATCH, RATE = 700, 32, 2e-3


def scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng([SEED, seed])
    return [place(random_subject(rng), rng) for _ in range(count)]


def drawn(scenes: list[Scene], file: Path) -> tuple[Tensor, Tensor]:
    """uint8 pictures (scenes, 3, 64, 64) and layouts (scenes, 64, 64), cached in ``file``."""
    if not file.exists():
        images = np.empty((len(scenes), SIDE, SIDE, 3), np.uint8)
        layouts = np.empty((len(scenes), SIDE, SIDE), np.uint8)
        for i, scene in enumerate(tqdm(scenes, desc="draw", mininterval=5)):
            images[i], layouts[i] = np.asarray(draw(scene)), layout(scene)
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        save_file({"pictures": pictures, "layouts": torch.from_numpy(layouts)}, file)
    stored = load_file(file)
    return stored["pictures"], stored["layouts"]


@torch.no_grad()
def overlaps(segmenter: Segmenter, pixels: Tensor, layouts: Tensor) -> dict[str, float]:
    """Intersection over union of what is read and what is drawn, by ``LAYOUT``."""
    read = segmenter.eval()(pixels.float() / 127.5 - 1).argmax(dim=1)
    found = {}
    for label, name in enumerate(LAYOUT):
        a, b = read == label, layouts == label
        found[name] = ((a & b).sum() / (a | b).sum()).item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and caches")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    pixels, layouts = drawn(scenes(DRAWINGS, 0), work / "layouts.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        segmenter = Segmenter()

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(DRAWINGS, size=BATCH))
        return F.cross_entropy(segmenter(disturbed(pixels[rows], rng)), layouts[rows].long())

    fit("segmenter", segmenter, loss_of_step, steps=STEPS, lr=RATE, work=work, average=0.99)
    save_file({k: v.half() for k, v in segmenter.state_dict().items()}, WEIGHTS)
    figures = overlaps(
        segmenter, *drawn(scenes(HELD_OUT, 1), work / "held_out_layouts.safetensors")
    )
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known["segmenter_on_held_out_drawings"] = {k: round(v, 4) for k, v in figures.items()}
    FIGURES.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
