"""Do the zeroth-order steps help? ``python -m bench.zeroth_order_proof [--json FILE]``.

The demo's run three times for each seed: as it is, with its zeroth-order updates skipped
(``zo_lr=0``: same draws, same backprop steps), and with the sign of g flipped (``-zo_lr``). Then
the full-resolution loss of each on one fixed set of 256 (picture, timestep >= 750, noise), where
DTAP sends most zeroth-order steps. If they work: selective < skipped < flipped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sopt
from sopt.cache import build_cache
from sopt.config import TrainConfig
from sopt.data import load_pictures
from sopt.demo import LOW_RES_RATIO, STEPS, WEIGHTS, draw_photos
from sopt.files import write_json
from sopt.memory import MemoryRecorder
from sopt.models import open_model
from sopt.tiny.scenes import random_subject
from sopt_kernels import noise, stream_id

SAMPLES = 256
BATCH = 32
FIRST_TIMESTEP = 750
SEEDS = (0, 1, 2)


class FixedLoss:
    """The full-resolution loss of an adapter on samples that never change."""

    def __init__(self, photos: Path, prompt: str) -> None:
        model = open_model("tiny")
        side = model.native_resolution
        with MemoryRecorder(torch.device("cpu")) as memory:
            cache = build_cache(model, load_pictures(photos, prompt), [side], torch.float32, memory)
        self.prompt, moments = cache.prompts[prompt].tokens, cache.encoded[side]
        rng = np.random.default_rng(0)
        self.timesteps = torch.from_numpy(rng.integers(FIRST_TIMESTEP, 1000, SAMPLES))
        pictures = [moments[i] for i in rng.integers(len(moments), size=SAMPLES)]
        shape = (SAMPLES, *pictures[0].mean.shape[1:])
        latent_noise = noise(shape, 0, stream_id("latent"))
        self.latents = torch.cat(
            [m.sample(z[None]) for m, z in zip(pictures, latent_noise, strict=True)]
        )
        self.noise = noise(shape, 0, stream_id("noise"))
        self.pipeline = model.pipeline(unet=model.load("unet"))
        self.scheduler = model.noise_scheduler()

    @torch.no_grad()
    def __call__(self, adapter: Path | None) -> Tensor:
        """Loss of each sample, (256,)."""
        self.pipeline.unload_lora_weights()
        if adapter is not None:
            self.pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
        losses = []
        for rows in torch.arange(SAMPLES).split(BATCH):
            t = self.timesteps[rows]
            noisy = self.scheduler.add_noise(self.latents[rows], self.noise[rows], t)
            text = self.prompt.expand(len(rows), -1, -1)
            predicted = self.pipeline.unet(noisy, t, encoder_hidden_states=text).sample
            losses.append((predicted - self.noise[rows]).square().mean(dim=(1, 2, 3)))
        return torch.cat(losses)


def compare(seed: int, work: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean losses of the three runs of one seed, and of no adapter."""
    rng = np.random.default_rng(seed)
    subject = random_subject(rng)
    photos, prompt = work / f"photos{seed}", f"a sks {subject.kind}"
    photos.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(draw_photos(subject, rng)):
        photo.save(photos / f"{number}.png")
    loss = FixedLoss(photos, prompt)
    zo_lr = settings.get("zo_lr", TrainConfig.zo_lr)
    values = {"none": loss(None)}
    for name, rate in (("selective", zo_lr), ("skipped", 0.0), ("flipped", -zo_lr)):
        run = sopt.train(
            images=str(photos),
            prompt=prompt,
            output=str(work / f"{name}{seed}"),
            seed=seed,
            weights=WEIGHTS,
            **{**settings, "zo_lr": rate},
        )
        values[name] = loss(run.adapter)
    gain = values["skipped"] - values["selective"]  # paired by sample
    return {
        "seed": seed,
        "prompt": prompt,
        "zo_steps": sum(entry["branch"] == "zo" for entry in run.history),
        **{name: value.mean().item() for name, value in values.items()},
        "gain_over_skipped": gain.mean().item(),
        "standard_error": (gain.std() / SAMPLES**0.5).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"steps": arguments.steps, "low_res_ratio": LOW_RES_RATIO}
        rows = [compare(seed, Path(folder), settings) for seed in SEEDS]
    print(f"{'seed':>4} {'none':>9} {'selective':>9} {'skipped':>9} {'flipped':>9}  zo steps")
    for row in rows:
        figures = "".join(f"{row[k]:10.5f}" for k in ("none", "selective", "skipped", "flipped"))
        print(f"{row['seed']:4}{figures}  {row['zo_steps']}")
    if arguments.json:
        write_json(arguments.json, rows)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
