"""Int8 weights of the bundled model, trained by forward passes: are they restored, does the loss
fall? ``python -m bench.int8_codes_tiny {pairs,search,runs} [--train codes scales] [--json FILE]``.

``pairs``: a hash of all codes of the U-Net before and after 1000 perturbations, each taken back.
``search``: one short run for each step size, on a subject that ``runs`` does not have. ``runs``:
the loss before and after on samples that no step sees, the same ones each time: pictures of the
subject at timesteps that are spread evenly over those that the steps draw from, with fixed noise.
Codes are trained in the keys and values of cross-attention, where the loss falls most along a
random direction for its curvature: by |gradient|^2 / (2 trace of the Hessian), at all timesteps
3.5e-4 of it, in all layers together 6e-5. "start" is the U-Net before the first
step, its scales larger to make room for the perturbations; "start_if_clamped" is what it would be
with the largest codes cut off instead. All three write into one JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sopt
from bench.generated import RESULTS
from sopt.cache import build_cache
from sopt.codes.files import MODEL_FOLDER
from sopt.codes.tensors import Room, int8_tensors, is_chosen, layer_of, make_room, room_of
from sopt.data import load_pictures
from sopt.demo import draw_photos
from sopt.devices import weight_storage
from sopt.files import write_json
from sopt.memory import MemoryRecorder
from sopt.models import open_model
from sopt.optim.restore import Codes
from sopt.tiny.scenes import random_subject
from sopt_kernels import clamp_codes_, noise, stream_id

PAIRS = 1000
HEADROOM = 8  # of the settings' default
SAMPLES, BATCH = 128, 32
SEEDS = (0, 1, 2)
PICTURES = 5
SEARCH_SEED = 100
CHOSEN: dict[str, dict[str, Any]] = {
    "codes": {
        "steps": 12,
        "num_perturbations": 96,
        "eps": 1e-2,
        "zo_lr": 0.3,
        "layers": "attn2.to_k,attn2.to_v",
        "min_timestep": 0,
    },
    "scales": {
        "steps": 40,
        "num_perturbations": 4,
        "eps": 3e-5,
        "zo_lr": 3e-7,
        "min_timestep": 750,
    },
}
SEARCH_STEPS = {"codes": 12, "scales": 60}
SEARCHED = {"codes": (0.3, 1.0, 3.0), "scales": (3e-7, 1e-6, 3e-6)}  # zo_lr
CPU = torch.device("cpu")


class Validation:
    """The loss of a U-Net on int8 weights on fixed samples of one subject's pictures."""

    def __init__(self, photos: Path, prompt: str, first: int) -> None:
        self.model = open_model("tiny")
        self.storage = weight_storage("int8", "cpu")
        side = self.model.native_resolution
        with MemoryRecorder(CPU) as memory:
            pictures = load_pictures(photos, prompt)
            cache = build_cache(self.model, pictures, [side], self.storage, memory)
        self.prompt, moments = cache.prompts[prompt].tokens, cache.encoded[side]
        last = self.model.num_train_timesteps - 1
        self.timesteps = torch.linspace(first, last, SAMPLES).round().long()
        shape = (SAMPLES, *moments[0].mean.shape[1:])
        chosen = [moments[i % len(moments)] for i in range(SAMPLES)]
        latent_noise = noise(shape, 0, stream_id("latent"))
        drawn = [m.sample(z[None]) for m, z in zip(chosen, latent_noise, strict=True)]
        self.latents, self.noise = torch.cat(drawn), noise(shape, 0, stream_id("noise"))
        self.scheduler = self.model.noise_scheduler()

    def start(self, room: Room) -> tuple[Tensor, Tensor]:
        """Of the bundled model with room for moves by larger scales; and by cutting codes off."""
        unet = self.model.load("unet", self.storage)
        chosen = int8_tensors(unet, "codes").items()
        clamp_codes_([x for n, x in chosen if is_chosen(layer_of(n), room.layers)], room.headroom)
        clamped = self.losses(unet)
        unet = self.model.load("unet", self.storage)
        make_room(unet, self.model, room)
        return self.losses(unet), clamped

    @torch.no_grad()
    def losses(self, unet: Any) -> Tensor:
        """Of each sample, (128,)."""
        found = []
        for rows in torch.arange(SAMPLES).split(BATCH):
            t = self.timesteps[rows]
            noisy = self.scheduler.add_noise(self.latents[rows], self.noise[rows], t)
            text = self.prompt.expand(len(rows), -1, -1).to(unet.dtype)
            predicted = unet(noisy.to(unet.dtype), t, encoder_hidden_states=text).sample
            found.append((predicted.float() - self.noise[rows]).square().mean(dim=(1, 2, 3)))
        return torch.cat(found)


def subject(seed: int, work: Path, pictures: int) -> tuple[Path, str]:
    """Pictures of a subject, and their prompt."""
    rng = np.random.default_rng(seed)
    drawn = random_subject(rng)
    photos = work / f"photos{seed}"
    if not photos.exists():
        photos.mkdir()
        for number, photo in enumerate(draw_photos(drawn, rng)[:pictures]):
            photo.save(photos / f"{number}.png")
    return photos, f"a sks {drawn.kind}"


def run(train: str, seed: int, work: Path, **changes: Any) -> dict[str, Any]:
    """One run, and what it did to the loss."""
    photos, prompt = subject(seed, work, PICTURES)
    settings = CHOSEN[train] | changes
    started = time.monotonic()
    finished = sopt.train(
        images=str(photos),
        prompt=prompt,
        output=str(work / f"{train}{seed}-{settings['zo_lr']}"),
        method="zeroth-order",
        train=train,
        seed=seed,
        samples=False,
        checkpoint_every=10**6,
        **settings,
    )
    seconds = time.monotonic() - started
    validation = Validation(photos, prompt, settings["min_timestep"])
    base = validation.losses(validation.model.load("unet", validation.storage))
    start, clamped = base, base
    if train == "codes":
        start, clamped = validation.start(room_of(finished.config))
    trained = open_model(finished.output / MODEL_FOLDER).load("unet", validation.storage)
    after = validation.losses(trained)
    gain = start - after
    return {
        "train": train,
        "seed": seed,
        "pictures": PICTURES,
        **settings,
        "base": base.mean().item(),
        "start": start.mean().item(),
        "start_if_clamped": clamped.mean().item(),
        "after": after.mean().item(),
        "gain": gain.mean().item(),
        "gain_standard_error": (gain.std() / SAMPLES**0.5).item(),
        "difference_bytes": finished.adapter.stat().st_size,
        "skipped": sum(bool(entry.get("skipped")) for entry in finished.history),
        "seconds": seconds,
    }


def pairs() -> dict[str, Any]:
    """A hash of all codes before and after perturbations that are taken back."""
    model = open_model("tiny")
    unet = model.load("unet", weight_storage("int8", "cpu"))
    make_room(unet, model, Room(HEADROOM))
    codes, scales = int8_tensors(unet, "codes"), int8_tensors(unet, "scales")
    beside = dict(zip(codes, scales.values(), strict=True))
    weights = Codes(0, codes, "gaussian", "nearest", beside, HEADROOM)
    before, moved = digest(codes.values()), set()
    started = time.monotonic()
    for seed in tqdm(range(PAIRS), desc="perturb and restore"):
        weights.move(seed, CHOSEN["codes"]["eps"], seed)
        if seed % 100 == 0:
            moved.add(digest(codes.values()))
        weights.home()
    return {
        "pairs": PAIRS,
        "codes": sum(x.numel() for x in codes.values()),
        "clamped": int(weights.clamped),
        "before": before,
        "after": digest(codes.values()),
        "different_in_between": len(moved - {before}),
        "seconds": time.monotonic() - started,
    }


def digest(tensors: Iterable[Tensor]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for x in tensors:
        state.update(x.numpy().data)
    return state.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["pairs", "search", "runs"])
    parser.add_argument("--train", nargs="+", choices=list(CHOSEN), default=list(CHOSEN))
    parser.add_argument("--json", type=Path, default=RESULTS / "int8_codes_tiny.json")
    options = parser.parse_args()
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    if options.what == "pairs":
        found["pairs"] = pairs()
        write_json(options.json, found)
        same = found["pairs"]["before"] == found["pairs"]["after"]
        print(f"{PAIRS} pairs: the codes are {'the same' if same else 'NOT the same'}")
        return
    if options.what == "search":
        jobs = [
            (train, SEARCH_SEED, {"zo_lr": lr, "steps": SEARCH_STEPS[train]})
            for train in options.train
            for lr in SEARCHED[train]
        ]
    else:
        jobs = [(train, seed, {}) for train in options.train for seed in SEEDS]
    kept = [row for row in found.get(options.what, []) if row["train"] not in options.train]
    with tempfile.TemporaryDirectory() as folder:
        for train, seed, changes in tqdm(jobs, desc=options.what):
            row = run(train, seed, Path(folder), **changes)
            kept.append(row)
            write_json(options.json, found | {options.what: kept})
            print(
                f"{train} zo_lr {row['zo_lr']:g}, seed {seed}: {row['start']:.5f} -> "
                f"{row['after']:.5f}, gain {row['gain']:.5f} ± {row['gain_standard_error']:.5f}, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    for train in options.train:
        gains = [row["gain"] for row in kept if row["train"] == train]
        print(f"{train}: gain {statistics.mean(gains):.5f}, least {min(gains):.5f}")


if __name__ == "__main__":
    main()
