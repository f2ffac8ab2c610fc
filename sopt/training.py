"""What is in memory while a run trains: networks, what is trained, optimizers; and the two steps.

One class per kind of what is trained: :class:`LoraTraining` here, :class:`TokenTraining` in
:mod:`sopt.token.training`, :class:`CodesTraining` in :mod:`sopt.codes.training`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .averaging import TailAverage
from .cache import Cache, build_cache
from .checkpoint import fingerprint
from .config import AUTO, TrainConfig
from .data import Picture
from .devices import weight_storage
from .files import existing_folder
from .frozen import forget_inputs_of_frozen_convolutions
from .hollow.training import Hollow
from .memory import MemoryRecorder
from .models import Model, inject_lora
from .models.forwards import speed_up_forwards
from .models.gates import recompute_gates
from .models.quantized import Spool
from .models.storage import Int8Storage, Storage
from .processes import Processes
from .steps.backprop import backprop_step
from .steps.loss import Loss, Sample, diffusion_loss
from .steps.noise_floor import ALLOWED, LADDER, NUM_TIMESTEPS, choose_eps, evenly
from .steps.seeds import Tag, seed64
from .steps.zeroth_order import (
    Losses,
    losses_along,
    one_after_the_other,
    zeroth_order_step_together,
)
from .streaming import network_fingerprint, open_network
from .streaming.together import Together

logger = logging.getLogger(__name__)


class Training(ABC):
    """The steps of a run, after everything they need was loaded and encoded.

    Attributes:
        adapter: What is trained, float32, by canonical name.
        optimizer: Of the backprop steps.
        eps: The size of perturbations; with ``eps="auto"`` what :meth:`settle_eps` chose.

    Args:
        config: With device, resolution and weights resolved.
        memory: Gets the phases "load" and "cache", and "precompute" for a hollow.
        processes: That train together; this one alone, if not given.
    """

    _text_is_frozen: bool  #: whether prompts are encoded once, before the steps

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        pictures: Sequence[Picture],
        memory: MemoryRecorder,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        self._config = config
        self._model = model
        self._memory = memory
        dtype = run_storage(config)
        self._cache = self._build_cache(pictures, dtype)
        with memory.phase("load"):
            unet, self._predict = self._open(dtype)
            self.adapter = self._insert(unet, dtype)
        speed_up_forwards(unet)
        forget_inputs_of_frozen_convolutions(unet)
        recompute_gates(unet)
        self._unet = unet
        self.checkpoint_activations(bool(config.checkpointing))
        self._scheduler = model.noise_scheduler()
        self.optimizer = self._make_optimizer()
        self._average = (
            TailAverage(self.adapter, config.steps, config.average) if config.average else None
        )
        self.eps = LADDER[0] if config.eps == AUTO else float(config.eps)
        self._settled = config.eps != AUTO

    def _build_cache(self, pictures: Sequence[Picture], dtype: Storage) -> Cache:
        config = self._config
        return build_cache(
            self._model,
            pictures,
            sides(config),
            dtype,
            self._memory,
            captions=self._text_is_frozen,
            stream=config.lean,
            tiled=config.tiled,
            half=bool(config.vae_tiles),
        )

    def _open(self, dtype: Storage) -> tuple[Any, Any]:
        """The U-Net, and what is called in its place: itself, or what runs it unit by unit."""
        unet = self._model.load("unet", dtype, self._memory.device)
        return unet, unet

    def checkpoint_activations(self, wanted: bool) -> None:
        """Whether backprop steps compute activations again rather than keep them."""
        if self._predict is not self._unet:
            self._predict.checkpointing = wanted
        elif wanted:
            self._unet.enable_gradient_checkpointing()
        else:
            self._unet.disable_gradient_checkpointing()

    @abstractmethod
    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
        """Put what is trained into the networks; gives it by canonical name."""

    @abstractmethod
    def _make_optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def _loss(self, step: int, timestep: int, side: int, share: int = 0) -> Loss:
        """The loss of a step's sample at one side, a function of the trained weights; ``share``
        is that of :meth:`Cache.draw`."""

    @abstractmethod
    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        """A zeroth-order step at the full side: what the history says about it."""

    def backprop(self, step: int, timestep: int) -> dict[str, Any]:
        """A backprop step at the low side: what the history says about it."""
        processes = self._processes
        loss = self._loss(step, timestep, self._config.low_resolution, processes.rank)
        value = backprop_step(self.adapter, loss, self.optimizer, processes.average_)
        several = {"samples": processes.world_size} if processes.world_size > 1 else {}
        return {"loss": value, **several}

    def fingerprint(self) -> str:
        """A name for the frozen networks."""
        return fingerprint(self._unet)

    @abstractmethod
    def _slopes(self, step: int, timestep: int, seeds: Sequence[int], eps: float) -> Tensor:
        """The loss's directional derivatives (N,) at a step's sample, by forward passes."""

    def settle_eps(self) -> None:
        """With ``eps="auto"``, unless a checkpoint said it: measure, choose, and say what."""
        if self._settled:
            return
        config = self._config

        def slopes(eps: float) -> Tensor:
            times = evenly(config.timesteps, NUM_TIMESTEPS)
            found = [self._slopes(0, t, self._directions(0), eps) for t in times]
            return torch.cat(found)

        chosen, measured = choose_eps(slopes)
        self.eps, self._settled = chosen.eps, True
        seen = ", ".join(f"{floor.ratio:.2f} at {floor.eps:g}" for floor in measured)
        logger.info("eps='auto': %g; rounding noise over slopes is %s", chosen.eps, seen)
        if chosen.ratio > ALLOWED:
            logger.warning(
                "eps='auto': at no size do slopes stand out of rounding by %g times; weights of "
                "more bits or a larger num_perturbations would help",
                1 / ALLOWED,
            )

    def state(self) -> dict[str, Tensor]:
        """What the steps keep besides the adapter and ``optimizer``, for a checkpoint."""
        kept = {}
        if self._config.eps == AUTO:
            kept["eps"] = torch.tensor(self.eps, dtype=torch.float64)
        if self._average is not None:
            kept |= {f"average/{name}": mean for name, mean in self._average.means.items()}
        return kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        if self._config.eps == AUTO:
            self.eps, self._settled = state["eps"].item(), True
        if self._average is not None:
            self._average.load({name: state[f"average/{name}"] for name in self.adapter})

    def count(self, step: int) -> None:
        """Have a step that was done, or skipped, count in the average."""
        if self._average is not None:
            self._average.add(step, self.adapter)

    def make_optimizer_state(self) -> None:
        """Have the optimizer's state exist, as after the first backprop step."""
        for parameter in self.adapter.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def trained(self) -> dict[str, Tensor]:
        """What the run gives, on the CPU: the adapter as it is, or its average."""
        found = self.adapter if self._average is None else self._average.means
        return {name: parameter.detach().cpu() for name, parameter in found.items()}

    def _directions(self, step: int) -> list[int]:
        """The seeds of a zeroth-order step's perturbations."""
        config = self._config
        return [
            seed64(config.seed, step, n, Tag.DIRECTION) for n in range(config.num_perturbations)
        ]


class UnetTraining(Training):
    """Something in the U-Net; prompts are encoded once, and the text encoders go."""

    _text_is_frozen = True

    def draw(self, step: int, timestep: int, side: int, share: int = 0) -> Sample:
        """What the loss of a step is computed on, at one side in pixels."""
        return self._cache.draw(self._config.seed, step, timestep, side, share)

    @property
    def _weighting(self) -> dict[str, Any]:
        return {"min_snr": self._config.min_snr, "prior_weight": self._config.prior_weight}

    def _loss(self, step: int, timestep: int, side: int, share: int = 0) -> Loss:
        sample = self.draw(step, timestep, side, share)
        return partial(diffusion_loss, self._predict, self._scheduler, sample, **self._weighting)


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
        processes: Processes | None = None,
    ) -> None:
        self._folder = folder
        self._hollow: Hollow | None = None
        self._weights: str | None = None  # fingerprint, where it is not taken from the network
        self._together: Together | None = None
        super().__init__(config, model, pictures, memory, processes)
        if config.offload == "stream":
            self._together = Together(self._predict, self.adapter, model)

    def _build_cache(self, pictures: Sequence[Picture], dtype: Storage) -> Cache:
        config, model, memory = self._config, self._model, self._memory
        cache = super()._build_cache(pictures, dtype)
        if self._folder is not None and config.lean:
            if isinstance(dtype, Int8Storage) and not model.int8:
                folder = existing_folder(config.output)
                spool = Spool(folder, model.skeleton("unet", dtype=dtype))
                self._model = model = replace(model, spool=spool)
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
        )
        return network.unet, network

    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
        return inject_lora(unet, self._config.rank, self._config.seed)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.values(), lr=self._config.lr, fused=True)

    def draw(self, step: int, timestep: int, side: int, share: int = 0) -> Sample:
        if self._hollow is None:
            return super().draw(step, timestep, side, share)
        return self._hollow.draw(step, timestep, side)

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        config = self._config
        assert config.resolution is not None
        seeds = self._directions(step)
        options: dict[str, Any] = {"lr": config.zo_lr, "eps": self.eps, "noise": config.noise}
        options["share"] = partial(self._processes.losses, step)
        losses = self._losses(step, timestep)
        update = zeroth_order_step_together(self.adapter, losses, seeds, **options)
        return asdict(update) if update else skipped()

    def _losses(self, step: int, timestep: int) -> Losses:
        """What evaluates the forwards of a zeroth-order step."""
        assert self._config.resolution is not None
        if self._together is None:
            loss = self._loss(step, timestep, self._config.resolution)
            return one_after_the_other(self.adapter, loss)
        sample = self.draw(step, timestep, self._config.resolution)
        return partial(self._together.losses, self._scheduler, sample, self._weighting)

    def _slopes(self, step: int, timestep: int, seeds: Sequence[int], eps: float) -> Tensor:
        losses, noise = self._losses(step, timestep), self._config.noise
        plus, minus = losses_along(self.adapter, losses, seeds, eps=eps, noise=noise).unbind(1)
        return (plus - minus) / (2 * eps)

    def fingerprint(self) -> str:
        return super().fingerprint() if self._weights is None else self._weights


def make_training(
    config: TrainConfig,
    model: Model,
    pictures: Sequence[Picture],
    memory: MemoryRecorder,
    folder: Callable[[], Path] | None = None,
    processes: Processes | None = None,
) -> Training:
    """The training of what the settings name; ``folder`` as for :class:`LoraTraining`."""
    if config.train == "lora":
        return LoraTraining(config, model, pictures, memory, folder, processes)
    # Here: they build on this module.
    from .codes.training import CodesTraining
    from .token.training import TokenTraining

    if config.train == "token":
        return TokenTraining(config, model, pictures, memory)
    return CodesTraining(config, model, pictures, memory, simulated=folder is None)


def run_storage(config: TrainConfig) -> Storage:
    """How a run stores its networks.

    Those on int8 weights that a token is trained through compute on float32 activations. What a
    perturbation of one token does to the loss is hidden by the rounding of any others: on the
    bundled model at eps 1e-3 the slopes of float32 activations are off by 0.013 of themselves, of
    bfloat16 ones by 15 (``python -m bench.precision_gate tiny --train token``), in a full-size
    SD1.5 by 0.06 and 0.81.
    """
    storage = weight_storage(str(config.weights), str(config.device))
    if config.train == "token" and isinstance(storage, Int8Storage):
        return Int8Storage(torch.float32, unet_activations="float")
    return storage


def frozen_fingerprint(config: TrainConfig, model: Model) -> str:
    """What :meth:`Training.fingerprint` says, found without the adapter."""
    dtype, cpu = run_storage(config), torch.device("cpu")
    if config.lean:
        return network_fingerprint(model, dtype, cpu)
    if config.train != "token":
        return fingerprint(model.load("unet", dtype))
    from .token.text import load_encoder  # here: it is of one kind of training only

    encoders = (load_encoder(model, component, dtype, cpu) for component in model.kind.tokenizers)
    return fingerprint(model.load("unet", dtype), *encoders)


def skipped() -> dict[str, Any]:
    """What the history says about a zeroth-order step that was not finite."""
    return {"loss": None, "seeds": [], "coefficients": []}


def sides(config: TrainConfig) -> list[int]:
    """The sides of pictures, in pixels, that the schedule can ask for."""
    assert config.resolution is not None
    low = [config.low_resolution] if config.schedule != 1.0 else []
    high = [config.resolution] if config.schedule != 0.0 else []
    return sorted({*low, *high})
