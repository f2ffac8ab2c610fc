"""What the steps need of the pictures and the prompt, computed once: then the encoders can go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import Picture, square_crop, to_pixels, weighted_index
from .memory import MemoryRecorder
from .models import Model
from .models.conditioning import Prompt, encode_prompts, time_ids
from .models.storage import Storage, float_dtype
from .models.tiles import enable_tiles
from .steps.loss import Sample
from .steps.seeds import Tag, integer, noise, seed64
from .streaming import open_text_encoder

TILE = 256  # side, in pixels, of the tiles that the VAE sees where it is tiled
VAE_DECODER = ("decoder", "post_quant_conv")  # not needed for encoding


@dataclass(frozen=True)
class EncodedPicture:
    """A picture at one side: the VAE's posterior, normal with this mean and deviation."""

    mean: Tensor  # (1, channels, height, width) float32
    std: Tensor  # of the shape of mean
    scaling_factor: float
    time_ids: Tensor | None  # (1, 6), for the models that take sizes

    def sample(self, noise: Tensor) -> Tensor:
        """``(mean + std * noise) * scaling_factor``: a latent sample as the U-Net expects it."""
        return (self.mean + self.std * noise) * self.scaling_factor


@dataclass(frozen=True)
class Draw:
    """What a step draws: a picture's latents, the noise on them, and a caption still in words."""

    latents: Tensor
    noise: Tensor
    timestep: int
    caption: str
    time_ids: Tensor | None

    def sample(self, prompt: Prompt) -> Sample:
        """The sample, once the caption is encoded."""
        added = None
        if prompt.pooled is not None and self.time_ids is not None:
            added = {"text_embeds": prompt.pooled, "time_ids": self.time_ids}
        return Sample(self.latents, self.noise, self.timestep, prompt.tokens, added=added)


@dataclass(frozen=True)
class Cache:
    """What the steps draw from."""

    pictures: Sequence[Picture]
    prompts: Mapping[str, Prompt]  # by caption; none where the encoders stay in memory
    encoded: Mapping[int, list[EncodedPicture]]  # every picture, by side in pixels

    def draw(self, run_seed: int, step: int, timestep: int, side: int, share: int = 0) -> Sample:
        """The sample of a step at one side: a picture, its latents, and the noise on them; and
        one of a picture for prior preservation, if there are any.

        Args:
            share: Of the samples that several processes have of a step, from 0.
        """
        priors = [i for i, picture in enumerate(self.pictures) if picture.regularization]
        drawn = self.draw_subject(run_seed, step, timestep, side, share)
        sample = drawn.sample(self.prompts[drawn.caption])
        if priors:  # at the timestep on which the step's kind depends, with noise of its own
            prior = self._draw(priors, run_seed, step, 2 * share + 1, timestep, side)
            sample = replace(sample, prior=prior.sample(self.prompts[prior.caption]))
        return sample

    def draw_subject(
        self, run_seed: int, step: int, timestep: int, side: int, share: int = 0
    ) -> Draw:
        """The picture of a step at one side, without its prompt."""
        subjects = [i for i, picture in enumerate(self.pictures) if not picture.regularization]
        return self._draw(subjects, run_seed, step, 2 * share, timestep, side)

    def _draw(
        self, chosen: list[int], run_seed: int, step: int, index: int, timestep: int, side: int
    ) -> Draw:
        pictures = [self.pictures[i] for i in chosen]
        tickets = sum(picture.repeats for picture in pictures)
        draw = integer(seed64(run_seed, step, index, Tag.IMAGE), 0, tickets)
        position = chosen[weighted_index(draw, pictures)]
        picture = self.encoded[side][position]
        shape, device = tuple(picture.mean.shape), picture.mean.device
        latent_seed = seed64(run_seed, step, index, Tag.VAE_LATENT)
        noise_seed = seed64(run_seed, step, index, Tag.DIFFUSION_NOISE)
        return Draw(
            latents=picture.sample(noise(shape, latent_seed, "vae_latent", device)),
            noise=noise(shape, noise_seed, "diffusion_noise", device),
            timestep=timestep,
            caption=self.pictures[position].caption,
            time_ids=picture.time_ids,
        )


def build_cache(
    model: Model,
    pictures: Sequence[Picture],
    sides: Sequence[int],
    dtype: Storage,
    memory: MemoryRecorder,
    *,
    captions: bool = True,
    stream: bool = False,
    tiled: bool = False,
    half: bool = False,
) -> Cache:
    """Encode the captions, then the pictures at each side; no encoder stays in memory.

    Args:
        captions: Whether the captions are encoded, or the pictures alone.
        dtype: Of the text encoders' weights. The VAE's are float32: SDXL's overflows in float16,
            and in bfloat16 its latents are off by more than a photo's noise.
        stream: The text encoders' weights stay in their files.
        tiled: The VAE sees pictures in overlapping tiles.
        half: It does so in bfloat16, if ``dtype`` has 16 bits.
    """
    texts = dict.fromkeys(picture.caption for picture in pictures) if captions else {}
    load = open_text_encoder if stream else Model.load
    prompts = encode_prompts(model, list(texts), dtype, memory, load) if texts else {}
    vae_dtype = torch.bfloat16 if half and float_dtype(dtype).itemsize == 2 else torch.float32
    encoded = _encode_pictures(model, pictures, sides, memory, vae_dtype, tiled)
    return Cache(pictures, prompts, encoded)


@torch.no_grad()
def _encode_pictures(
    model: Model,
    pictures: Sequence[Picture],
    sides: Sequence[int],
    memory: MemoryRecorder,
    dtype: torch.dtype,
    tiled: bool,
) -> dict[int, list[EncodedPicture]]:
    with memory.phase("load"):
        vae = model.load("vae", dtype, memory.device, dropped=VAE_DECODER)
        if tiled:
            enable_tiles(vae, TILE, model.vae_factor)
    encoded: dict[int, list[EncodedPicture]] = {side: [] for side in sides}
    with memory.phase("cache"):
        for picture in pictures:
            image = picture.image
            for side in sides:
                pixels = to_pixels(image, side).to(memory.device, dtype)
                posterior = vae.encode(pixels).latent_dist
                del pixels
                sizes = None
                if model.takes_sizes:
                    left, top, edge = square_crop(image)
                    crop = (round(top * side / edge), round(left * side / edge))
                    sizes = time_ids((image.height, image.width), crop, side).to(memory.device)
                encoded[side].append(
                    EncodedPicture(
                        # A copy: the mean is half of a tensor that would stay alive.
                        mean=posterior.mean.to(torch.float32, copy=True),
                        std=posterior.std.float(),
                        scaling_factor=vae.config.scaling_factor,
                        time_ids=sizes,
                    )
                )
                del posterior
    return encoded
