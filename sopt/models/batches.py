"""A U-Net that takes a batch in the memory of one element."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor


class _OneAtATime(UNet2DConditionModel):
    def forward(self, sample: Tensor, timestep: Any, **inputs: Any) -> tuple[Tensor]:
        text = inputs.pop("encoder_hidden_states")
        added = inputs.pop("added_cond_kwargs", None) or {}
        parts: list[Tensor] = []
        for i in range(len(sample)):
            parts += super().forward(
                sample[i : i + 1],
                timestep,
                encoder_hidden_states=text[i : i + 1],
                added_cond_kwargs={name: x[i : i + 1] for name, x in added.items()},
                **inputs,
            )
        return (torch.cat(parts),)


def take_one_at_a_time(unet: UNet2DConditionModel) -> None:
    """Have the forward of ``unet`` handle the elements of a batch one after the other, in place.

    Called as the pipelines do, with ``return_dict=False``.
    """
    unet.__class__ = _OneAtATime
