"""Fast forward passes of the U-Net on a CPU: where no gradient is wanted, in 16 bits.

With a LoRA adapter, at 512 pixels, in bfloat16, on two cores of Zen 4, a forward of SD1.5 takes
3.2 s as diffusers and peft compute it, 2.4 so: attention gains 0.5 s, weights of convolutions in
channels_last order 0.2, this LoRA 0.2 (``bench/full_size_run.py``). In float32 attention gains 4 to
8 %: there everything stays, and the bits of stock pipelines.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from peft.tuners import lora
from torch import Tensor, nn

from sopt_kernels import add_low_rank_, attention_forward

from ..memory import mapped_blocks


class ForwardAttention(AttnProcessor2_0):
    """As :class:`AttnProcessor2_0`, by ``attention_forward`` where no gradient is wanted."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Tensor:
        if not _applies(attn, hidden_states, attention_mask):
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, *arguments, **options
            )
        batch = len(hidden_states)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.view(batch, -1, attn.heads, projected.shape[-1] // attn.heads).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        mixed = attention_forward(query, key, value, scale=attn.scale).transpose(1, 2).flatten(2)
        return attn.to_out[0](mixed)


def _applies(attn: Any, hidden_states: Tensor, mask: Tensor | None) -> bool:
    plain = (
        attn.spatial_norm is None
        and attn.group_norm is None
        and attn.norm_q is None
        and attn.norm_k is None
        and not attn.norm_cross
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and hidden_states.dim() == 3
    )
    return plain and mask is None and _is_plain_forward(hidden_states)


class ForwardLora(lora.Linear):
    """As peft's layer, by ``add_low_rank_`` where no gradient is wanted."""

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        names = self.active_adapters
        plain = len(names) == 1 and not (self.disable_adapters or self.merged or options)
        if not (plain and _is_plain_forward(x) and x.is_contiguous()):
            return super().forward(x, *arguments, **options)
        (name,) = names
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return add_low_rank_(self.base_layer(x), x, a, b, scale=self.scaling[name])


def _is_plain_forward(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.bfloat16


@mapped_blocks()
def speed_up_forwards(unet: Any) -> None:
    """Have attention, LoRA layers and convolutions take the fast way where there is one, in place.

    Call it when the adapter is in the network. Backward passes compute what they did.
    """
    unet.set_attn_processor(ForwardAttention())
    if not has_fast_layers(unet.dtype, unet.device):
        return
    for module in unet.modules():
        if type(module) is lora.Linear and _is_vanilla(module):
            module.__class__ = ForwardLora  # by class: see sopt/frozen.py
        elif type(module) is nn.Conv2d:
            weight = module.weight.data.to(memory_format=torch.channels_last)
            module.weight.data = weight  # in place of the parameter: its name and identity stay


def has_fast_layers(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether LoRA layers of a network have a fast way, and convolutions, whose weights are in
    channels_last order then."""
    return dtype == torch.bfloat16 and device.type == "cpu"


def _is_vanilla(layer: lora.Linear) -> bool:
    """Whether the layer adds ``B A x`` times a scale, in float32, and nothing else."""
    factors = [factor for pair in (layer.lora_A, layer.lora_B) for factor in pair.values()]
    dropped = any(not isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    return (
        not dropped
        and not layer.lora_variant  # such as DoRA
        and all(each.bias is None and each.weight.dtype == torch.float32 for each in factors)
    )
