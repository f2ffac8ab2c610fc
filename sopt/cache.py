"""What the steps need of the pictures and captions, computed once: then the encoders can go."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import Picture, to_pixels, weighted_index
from .memory import MemoryRecorder
from .models import Model
from .steps.loss import Sample
from .steps.seeds import Tag, integer, noise, seed64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentMoments:
    """The VAE's posterior for one picture: latents are normal with this mean and deviation."""

    mean: Tensor  # (1, channels, height, width) float32
    std: Tensor  # of the shape of mean
    scaling_factor: float

    def sample(self, noise: Tensor) -> Tensor:
        """``(mean + std * noise) * scaling_factor``: a latent sample as the U-Net expects it."""
        return (self.mean + self.std * noise) * self.scaling_factor


@dataclass(frozen=True)
class Cache:
    """What the steps draw from."""

    pictures: Sequence[Picture]
    prompts: Mapping[str, Tensor]  # by caption, (1, tokens, width) float32
    moments: Mapping[int, list[LatentMoments]]  # of every picture, by side in pixels

    def draw(self, run_seed: int, step: int, timestep: int, side: int) -> Sample:
        """The sample of a step at one side: a picture, its latents, and the noise on them; and
        one of a picture for prior preservation, if there are any."""
        priors = [i for i, picture in enumerate(self.pictures) if picture.regularization]
        subjects = [i for i, picture in enumerate(self.pictures) if not picture.regularization]
        sample = self._draw(subjects, run_seed, step, 0, timestep, side)
        if priors:  # at the timestep on which the step's kind depends, with noise of its own
            prior = self._draw(priors, run_seed, step, 1, timestep, side)
            sample = replace(sample, prior=prior)
        return sample

    def _draw(
        self, chosen: list[int], run_seed: int, step: int, index: int, timestep: int, side: int
    ) -> Sample:
        pictures = [self.pictures[i] for i in chosen]
        tickets = sum(picture.repeats for picture in pictures)
        draw = integer(seed64(run_seed, step, index, Tag.IMAGE), 0, tickets)
        position = chosen[weighted_index(draw, pictures)]
        moments = self.moments[side][position]
        shape, device = tuple(moments.mean.shape), moments.mean.device
        latent_seed = seed64(run_seed, step, index, Tag.VAE_LATENT)
        noise_seed = seed64(run_seed, step, index, Tag.DIFFUSION_NOISE)
        return Sample(
            latents=moments.sample(noise(shape, latent_seed, "vae_latent", device)),
            noise=noise(shape, noise_seed, "diffusion_noise", device),
            timestep=timestep,
            prompt=self.prompts[self.pictures[position].caption],
        )


def build_cache(
    model: Model, pictures: Sequence[Picture], sides: Sequence[int], memory: MemoryRecorder
) -> Cache:
    """Encode the captions, then the pictures at each side; no encoder stays in memory."""
    captions = dict.fromkeys(picture.caption for picture in pictures)
    prompts = _encode_prompts(model, list(captions), memory)
    return Cache(pictures, prompts, _encode_pictures(model, pictures, sides, memory))


@torch.no_grad()
def _encode_prompts(
    model: Model, prompts: Sequence[str], memory: MemoryRecorder
) -> dict[str, Tensor]:
    """The embeddings of prompts, cut with a warning where they are too long, as diffusers does."""
    tokenizer = model.tokenizer()
    length = tokenizer.model_max_length
    with memory.phase("load"):
        text_encoder = model.load_text_encoder().to(memory.device)
    embeddings: dict[str, Tensor] = {}
    with memory.phase("cache"):
        for prompt in prompts:
            tokens = tokenizer(
                prompt,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            if len(tokenizer(prompt).input_ids) > length:
                logger.warning(
                    "prompt %r is cut after the %d tokens that the model takes", prompt, length
                )
            mask = None
            if getattr(text_encoder.config, "use_attention_mask", False):
                mask = tokens.attention_mask.to(memory.device)
            ids = tokens.input_ids.to(memory.device)
            embeddings[prompt] = text_encoder(ids, attention_mask=mask)[0]
    return embeddings


@torch.no_grad()
def _encode_pictures(
    model: Model, pictures: Sequence[Picture], sides: Sequence[int], memory: MemoryRecorder
) -> dict[int, list[LatentMoments]]:
    with memory.phase("load"):
        vae = model.load_vae().to(memory.device)
    moments: dict[int, list[LatentMoments]] = {}
    with memory.phase("cache"):
        for side in sides:
            moments[side] = []
            for picture in pictures:
                posterior = vae.encode(to_pixels(picture.image, side).to(memory.device)).latent_dist
                mean = posterior.mean.clone()  # it is half of a tensor that would stay alive
                moments[side].append(LatentMoments(mean, posterior.std, vae.config.scaling_factor))
    return moments
