"""Makes the bundled pipeline: ``python -m sopt.tiny.pretrain --work DIR``.

Draws the scenes, fits the autoencoder, caches latents, fits text encoder and U-Net together (first
on 32 x 32 pictures, then mostly on 64 x 64, as the published models began small too), and writes
everything in half precision to ``sopt/tiny/model``. :mod:`sopt.tiny.train_judge` makes the judge,
:mod:`sopt.tiny.measure` the figures.

Every stage resumes from its checkpoint in ``--work``; delete that folder to start again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..files import save_tensors
from . import path as model_path
from .architecture import build_pipeline
from .drawings import SIDE, draw
from .fitting import fit
from .scenes import Scene, random_caption, random_scene

SEED = 0
SCENES = 20_000
BATCH = 64
VAE_STEPS, VAE_RATE = 4_000, 1.5e-3
VAE_SIDES = (64, 64, 64, 48, 40, 32)  # drawn one a step
VAE_PIXELS = 40_960  # pixels a step: 10 pictures of 64 x 64
LOW_SIDES, LOW_STEPS, LOW_RATE = (32,), 2_000, 1e-3
# A quarter of the later steps stays small: low-resolution training has to mean something to it.
HIGH_SIDES = (64, 64, 64, 64, 64, 64, 64, 64, 64, 48, 40, 32)
HIGH_STEPS, HIGH_RATE = 2_600, 1e-3
SNR_CLIP = 5.0  # min-SNR weighting (Hang et al. 2023)
KL_WEIGHT = 0.001  # per pixel, in nats; at 0.01 three of the eight channels died


def scenes() -> list[Scene]:
    """The training scenes: a function of ``SEED`` alone, so they need no file."""
    rng = np.random.default_rng(SEED)
    return [random_scene(rng) for _ in range(SCENES)]


def pictures(work: Path, drawn: list[Scene]) -> Tensor:
    """All drawings, uint8 (scenes, 3, 64, 64)."""
    file = work / "pictures.safetensors"
    if not file.exists():
        images = np.empty((len(drawn), SIDE, SIDE, 3), np.uint8)
        for i, scene in enumerate(tqdm(drawn, desc="draw", mininterval=5)):
            images[i] = np.asarray(draw(scene))
        save_tensors(file, {"pictures": torch.from_numpy(images).permute(0, 3, 1, 2)}, {})
    return load_file(file)["pictures"]


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def resized(pixels: Tensor, side: int) -> Tensor:
    if side == SIDE:
        return pixels
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


def fit_vae(pipe: StableDiffusionPipeline, data: Tensor, work: Path) -> None:
    """Reconstruction in L1 and L2 at the sides that training uses, and a slight pull to N(0, 1).

    Whole pictures, not crops: the normalisation layers' statistics are those of a whole picture.
    """
    vae = pipe.vae

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        side = VAE_SIDES[rng.integers(len(VAE_SIDES))]
        rows = torch.from_numpy(rng.integers(len(data), size=VAE_PIXELS // side**2))
        pixels = resized(to_unit(data[rows]), side)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32))
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        error = F.l1_loss(output, pixels) + F.mse_loss(output, pixels)
        return error + KL_WEIGHT * posterior.kl().mean() / side**2

    fit("vae", vae, loss_of_step, steps=VAE_STEPS, lr=VAE_RATE, work=work, average=0.998)


@torch.no_grad()
def latents(pipe: StableDiffusionPipeline, data: Tensor, side: int, work: Path) -> Tensor:
    """Means of the posterior of every drawing at ``side`` pixels, times the scaling factor."""
    file = work / f"latents{side}.safetensors"
    if not file.exists():
        rows = []
        for chunk in tqdm(data.split(256), desc=f"encode {side}", mininterval=5):
            rows.append(pipe.vae.encode(resized(to_unit(chunk), side)).latent_dist.mean)
        save_tensors(file, {"latents": torch.cat(rows)}, {})
    return load_file(file)["latents"] * pipe.vae.config.scaling_factor


def set_scaling(pipe: StableDiffusionPipeline, data: Tensor) -> None:
    """Make the latents' standard deviation 1, as the published models do."""
    with torch.no_grad():
        mean = pipe.vae.encode(to_unit(data[:1024])).latent_dist.mean
    pipe.vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 5))


def fit_denoiser(
    pipe: StableDiffusionPipeline,
    name: str,
    drawn: list[Scene],
    data: dict[int, Tensor],
    sides: tuple[int, ...],
    work: Path,
    steps: int,
    lr: float,
) -> None:
    """Text encoder and U-Net on the weighted noise-prediction loss; timesteps stratified.

    Each step draws a side, and a batch of the latents ``data`` at that side. Multiplications run in
    bfloat16, and attention keeps its scores: 68 pictures a second against 40 in float32 with
    PyTorch's fused attention, whose bfloat16 backward is the slowest of all (2 Zen 4 threads).
    """
    pipe.unet.set_attn_processor(AttnProcessor())
    module = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    alphas = pipe.scheduler.alphas_cumprod
    weights = (alphas / (1 - alphas)).clamp(max=SNR_CLIP) / (alphas / (1 - alphas))
    count = len(alphas)

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        codes = data[sides[rng.integers(len(sides))]]
        rows = rng.integers(len(codes), size=BATCH)
        captions = [random_caption(drawn[i], rng) for i in rows]
        strata = (np.arange(BATCH) + rng.random(BATCH)) / BATCH
        t = torch.from_numpy((strata * count).astype(np.int64))
        clean = codes[torch.from_numpy(rows)]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            predicted = pipe.unet(noisy, t, encode(pipe, captions)).sample.float()
        return (weights[t] * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()

    fit(name, module, loss_of_step, steps=steps, lr=lr, work=work, average=0.998)


def encode(pipe: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Text features (captions, 24, 192), the way the stock pipeline computes them."""
    ids = pipe.tokenizer(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return pipe.text_encoder(ids)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and caches")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # initial weights; forked, so the caller's state comes back
        pipe = build_pipeline()
    drawn = scenes()
    data = pictures(work, drawn)
    fit_vae(pipe, data, work)
    set_scaling(pipe, data)
    encoded = {side: latents(pipe, data, side, work) for side in sorted({*LOW_SIDES, *HIGH_SIDES})}
    fit_denoiser(pipe, "low", drawn, encoded, LOW_SIDES, work, LOW_STEPS, LOW_RATE)
    fit_denoiser(pipe, "high", drawn, encoded, HIGH_SIDES, work, HIGH_STEPS, HIGH_RATE)
    pipe.to(torch.float16).save_pretrained(model_path())
    # The files' dtype. diffusers computes in float32 all the same unless told otherwise, but
    # transformers in what its configuration says, and then the parts do not fit together.
    config = model_path() / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


if __name__ == "__main__":
    main()
