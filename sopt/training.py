"""What is in memory while a run trains: U-Net, adapter and optimizer; and the two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import build_cache
from .checkpoint import fingerprint
from .config import TrainConfig
from .data import Picture
from .frozen import forget_inputs_of_frozen_convolutions
from .hollow.training import Hollow
from .memory import MemoryRecorder
from .models import Model, inject_lora
from .models.attention import use_forward_attention
from .models.gates import recompute_gates
from .steps.backprop import backprop_step
from .steps.loss import Sample, diffusion_loss
from .steps.seeds import Tag, seed64
from .steps.zeroth_order import zeroth_order_step, zeroth_order_step_together
from .streaming import UnitNetwork, network_fingerprint, open_network
from .streaming.together import Together


class Training:
    """The steps of a run, after everything they need was loaded and encoded.

    Args:
        config: With device, resolution and weights resolved.
        memory: Gets the phases "load" and "cache", and "precompute" for a hollow.
        folder: Gives the run's folder, ready for writing, where the activations of a hollow are
            kept; None has them made up, for a simulation.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        pictures: Sequence[Picture],
        memory: MemoryRecorder,
        folder: Callable[[], Path] | None = None,
    ) -> None:
        self._config = config
        dtype = getattr(torch, str(config.weights))
        stream = config.offload == "stream"
        tiled = bool(config.vae_tiles)
        self._cache = build_cache(model, pictures, sides(config), dtype, memory, config.lean, tiled)
        self._hollow: Hollow | None = None
        self._weights: str | None = None  # fingerprint, where it is not taken from self._unet
        if folder is not None and config.lean:
            with memory.phase("load"):
                self._weights = network_fingerprint(model, dtype, memory.device)
        if config.hollow is not None:
            place = None if folder is None else folder()
            self._hollow = Hollow(config, model, self._cache, memory, str(self._weights), place)
        with memory.phase("load"):
            unet, self._network = self._open(model, dtype, memory.device)
            self.adapter = inject_lora(unet, config.rank, config.seed)
        use_forward_attention(unet)
        forget_inputs_of_frozen_convolutions(unet)
        recompute_gates(unet)
        if config.checkpointing and self._network is None:
            unet.enable_gradient_checkpointing()
        self._together: Together | None = None
        if stream and self._network is not None:
            self._together = Together(self._network, self.adapter, model)
        self.optimizer = torch.optim.AdamW(self.adapter.values(), lr=config.lr)
        self._unet = unet
        self._scheduler = model.noise_scheduler()
        self._weighting: dict[str, Any] = {
            "min_snr": config.min_snr,
            "prior_weight": config.prior_weight,
        }
        called = unet if self._network is None else self._network
        self._loss = partial(diffusion_loss, called, self._scheduler, **self._weighting)

    def _open(
        self, model: Model, dtype: torch.dtype, device: torch.device
    ) -> tuple[Any, UnitNetwork | None]:
        """The U-Net, and what runs it unit by unit if it must be."""
        stream = self._config.offload == "stream"
        if not stream and self._hollow is None:
            return model.load("unet", dtype, device), None
        network = open_network(
            model,
            dtype,
            device,
            hole=range(0) if self._hollow is None else self._hollow.cut.hole,
            stream=stream,
            checkpointing=bool(self._config.checkpointing),
        )
        return network.unet, network

    def _draw(self, step: int, timestep: int, side: int) -> Sample:
        if self._hollow is None:
            return self._cache.draw(self._config.seed, step, timestep, side)
        return self._hollow.draw(step, timestep, side)

    def backprop(self, step: int, timestep: int) -> dict[str, Any]:
        """A backprop step at the low side: what the history says about it."""
        sample = self._draw(step, timestep, self._config.low_resolution)
        loss = partial(self._loss, sample)
        return {"loss": backprop_step(self.adapter, loss, self.optimizer)}

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        """A zeroth-order step at the full side: what the history says about it."""
        config = self._config
        assert config.resolution is not None
        sample = self._draw(step, timestep, config.resolution)
        seeds = [
            seed64(config.seed, step, n, Tag.DIRECTION) for n in range(config.num_perturbations)
        ]
        options: dict[str, Any] = {"lr": config.zo_lr, "eps": config.eps, "noise": config.noise}
        if self._together is None:
            loss = partial(self._loss, sample)
            update = zeroth_order_step(self.adapter, loss, seeds, **options)
        else:
            losses = partial(self._together.losses, self._scheduler, sample, self._weighting)
            update = zeroth_order_step_together(self.adapter, losses, seeds, **options)
        return asdict(update) if update else {"loss": None, "seeds": [], "coefficients": []}

    def fingerprint(self) -> str:
        """A name for the frozen U-Net."""
        return fingerprint(self._unet) if self._weights is None else self._weights

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
