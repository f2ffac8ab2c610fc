"""The diffusion loss, in one place for both kinds of step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[], Tensor]  # evaluates the loss of one sample at the current weights: float32, 0-d


@dataclass(frozen=True)
class Sample:
    """All that one loss value depends on besides the weights."""

    latents: Tensor  # (1, channels, height, width), scaled as the U-Net expects
    noise: Tensor  # of the shape of latents
    timestep: int
    prompt: Tensor  # (1, tokens, width)
    added: Mapping[str, Tensor] | None = None  # SDXL's pooled prompt and sizes, by diffusers' names


def diffusion_loss(unet: Any, scheduler: Any, sample: Sample) -> Tensor:
    r"""Mean squared error of the U-Net's prediction on a noised sample, a float32 scalar.

    .. math:: L = \frac{1}{d} \lVert u(\sqrt{\bar\alpha_t} x + \sqrt{1 - \bar\alpha_t} \epsilon,
              t, c) - y \rVert^2

    with the target y by the scheduler's ``prediction_type``: the noise :math:`\epsilon`
    (epsilon), :math:`\sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x` (v_prediction), or
    the latents x (sample).

    Source:
        Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020; v: Salimans & Ho,
        "Progressive distillation for fast sampling of diffusion models", ICLR 2022.
    """
    timesteps = torch.tensor([sample.timestep], device=sample.latents.device)
    noisy = scheduler.add_noise(sample.latents, sample.noise, timesteps)
    dtype = unet.dtype
    (prediction,) = unet(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=sample.prompt.to(dtype),
        added_cond_kwargs=sample.added,
        return_dict=False,
    )
    match scheduler.config.prediction_type:
        case "epsilon":
            target = sample.noise
        case "v_prediction":
            target = scheduler.get_velocity(sample.latents, sample.noise, timesteps)
        case "sample":
            target = sample.latents
        case other:
            raise AssertionError(f"prediction type {other} passed the check of open_model")
    return functional.mse_loss(prediction.float(), target.float())
