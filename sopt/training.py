"""What is in memory while a run trains: networks, what is trained, optimizers; and the two steps.

One class per kind of what is trained: :class:`LoraTraining` here, :class:`TokenTraining` in
:mod:`sopt.token.training`, :class:`CodesTraining` in :mod:`sopt.codes.training`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import Cache, build_cache
from .checkpoint import fingerprint
from .config import TrainConfig
from .data import Picture
from .devices import weight_storage
from .frozen import forget_inputs_of_frozen_convolutions
from .hollow.training import Hollow
from .memory import MemoryRecorder
from .models import Model, inject_lora
from .models.forwards import speed_up_forwards
from .models.gates import recompute_gates
from .models.storage import Storage
from .steps.backprop import backprop_step
from .steps.loss import Loss, Sample, diffusion_loss
from .steps.seeds import Tag, seed64
from .steps.zeroth_order import zeroth_order_step, zeroth_order_step_together
from .streaming import network_fingerprint, open_network
from .streaming.together import Together


class Training(ABC):
    """The steps of a run, after everything they need was loaded and encoded.

    Attributes:
        adapter: What is trained, float32, by canonical name.
        optimizer: Of the backprop steps.

    Args:
        config: With device, resolution and weights resolved.
        memory: Gets the phases "load" and "cache", and "precompute" for a hollow.
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
        self._memory = memory
        dtype = weight_storage(str(config.weights), str(memory.device))
        self._cache = self._build_cache(pictures, dtype)
        with memory.phase("load"):
            unet, self._predict = self._open(dtype)
            self.adapter = self._insert(unet, dtype)
        speed_up_forwards(unet)
        forget_inputs_of_frozen_convolutions(unet)
        recompute_gates(unet)
        if config.checkpointing and self._predict is unet:
            unet.enable_gradient_checkpointing()
        self._unet = unet
        self._scheduler = model.noise_scheduler()
        self.optimizer = self._make_optimizer()

    @abstractmethod
    def _build_cache(self, pictures: Sequence[Picture], dtype: Storage) -> Cache: ...

    def _open(self, dtype: Storage) -> tuple[Any, Any]:
        """The U-Net, and what is called in its place: itself, or what runs it unit by unit."""
        unet = self._model.load("unet", dtype, self._memory.device)
        return unet, unet

    @abstractmethod
    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
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


class UnetTraining(Training):
    """Something in the U-Net; prompts are encoded once, and the text encoders go."""

    def _build_cache(self, pictures: Sequence[Picture], dtype: Storage) -> Cache:
        config, tiled = self._config, bool(self._config.vae_tiles)
        at, stream = sides(config), config.lean
        return build_cache(
            self._model, pictures, at, dtype, self._memory, stream=stream, tiled=tiled
        )

    def draw(self, step: int, timestep: int, side: int) -> Sample:
        """What the loss of a step is computed on, at one side in pixels."""
        return self._cache.draw(self._config.seed, step, timestep, side)

    @property
    def _weighting(self) -> dict[str, Any]:
        return {"min_snr": self._config.min_snr, "prior_weight": self._config.prior_weight}

    def _loss(self, step: int, timestep: int, side: int) -> Loss:
        sample = self.draw(step, timestep, side)
        return partial(diffusion_loss, self._predict, self._scheduler, sample, **self._weighting)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        assert not state


class LoraTraining(UnetTraining):
    """A LoRA adapter of the U-Net.

    With a hollow or with streamed weights the U-Net is run unit by unit, and never in memory as a
    whole.

    Args:
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
        self._folder = folder
        self._hollow: Hollow | None = None
        self._weights: str | None = None  # fingerprint, where it is not taken from the network
        self._together: Together | None = None
        super().__init__(config, model, pictures, memory)
        if config.offload == "stream":
            self._together = Together(self._predict, self.adapter, model)

    def _build_cache(self, pictures: Sequence[Picture], dtype: Storage) -> Cache:
        config, model, memory = self._config, self._model, self._memory
        cache = super()._build_cache(pictures, dtype)
        if self._folder is not None and config.lean:
            with memory.phase("load"):
                self._weights = frozen_fingerprint(config, model)
        if config.hollow is not None:
            place = None if self._folder is None else self._folder()
            self._hollow = Hollow(config, model, cache, memory, str(self._weights), place)
        return cache

    def _open(self, dtype: Storage) -> tuple[Any, Any]:
        if not self._config.lean:
            return super()._open(dtype)
        network = open_network(
            self._model,
            dtype,
            self._memory.device,
            hole=range(0) if self._hollow is None else self._hollow.cut.hole,
            stream=self._config.offload == "stream",
            checkpointing=bool(self._config.checkpointing),
        )
        return network.unet, network

    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
        return inject_lora(unet, self._config.rank, self._config.seed)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.values(), lr=self._config.lr)

    def draw(self, step: int, timestep: int, side: int) -> Sample:
        if self._hollow is None:
            return super().draw(step, timestep, side)
        return self._hollow.draw(step, timestep, side)

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        config = self._config
        assert config.resolution is not None
        seeds = self._directions(step)
        options: dict[str, Any] = {"lr": config.zo_lr, "eps": config.eps, "noise": config.noise}
        if self._together is None:
            loss = self._loss(step, timestep, config.resolution)
            update = zeroth_order_step(self.adapter, loss, seeds, **options)
        else:
            sample = self.draw(step, timestep, config.resolution)
            losses = partial(self._together.losses, self._scheduler, sample, self._weighting)
            update = zeroth_order_step_together(self.adapter, losses, seeds, **options)
        return asdict(update) if update else skipped()

    def fingerprint(self) -> str:
        return super().fingerprint() if self._weights is None else self._weights


def make_training(
    config: TrainConfig,
    model: Model,
    pictures: Sequence[Picture],
    memory: MemoryRecorder,
    folder: Callable[[], Path] | None = None,
) -> Training:
    """The training of what the settings name; ``folder`` as for :class:`LoraTraining`."""
    if config.train == "lora":
        return LoraTraining(config, model, pictures, memory, folder)
    # Here: they build on this module.
    from .codes.training import CodesTraining
    from .token.training import TokenTraining

    if config.train == "token":
        return TokenTraining(config, model, pictures, memory)
    return CodesTraining(config, model, pictures, memory, simulated=folder is None)


def frozen_fingerprint(config: TrainConfig, model: Model) -> str:
    """What :meth:`Training.fingerprint` says, found without the adapter."""
    dtype = weight_storage(str(config.weights), str(config.device))
    if config.lean:
        return network_fingerprint(model, dtype, torch.device("cpu"))
    encoders = list(model.kind.tokenizers) if config.train == "token" else []
    return fingerprint(*(model.load(component, dtype) for component in ("unet", *encoders)))


def skipped() -> dict[str, Any]:
    """What the history says about a zeroth-order step that was not finite."""
    return {"loss": None, "seeds": [], "coefficients": []}


def sides(config: TrainConfig) -> list[int]:
    """The sides of pictures, in pixels, that the schedule can ask for."""
    assert config.resolution is not None
    low = [config.low_resolution] if config.schedule != 1.0 else []
    high = [config.resolution] if config.schedule != 0.0 else []
    return sorted({*low, *high})
