"""The LoRA adapter: what is trained."""

from __future__ import annotations

import itertools

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sopt_kernels import noise, stream_id

from ..steps.seeds import Tag, seed64

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def inject_lora(unet: nn.Module, rank: int, seed: int) -> dict[str, Tensor]:
    r"""Put a LoRA adapter on the attention projections of ``unet``, in place.

    Each ``W x`` of ``to_q, to_k, to_v, to_out.0`` becomes ``W x + B A x`` (alpha = rank, so the
    scale is 1), A of shape (rank, in) drawn from N(0, 1 / rank^2) by the run's seed, B of shape
    (out, rank) zero: the network's function is unchanged at first.

    Returns:
        The trainable parameters, float32, by canonical name ``unet.<module path>.lora_A.weight``,
        sorted.

    Source:
        Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022; the
        initialization is that of the training scripts of diffusers.
    """
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
    # On the meta device: peft's own initialization would advance torch's global generator. Outside
    # of a simulation, under which peft's moves of modules fail: no memory is taken here.
    with _disable_current_modes():
        inject_adapter_in_model(config, unet, low_cpu_mem_usage=True)
    init_seed = seed64(seed, 0, 0, Tag.ADAPTER_INIT)
    adapter: dict[str, Tensor] = {}
    for path, module in unet.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base = module.get_base_layer()
        device = next(itertools.chain(base.parameters(), base.buffers())).device
        for part, layers in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
            name = f"unet.{path}.{part}.weight"
            (layer,) = layers.values()
            if part == "lora_A":
                weight = noise(layer.weight.shape, init_seed, stream_id(name)).div_(rank)
            else:
                weight = torch.zeros(layer.weight.shape)
            layer.weight = nn.Parameter(weight.to(device))
            adapter[name] = layer.weight
    return dict(sorted(adapter.items()))
