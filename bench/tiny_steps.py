"""A run on the bundled model step by step, and its loss on drawings that no step sees.

What the experiments on the bundled model share: they look at the adapter between steps, or take
steps that :func:`sopt.train` does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sopt.config import TrainConfig
from sopt.data import load_pictures, to_pixels
from sopt.evaluation.tiny.methods import METHODS
from sopt.evaluation.tiny.scores import Task
from sopt.export import save_diffusers_lora
from sopt.memory import MemoryRecorder
from sopt.models import LORA_TARGETS, Model, open_model
from sopt.resolution import resolve
from sopt.schedules import make_schedule
from sopt.steps.draws import Draw, draw_step
from sopt.tiny.drawings import draw
from sopt.tiny.scenes import place
from sopt.training import make_training
from sopt_kernels import noise, stream_id

CPU = torch.device("cpu")
DRAWINGS, TIMESTEPS = 8, tuple(range(31, 1000, 62))  # 16 of them
BATCH = 32
ZerothOrder = Callable[["Steps", int, int], Mapping[str, Any]]


class Steps:
    """The steps of a run.

    Args:
        settings: Of :func:`sopt.train`, but pictures, prompt and output, on top of a method's.
    """

    def __init__(self, task: Task, seed: int, method: str, **settings: Any) -> None:
        self.prompt = f"a sks {task.subject.kind}"
        own = METHODS[method].training(settings.pop("steps", 400), settings)
        pictures = [draw(scene) for scene in task.photos]
        config = TrainConfig.create(
            images=pictures, prompt=self.prompt, output="unused", seed=seed, **own
        )
        model = open_model("tiny")
        self.config = resolve(config, model)
        loaded = load_pictures(pictures, self.prompt)
        with MemoryRecorder(CPU, found=False) as memory:
            self.training = make_training(self.config, model, loaded, memory)
        self.adapter = self.training.adapter
        self.unet = self.training._unet
        self._schedule = make_schedule(self.config.schedule, self.config.steps, 1000)
        self._held_out = HeldOut(model, task, self.training._cache.prompts[self.prompt].tokens)

    def draw(self, step: int) -> Draw:
        return draw_step(self.config.seed, step, self._schedule, self.config.timesteps)

    def run(
        self,
        steps: Sequence[int],
        zeroth_order: ZerothOrder | None = None,
        always: bool | None = None,
        after: Callable[[Draw], None] | None = None,
    ) -> None:
        """Take these steps.

        Args:
            zeroth_order: What takes zeroth-order steps, in place of the method.
            always: Whether all of them are zeroth-order, or none; by the schedule if not given.
            after: Called after each.
        """
        for step in steps:
            drawn = self.draw(step)
            if drawn.zeroth_order if always is None else always:
                take = Steps.usual if zeroth_order is None else zeroth_order
                take(self, step, drawn.timestep)
            else:
                self.training.backprop(step, drawn.timestep)
            if after is not None:
                after(drawn)

    def usual(self, step: int, timestep: int) -> Mapping[str, Any]:
        """The method's own zeroth-order step."""
        return self.training.zeroth_order(step, timestep)

    def set_rate(self, zo_lr: float) -> None:
        """Have zeroth-order steps take this learning rate from now on."""
        self.training._config = replace(self.training._config, zo_lr=zo_lr)

    def loss(self) -> dict[str, float]:
        """On drawings of the subject that no step sees, below and above timestep 500, and in all;
        infinite if a weight is not finite."""
        return self._held_out.loss(self.unet)

    def copy(self) -> dict[str, Tensor]:
        """The adapter as it is now."""
        return {name: weight.detach().clone() for name, weight in self.adapter.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Have these weights in the adapter."""
        for name, weight in weights.items():
            self.adapter[name].copy_(weight)

    def save(self, file: Path) -> Path:
        """Write the adapter as a file for pictures."""
        rank = self.config.rank
        save_diffusers_lora(file, self.copy(), rank, rank, LORA_TARGETS, None)
        return file


class HeldOut:
    """Fixed samples: new drawings of the subject elsewhere, at timesteps that are spread evenly."""

    def __init__(self, model: Model, task: Task, prompt: Tensor) -> None:
        rng = np.random.default_rng([17, task.photos[0].variation])
        pictures = [draw(place(task.subject, rng)) for _ in range(DRAWINGS)]
        vae = model.load("vae", torch.float32, CPU)
        with torch.no_grad():
            pixels = torch.cat([to_pixels(each, model.native_resolution) for each in pictures])
            latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        self._latents = latents.repeat_interleave(len(TIMESTEPS), dim=0)
        self._timesteps = torch.tensor(TIMESTEPS).repeat(DRAWINGS)
        self._noise = noise(self._latents.shape, 0, stream_id("held out"))
        self._prompt, self._scheduler = prompt, model.noise_scheduler()

    @torch.no_grad()
    def loss(self, unet: Any) -> dict[str, float]:
        errors = []
        for rows in torch.arange(len(self._latents)).split(BATCH):
            t, z = self._timesteps[rows], self._noise[rows]
            noisy = self._scheduler.add_noise(self._latents[rows], z, t)
            text = self._prompt.expand(len(rows), -1, -1)
            predicted = unet(noisy, t, encoder_hidden_states=text).sample
            errors.append((predicted - z).square().mean(dim=(1, 2, 3)))
        found, low = torch.cat(errors), self._timesteps < 500
        means = {"low": found[low], "high": found[~low], "all": found}
        return {name: float(x.mean().nan_to_num(torch.inf)) for name, x in means.items()}
