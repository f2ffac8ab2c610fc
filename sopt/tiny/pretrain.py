"""Makes the bundled pipeline and its judge: ``python -m sopt.tiny.pretrain --work DIR``.

Draws the scenes, fits the autoencoder, caches latents, fits text encoder and U-Net together (first
on 32 x 32 pictures, as the published models were, then on 64 x 64), fits the judge on drawings,
writes everything in half precision to ``sopt/tiny/model`` and ``sopt/tiny/judge.safetensors``,
and measures how often the judge agrees with captions whose combinations were never trained.

Every stage resumes from its checkpoint in ``--work``; delete that folder to start again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import path as model_path
from .architecture import build_pipeline
from .drawings import SIDE, draw
from .fitting import fit
from .scenes import Scene, random_caption, random_scene

SEED = 0
SCENES = 20_000
BATCH = 64
VAE_STEPS, VAE_RATE, CROP, VAE_BATCH = 2_000, 2e-3, 32, 32
LOW_STEPS, LOW_RATE = 1_200, 1e-3
HIGH_STEPS, HIGH_RATE = 1_300, 1e-3
DECODER_STEPS, DECODER_RATE, LATENT_NOISE = 2_000, 1e-3, 0.03
SNR_CLIP = 5.0  # min-SNR weighting (Hang et al. 2023)
KL_WEIGHT = 1e-6


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
        save_file({"pictures": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()}, file)
    return load_file(file)["pictures"]


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def fit_vae(pipe: StableDiffusionPipeline, data: Tensor, work: Path) -> None:
    """Reconstruction in L1 and L2, with the slightest pull to a unit Gaussian."""
    vae = pipe.vae

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(data), size=VAE_BATCH))
        y, x = rng.integers(0, (SIDE - CROP) // 4 + 1, 2) * 4
        pixels = to_unit(data[rows, :, y : y + CROP, x : x + CROP])
        posterior = vae.encode(pixels).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32))
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        return (
            F.l1_loss(output, pixels)
            + F.mse_loss(output, pixels)
            + KL_WEIGHT * posterior.kl().mean()
        )

    fit("vae", vae, loss_of_step, steps=VAE_STEPS, lr=VAE_RATE, work=work, average=0.99)


def fit_decoder(pipe: StableDiffusionPipeline, data: Tensor, codes: Tensor, work: Path) -> None:
    """The decoder alone, on cached latents with a little noise: what the U-Net draws is not exact.

    It runs beside the denoiser or after it, since the latents stay what they are.
    """
    vae, factor = pipe.vae, SIDE // codes.shape[-1]
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(data), size=VAE_BATCH))
        side = CROP // factor
        y, x = rng.integers(0, codes.shape[-1] - side + 1, 2)
        code = codes[rows, :, y : y + side, x : x + side]
        code = code + LATENT_NOISE * torch.from_numpy(rng.standard_normal(code.shape, np.float32))
        output = vae.decode(code / vae.config.scaling_factor).sample
        y, x = y * factor, x * factor
        pixels = to_unit(data[rows, :, y : y + CROP, x : x + CROP])
        return F.l1_loss(output, pixels) + F.mse_loss(output, pixels)

    fit(
        "decoder",
        decoder,
        loss_of_step,
        steps=DECODER_STEPS,
        lr=DECODER_RATE,
        work=work,
        average=0.99,
    )


@torch.no_grad()
def latents(pipe: StableDiffusionPipeline, data: Tensor, side: int, work: Path) -> Tensor:
    """Means of the posterior of every drawing at ``side`` pixels, times the scaling factor."""
    file = work / f"latents{side}.safetensors"
    if not file.exists():
        rows = []
        for chunk in tqdm(data.split(256), desc=f"encode {side}", mininterval=5):
            pixels = to_unit(chunk)
            if side != SIDE:
                pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
            rows.append(pipe.vae.encode(pixels).latent_dist.mean)
        save_file({"latents": torch.cat(rows)}, file)
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
    data: Tensor,
    work: Path,
    steps: int,
    lr: float,
) -> None:
    """Text encoder and U-Net on the weighted noise-prediction loss; timesteps stratified."""
    module = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    alphas = pipe.scheduler.alphas_cumprod
    weights = (alphas / (1 - alphas)).clamp(max=SNR_CLIP) / (alphas / (1 - alphas))
    count = len(alphas)

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(data), size=BATCH)
        captions = [random_caption(drawn[i], rng) for i in rows]
        strata = (np.arange(BATCH) + rng.random(BATCH)) / BATCH
        t = torch.from_numpy((strata * count).astype(np.int64))
        clean = data[torch.from_numpy(rows)]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        predicted = pipe.unet(noisy, t, encode(pipe, captions)).sample
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
    parser.add_argument(
        "--stage",
        choices=("all", "denoiser", "decoder"),
        default="all",
        help="denoiser and decoder need not wait for each other; all does the rest, and exports",
    )
    arguments = parser.parse_args()
    work, stage = arguments.work, arguments.stage
    work.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # initial weights; forked, so the caller's state comes back
        pipe = build_pipeline()
    drawn = scenes()
    data = pictures(work, drawn)
    fit_vae(pipe, data, work)
    set_scaling(pipe, data)
    small, full = latents(pipe, data, 32, work), latents(pipe, data, 64, work)
    if stage in ("all", "denoiser"):
        fit_denoiser(pipe, "low", drawn, small, work, LOW_STEPS, LOW_RATE)
        fit_denoiser(pipe, "high", drawn, full, work, HIGH_STEPS, HIGH_RATE)
    if stage in ("all", "decoder"):
        fit_decoder(pipe, data, full, work)
    if stage != "all":
        return
    pipe.to(torch.float16).save_pretrained(model_path())


if __name__ == "__main__":
    main()
