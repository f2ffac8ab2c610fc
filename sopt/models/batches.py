"""U-Nets of pipelines with another forward: one element at a time, or what is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from ..errors import InputError


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


class _Replaced(UNet2DConditionModel):
    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        for name, value in others.items():
            if value is not None:
                raise InputError(f"{name} does not go with a U-Net that is run unit by unit")
        predict = self.sopt_predict
        result = predict(self, sample, timestep, encoder_hidden_states, added_cond_kwargs)
        return UNet2DConditionOutput(sample=result) if return_dict else (result,)


# The name under which diffusers saves and finds the class of a pipeline's U-Net.
_Replaced.__name__ = UNet2DConditionModel.__name__


def replace_forward(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    """Have the forward of ``unet`` be ``predict(unet, sample, timestep, text, added)``, in place.

    By class: a function put on the network that knew it would make a reference cycle, and the
    network would stay in memory after its last use.
    """
    unet.__class__ = _Replaced
    unet.sopt_predict = predict
