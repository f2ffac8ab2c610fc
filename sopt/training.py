"""What is in memory while a run trains: U-Net, adapter and optimizer; and the two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cache import build_cache
from .checkpoint import fingerprint
from .config import TrainConfig
from .data import Picture
from .devices import weight_storage
from .frozen import forget_inputs_of_frozen_convolutions
from .memory import MemoryRecorder
from .models import Model, inject_lora
from .models.attention import use_forward_attention
from .steps.backprop import backprop_step
from .steps.loss import diffusion_loss
from .steps.seeds import Tag, seed64
from .steps.zeroth_order import zeroth_order_step


class Training:
    """The steps of a run, after everything they need was loaded and encoded.

    Args:
        config: With device, resolution and weights resolved.
        memory: Gets the phases "load" and "cache".
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        pictures: Sequence[Picture],
        memory: MemoryRecorder,
    ) -> None:
        self._config = config
        dtype = weight_storage(str(config.weights), str(memory.device))
        self._cache = build_cache(model, pictures, sides(config), dtype, memory)
        with memory.phase("load"):
            unet = model.load("unet", dtype, memory.device)
            self.adapter = inject_lora(unet, config.rank, config.seed)
        use_forward_attention(unet)
        forget_inputs_of_frozen_convolutions(unet)
        if config.checkpointing:
            unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.adapter.values(), lr=config.lr)
        self._unet = unet
        self._loss = partial(
            diffusion_loss,
            unet,
            model.noise_scheduler(),
            min_snr=config.min_snr,
            prior_weight=config.prior_weight,
        )

    def backprop(self, step: int, timestep: int) -> dict[str, Any]:
        """A backprop step at the low side: what the history says about it."""
        sample = self._cache.draw(self._config.seed, step, timestep, self._config.low_resolution)
        loss = partial(self._loss, sample)
        return {"loss": backprop_step(self.adapter, loss, self.optimizer)}

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        """A zeroth-order step at the full side: what the history says about it."""
        config = self._config
        assert config.resolution is not None
        sample = self._cache.draw(config.seed, step, timestep, config.resolution)
        update = zeroth_order_step(
            self.adapter,
            partial(self._loss, sample),
            [seed64(config.seed, step, n, Tag.DIRECTION) for n in range(config.num_perturbations)],
            lr=config.zo_lr,
            eps=config.eps,
            noise=config.noise,
        )
        return asdict(update) if update else {"loss": None, "seeds": [], "coefficients": []}

    def fingerprint(self) -> str:
        """A name for the frozen U-Net."""
        return fingerprint(self._unet)

    def make_optimizer_state(self) -> None:
        """Have the optimizer's state exist, as after the first backprop step."""
        for parameter in self.adapter.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def trained(self) -> dict[str, Tensor]:
        """The adapter's tensors, on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.adapter.items()}


def sides(config: TrainConfig) -> list[int]:
    """The sides of pictures, in pixels, that the schedule can ask for."""
    assert config.resolution is not None
    low = [config.low_resolution] if config.schedule != 1.0 else []
    high = [config.resolution] if config.schedule != 0.0 else []
    return sorted({*low, *high})
