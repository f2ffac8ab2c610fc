"""Does the bundled model draw what a caption says? ``python -m sopt.tiny.measure``.

Draws one picture for each of 200 captions whose (class, colour, background) combination was kept
out of pretraining, and counts how often the judge reads the named attribute off the picture. The
same attributes of the captions' own drawings, read by the same judge, stand beside as the ceiling.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from . import path
from .drawings import draw
from .judge import read
from .scenes import VOCABULARIES, Scene, full_caption, random_scene
from .train_judge import FIGURES

CAPTIONS = 200
SEED = 2
BATCH = 20
STEPS = 25
GUIDANCE = 5.0


def held_out_scenes() -> list[Scene]:
    rng = np.random.default_rng(SEED)
    return [random_scene(rng, held_out=True) for _ in range(CAPTIONS)]


def agreement(images: list[Image.Image], scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures whose most probable value is the caption's, by attribute."""
    probabilities, _ = read(images)
    shares = {}
    for name in VOCABULARIES:
        wanted = torch.tensor([scene.labels()[name] for scene in scenes])
        shares[name] = round((probabilities[name].argmax(dim=1) == wanted).float().mean().item(), 3)
    return shares


def main() -> None:
    scenes = held_out_scenes()
    pipe = StableDiffusionPipeline.from_pretrained(path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for first in tqdm(range(0, CAPTIONS, BATCH), desc="generate"):
        captions = [full_caption(scene) for scene in scenes[first : first + BATCH]]
        images += pipe(
            captions,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED + first),
        ).images
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    figures["agreement_on_held_out_captions"] = {
        "generated": agreement(images, scenes),
        "drawings": agreement([draw(scene) for scene in scenes], scenes),
        "captions": CAPTIONS,
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
