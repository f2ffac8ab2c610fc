"""The diffusion loss, in one place for both kinds of step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[], Tensor]  # evaluates the loss of one sample at the current weights: float32, 0-d


@dataclass(frozen=True)
class Sample:
    """All that one loss value depends on besides the weights."""

    latents: Tensor  # (1, channels, height, width), scaled as the U-Net expects
    noise: Tensor  # of the shape of latents
    timestep: int
    prompt: Tensor  # (1, tokens, width); diffusion_losses takes several
    prior: Sample | None = None  # of a picture for prior preservation
    added: Mapping[str, Tensor] | None = None  # SDXL's pooled prompt and sizes, by diffusers' names
    central: Tensor | None = None  # what the hole of a hollowed U-Net says, where there is one


def diffusion_loss(
    unet: Any,
    scheduler: Any,
    sample: Sample,
    *,
    min_snr: float | None = None,
    prior_weight: float = 1.0,
) -> Tensor:
    r"""Mean squared error of the U-Net's prediction on a noised sample, a float32 scalar.

    .. math:: L = \frac{w_t}{d} \lVert u(\sqrt{\bar\alpha_t} x + \sqrt{1 - \bar\alpha_t} \epsilon,
              t, c) - y \rVert^2

    with the target y by the scheduler's ``prediction_type``: the noise :math:`\epsilon`
    (epsilon), :math:`\sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x` (v_prediction), or
    the latents x (sample). The weight :math:`w_t` is that of :func:`min_snr_weight`, or 1. If the
    sample has a prior, its L, with the weight of its own timestep, is added ``prior_weight`` times.

    Source:
        Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020; v: Salimans & Ho,
        "Progressive distillation for fast sampling of diffusion models", ICLR 2022; prior: Ruiz et
        al., "DreamBooth", CVPR 2023.
    """
    (loss,) = losses_of_predictions(
        partial(_predict, unet),
        _dtype(unet),
        scheduler,
        sample,
        min_snr=min_snr,
        prior_weight=prior_weight,
    )
    return loss


def losses_of_predictions(
    predict: Callable[..., Sequence[Tensor]],
    dtype: torch.dtype,
    scheduler: Any,
    sample: Sample,
    *,
    min_snr: float | None = None,
    prior_weight: float = 1.0,
) -> list[Tensor]:
    """:func:`diffusion_loss` of each of several predictions on one sample.

    Args:
        predict: Takes what a U-Net takes, by the names of its arguments, and gives predictions.
        dtype: Of the latents and the prompt that it takes.
    """
    losses = _errors(predict, dtype, scheduler, sample, min_snr)
    if sample.prior is not None:
        priors = _errors(predict, dtype, scheduler, sample.prior, min_snr)
        losses = [loss + prior_weight * more for loss, more in zip(losses, priors, strict=True)]
    return losses


def min_snr_weight(scheduler: Any, timestep: int, gamma: float) -> float:
    r"""Weight of the loss at a timestep, so that low noise levels do not dominate the gradient.

    With :math:`\mathrm{SNR} = \bar\alpha_t / (1 - \bar\alpha_t)`, an error of the latents weighs
    :math:`\min(\mathrm{SNR}, \gamma)`. An error of the noise is that of the latents times SNR, one
    of v that of the latents times SNR + 1, hence

    .. math:: w_t = \min(\mathrm{SNR}, \gamma) / \{\mathrm{SNR},\ \mathrm{SNR} + 1,\ 1\}
              \text{ for epsilon, v\_prediction, sample.}

    Source:
        Hang et al., "Efficient diffusion training via min-SNR weighting strategy", ICCV 2023.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> scheduler = DDPMScheduler(prediction_type="v_prediction")
        >>> kept = scheduler.alphas_cumprod[100].item()
        >>> snr = kept / (1 - kept)
        >>> snr > 5, min_snr_weight(scheduler, 100, 5.0) == 5 / (snr + 1)
        (True, True)
    """
    kept = scheduler.alphas_cumprod[timestep].item()
    snr = kept / (1 - kept) if kept < 1 else math.inf
    match scheduler.config.prediction_type:
        case "epsilon":
            return gamma / max(snr, gamma)  # also at zero SNR, where the weight is 1
        case "v_prediction":
            return min(snr, gamma) / (snr + 1)
        case _:
            return min(snr, gamma)


def diffusion_losses(
    unet: Any, scheduler: Any, sample: Sample, *, min_snr: float | None = None
) -> Tensor:
    """:func:`diffusion_loss` under each of k prompts, by one forward: (k,) float32.

    Args:
        sample: One picture, with ``prompt`` (k, tokens, width) and ``added`` (k or 1, ...); no
            prior.
    """
    inputs = unet_inputs(scheduler, sample, _dtype(unet))
    (predictions,) = _predict(unet, **inputs)
    target = _target(scheduler, sample)
    errors = (predictions.float() - target.float()).square().mean(dim=(1, 2, 3))
    return _weigh(errors, scheduler, sample, min_snr)


def _dtype(unet: Any) -> torch.dtype:
    """Of the first floating-point parameter, which is ``unet.dtype`` of diffusers without its walk
    through all modules: with an adapter it takes 4.5 ms on the bundled model, whose zeroth-order
    step of four losses takes 200."""
    if isinstance(unet, nn.Module):
        for parameter in unet.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return unet.dtype


def _predict(unet: Any, sample: Tensor, timestep: Tensor, **others: Any) -> tuple[Tensor]:
    return unet(sample, timestep, **others, return_dict=False)


def _errors(
    predict: Callable[..., Sequence[Tensor]],
    dtype: torch.dtype,
    scheduler: Any,
    sample: Sample,
    min_snr: float | None,
) -> list[Tensor]:
    predictions = predict(**unet_inputs(scheduler, sample, dtype))
    target = _target(scheduler, sample)
    errors = [functional.mse_loss(each.float(), target.float()) for each in predictions]
    return [_weigh(error, scheduler, sample, min_snr) for error in errors]


def _weigh(error: Tensor, scheduler: Any, sample: Sample, min_snr: float | None) -> Tensor:
    if min_snr is None:
        return error
    return min_snr_weight(scheduler, sample.timestep, min_snr) * error


def unet_inputs(scheduler: Any, sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    """What the U-Net sees of a sample under its k prompts, by the names of its arguments."""
    count, timesteps = len(sample.prompt), _timesteps(sample)
    noisy = scheduler.add_noise(sample.latents, sample.noise, timesteps).to(dtype)
    inputs = {
        "sample": noisy.expand(count, *noisy.shape[1:]),
        "timestep": timesteps,
        "encoder_hidden_states": sample.prompt.to(dtype),
        "added_cond_kwargs": sample.added
        and {name: value.expand(count, *value.shape[1:]) for name, value in sample.added.items()},
    }
    return inputs if sample.central is None else inputs | {"central": sample.central}


def _target(scheduler: Any, sample: Sample) -> Tensor:
    match scheduler.config.prediction_type:
        case "epsilon":
            return sample.noise
        case "v_prediction":
            return scheduler.get_velocity(sample.latents, sample.noise, _timesteps(sample))
        case "sample":
            return sample.latents
        case other:
            raise AssertionError(f"prediction type {other} passed the check of open_model")


def _timesteps(sample: Sample) -> Tensor:
    return torch.tensor([sample.timestep], dtype=torch.int64, device=sample.latents.device)
