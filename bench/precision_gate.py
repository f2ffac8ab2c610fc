"""Do the slopes of zeroth-order steps stand out of the rounding of 16-bit and int8 forwards?

    python -m bench.precision_gate tiny [--train token] [--json FILE]
    python -m bench.precision_gate sd15 [--resolution 512] [--trained 0.01] [--estimate]

The directional derivatives of the loss with respect to a LoRA adapter, (L(+eps) - L(-eps)) / 2 eps,
along 16 directions at 4 timesteps, computed with the weights in each precision, beside those of
float32 at the same eps: their cosine, and noise over signal, |g - g32| / |g32|. The adapter, the
latents, the noise and the encoded prompt are the same for all. Beside it the estimate that
``eps="auto"`` goes by, which knows no float32 and doubles the forwards.

``--train token``: the same with respect to the embedding of a word, by one-sided differences, as
ZOODiP takes them.

``tiny``: of the bundled model's trained weights at eps 1e-3, 3e-3 and 1e-2, with an adapter whose
B is at its zero start and after 200 backprop steps. Full size: of random weights at the default
eps, with B at zero and of normal numbers of each deviation in ``--trained``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sopt.config import TrainConfig
from sopt.data import load_pictures
from sopt.files import write_json
from sopt.memory import MemoryRecorder
from sopt.models import open_model
from sopt.steps.loss import diffusion_loss
from sopt.steps.noise_floor import ALLOWED, NUM_TIMESTEPS, evenly, measure_noise
from sopt.steps.zeroth_order import losses_along, one_after_the_other
from sopt.tiny.drawings import draw
from sopt.tiny.scenes import BACKGROUNDS, place, random_subject
from sopt.token.training import TokenTraining
from sopt.training import LoraTraining

WEIGHTS = ("float32", "bfloat16", "int8")
DIRECTIONS = 16
TIMESTEPS = evenly(range(1000), NUM_TIMESTEPS)
STEPS = 200
EPS = {"tiny": (1e-3, 3e-3, 1e-2), "full": (1e-2,), "token": (1e-3,)}


class Gate:
    """Slopes of one model in each precision."""

    def __init__(self, model: str, resolution: int | None) -> None:
        self._model = open_model(model)
        subject = random_subject(rng := np.random.default_rng(0))
        images = [draw(place(subject, rng, background)) for background in BACKGROUNDS[:4]]
        self._config = TrainConfig.create(
            images=images, prompt="a sks dog", output="-", model=model, device="cpu",
            resolution=resolution or self._model.native_resolution, weights="float32",
            checkpointing=True,
        )  # fmt: skip
        self._pictures = load_pictures(self._config.images, self._config.prompt)

    @property
    def eps(self) -> float:
        """The default size."""
        return float(self._config.eps)

    @property
    def resolution(self) -> int:
        assert self._config.resolution is not None
        return self._config.resolution

    def open(self, weights: str) -> Any:
        config = replace(self._config, weights=weights)
        with MemoryRecorder(torch.device("cpu")) as memory:
            return LoraTraining(config, self._model, self._pictures, memory)

    def prepare(self, steps: int, deviations: list[float]) -> None:
        """Samples and adapters, from the model in float32."""
        training = self.open("float32")
        side = self.resolution
        self.samples = [training.draw(i, t, side) for i, t in enumerate(TIMESTEPS)]
        self.adapters = {"B at zero": copied(training.trained())}
        generator = torch.Generator().manual_seed(0)
        for deviation in deviations:
            self.adapters[f"B of {deviation:g}"] = {
                name: torch.randn(x.shape, generator=generator) * deviation
                if ".lora_B." in name or ".lora_up." in name
                else x.clone()
                for name, x in training.trained().items()
            }
        for step in tqdm(range(1, steps + 1), desc="backprop steps", disable=not steps):
            training.backprop(step, step * 37 % 1000)
        if steps:
            self.adapters[f"after {steps} steps"] = copied(training.trained())

    def slopes(self, training: Any, adapter: dict[str, Tensor], eps: float) -> Tensor:
        """(timesteps * directions,) of float32."""
        for name, parameter in training.adapter.items():
            parameter.data.copy_(adapter[name])
        found = []
        for number, sample in enumerate(self.samples):
            loss = partial(diffusion_loss, training._predict, training._scheduler, sample)
            losses = one_after_the_other(training.adapter, loss)
            seeds = range(number * DIRECTIONS, (number + 1) * DIRECTIONS)
            plus, minus = losses_along(training.adapter, losses, seeds, eps=eps).unbind(1)
            found.append((plus - minus) / (2 * eps))
        return torch.cat(found)


class TokenGate(Gate):
    """With respect to a word's embedding, which starts as the class."""

    def __init__(self, model: str, resolution: int | None) -> None:
        super().__init__(model, resolution)
        images, prompt = self._config.images, f"a {TOKEN}"
        self._config = TrainConfig.create(
            images=images, prompt=prompt, output="-", model=model, device="cpu",
            method="textual-inversion", token=TOKEN, initializer=INITIALIZER,
            resolution=self.resolution, weights="float32", max_timestep=999,
        )  # fmt: skip
        self._pictures = load_pictures(images, prompt)

    def open(self, weights: str) -> Any:
        config = replace(self._config, weights=weights, checkpointing=False)
        with MemoryRecorder(torch.device("cpu")) as memory:
            return TokenTraining(config, self._model, self._pictures, memory)

    def prepare(self, steps: int, deviations: list[float]) -> None:
        self.adapters = {"the initializer": copied(self.open("float32").trained())}

    def slopes(self, training: Any, adapter: dict[str, Tensor], eps: float) -> Tensor:
        found = []
        for number, t in enumerate(TIMESTEPS):
            seeds = range(number * DIRECTIONS, (number + 1) * DIRECTIONS)
            found.append(training._slopes(number, t, seeds, eps))
        return torch.cat(found)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in tensors.items()}


TOKEN, INITIALIZER = "<subject>", "dog"
GATES = {"lora": Gate, "token": TokenGate}


def run(gate: Gate, eps: list[float], estimate: bool) -> list[dict[str, Any]]:
    """A row for each adapter, precision and eps."""
    rows: list[dict[str, Any]] = []
    exact: dict[tuple[str, float], Tensor] = {}
    total = len(WEIGHTS) * len(gate.adapters) * len(eps)
    with tqdm(total=total, desc="slopes") as progress:
        for weights in WEIGHTS:
            training = gate.open(weights)
            for name, adapter in gate.adapters.items():
                for size in eps:
                    of = partial(gate.slopes, training, adapter)
                    found = of(size)
                    reference = exact.setdefault((name, size), found)
                    cosine = torch.cosine_similarity(found, reference, dim=0).item()
                    error = (found - reference).norm() / reference.norm()
                    rows.append(
                        {
                            "adapter": name,
                            "weights": weights,
                            "eps": size,
                            "cosine": cosine,
                            "noise over signal": error.item(),
                        }
                    )
                    if estimate:
                        rows[-1]["estimated"] = measure_noise(of, size).ratio
                    progress.update()
            del training
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [x if isinstance(x, str) else f"{x:.3g}" for x in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f'eps="auto" takes the first whose estimate is <= {ALLOWED}'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="tiny, or a family: sd15, sd21, ssd1b, sdxl")
    parser.add_argument("--train", choices=GATES, default="lora")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--trained", type=float, nargs="*", default=[])
    parser.add_argument("--estimate", action="store_true", help="always done for tiny")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tiny = arguments.model == "tiny"
    model = "tiny" if tiny else f"random:{arguments.model}"
    gate = GATES[arguments.train](model, arguments.resolution)
    gate.prepare(STEPS if tiny else 0, arguments.trained)
    sizes = "tiny" if tiny else "full" if arguments.train == "lora" else "token"
    rows = run(gate, list(EPS[sizes]), tiny or arguments.estimate)
    print(report(rows))
    if arguments.json is not None:
        side = gate.resolution
        write_json(arguments.json, {"model": model, "resolution": side, "rows": rows})


if __name__ == "__main__":
    main()
