"""What is in memory while a run trains: networks, what is trained, optimizers; and the two steps.

One class per kind of what is trained: :class:`LoraTraining` here, :class:`TokenTraining` in
:mod:`sopt.token.training`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .cache import Cache, build_cache
from .checkpoint import fingerprint
from .config import TrainConfig
from .data import Picture
from .devices import weight_storage
from .frozen import forget_inputs_of_frozen_convolutions
from .memory import MemoryRecorder
from .models import Model, inject_lora
from .models.forwards import speed_up_forwards
from .models.storage import Storage
from .steps.backprop import backprop_step
from .steps.loss import Loss, Sample, diffusion_loss
from .steps.seeds import Tag, seed64
from .steps.zeroth_order import zeroth_order_step


class Training(ABC):
    """The steps of a run, after everything they need was loaded and encoded.

    Attributes:
        adapter: What is trained, float32, by canonical name.
        optimizer: Of the backprop steps.

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
        self._model = model
        dtype = weight_storage(str(config.weights), str(memory.device))
        self._cache = self._build_cache(pictures, dtype, memory)
        with memory.phase("load"):
            unet = model.load("unet", dtype, memory.device)
            self.adapter = self._insert(unet, dtype, memory.device)
        speed_up_forwards(unet)
        forget_inputs_of_frozen_convolutions(unet)
        if config.checkpointing:
            unet.enable_gradient_checkpointing()
        self._unet = unet
        self._scheduler = model.noise_scheduler()
        self.optimizer = self._make_optimizer()

    @abstractmethod
    def _build_cache(
        self, pictures: Sequence[Picture], dtype: Storage, memory: MemoryRecorder
    ) -> Cache: ...

    @abstractmethod
    def _insert(self, unet: Any, dtype: Storage, device: torch.device) -> dict[str, Tensor]:
        """Put what is trained into the networks; gives it by canonical name."""

    @abstractmethod
    def _make_optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def _loss(self, step: int, timestep: int, side: int) -> Loss:
        """The loss of a step's sample at one side, a function of the trained weights."""

    @abstractmethod
    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        """A zeroth-order step at the full side: what the history says about it."""

    def backprop(self, step: int, timestep: int) -> dict[str, Any]:
        """A backprop step at the low side: what the history says about it."""
        loss = self._loss(step, timestep, self._config.low_resolution)
        return {"loss": backprop_step(self.adapter, loss, self.optimizer)}

    def fingerprint(self) -> str:
        """A name for the frozen networks."""
        return fingerprint(self._unet)

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What the steps keep besides the adapter and ``optimizer``, for a checkpoint."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""

    def make_optimizer_state(self) -> None:
        """Have the optimizer's state exist, as after the first backprop step."""
        for parameter in self.adapter.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def trained(self) -> dict[str, Tensor]:
        """The adapter's tensors, on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.adapter.items()}

    def _directions(self, step: int) -> list[int]:
        """The seeds of a zeroth-order step's perturbations."""
        config = self._config
        return [
            seed64(config.seed, step, n, Tag.DIRECTION) for n in range(config.num_perturbations)
        ]


class LoraTraining(Training):
    """A LoRA adapter of the U-Net; prompts are encoded once, and the text encoders go."""

    def _build_cache(
        self, pictures: Sequence[Picture], dtype: Storage, memory: MemoryRecorder
    ) -> Cache:
        return build_cache(self._model, pictures, sides(self._config), dtype, memory)

    def _insert(self, unet: Any, dtype: Storage, device: torch.device) -> dict[str, Tensor]:
        return inject_lora(unet, self._config.rank, self._config.seed)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.values(), lr=self._config.lr)

    def draw(self, step: int, timestep: int, side: int) -> Sample:
        """What the loss of a step is computed on, at one side in pixels."""
        return self._cache.draw(self._config.seed, step, timestep, side)

    def _loss(self, step: int, timestep: int, side: int) -> Loss:
        return partial(
            diffusion_loss,
            self._unet,
            self._scheduler,
            self.draw(step, timestep, side),
            min_snr=self._config.min_snr,
            prior_weight=self._config.prior_weight,
        )

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        config = self._config
        assert config.resolution is not None
        update = zeroth_order_step(
            self.adapter,
            self._loss(step, timestep, config.resolution),
            self._directions(step),
            lr=config.zo_lr,
            eps=config.eps,
            noise=config.noise,
        )
        return asdict(update) if update else skipped()

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        assert not state


def make_training(
    config: TrainConfig, model: Model, pictures: Sequence[Picture], memory: MemoryRecorder
) -> Training:
    """The training of what the settings name."""
    if config.train == "lora":
        return LoraTraining(config, model, pictures, memory)
    from .token.training import TokenTraining  # here: it builds on this module

    return TokenTraining(config, model, pictures, memory)


def frozen_networks(config: TrainConfig, model: Model) -> list[nn.Module]:
    """The networks that :meth:`Training.fingerprint` names, loaded without the adapter."""
    dtype = weight_storage(str(config.weights), str(config.device))
    encoders = [] if config.train == "lora" else list(model.kind.tokenizers)
    return [model.load(component, dtype) for component in ("unet", *encoders)]


def skipped() -> dict[str, Any]:
    """What the history says about a zeroth-order step that was not finite."""
    return {"loss": None, "seeds": [], "coefficients": []}


def sides(config: TrainConfig) -> list[int]:
    """The sides of pictures, in pixels, that the schedule can ask for."""
    assert config.resolution is not None
    low = [config.low_resolution] if config.schedule != 1.0 else []
    high = [config.resolution] if config.schedule != 0.0 else []
    return sorted({*low, *high})
