"""The published models with random weights: their exact architecture without a download.

For measurements of time and memory, and for plans: ``"random:sd15"`` has every layer, size and
dtype of Stable Diffusion 1.5 and knows nothing. Configurations come from configs/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sopt_kernels import add_noise_

from ..errors import InputError, nearest
from .folder import open_folder
from .kinds import build_on_meta
from .model import Model, remove_submodules
from .random_tokenizer import build_tokenizer
from .weights import materialize

FAMILIES = ("sd15", "sd21-base", "sd21", "sdxl", "ssd1b")
CONFIGS = Path(__file__).parents[1] / "configs"
_EMBEDDING_STD = 0.02


def open_random(family: str) -> Model:
    """The model of a published family with weights drawn under seed 0.

    Raises:
        InputError: There is no such family.
    """
    if family not in FAMILIES:
        raise InputError(f"unknown random model {family!r}: {nearest(family, FAMILIES)}")
    model = open_folder(f"random:{family}", CONFIGS / family, tokenizers=False)
    return replace(model, weights=RandomWeights(family, model))


@dataclass(frozen=True)
class RandomWeights:
    r"""Components drawn from a seed.

    A weight matrix or convolution kernel is drawn from N(0, 1 / fan_in), an embedding from
    N(0, 0.02^2); norms start as the identity and biases at zero. Each tensor's noise stream is
    its name. Nothing is damped with depth, and nothing needs to be: every branch begins with a
    norm, so the variance of a residual stream grows by a bounded amount per branch.

    Source:
        The scale: LeCun et al., "Efficient BackProp", 1998.
    """

    family: str
    model: Model
    seed: int = 0

    def load(self, component: str, dtype: torch.dtype, dropped: Sequence[str]) -> nn.Module:
        network = build_on_meta(self.model.kind, component, self.model.configs[component])
        remove_submodules(network, dropped)
        parts = dict(network.named_modules())

        def draw(name: str, shaped: Tensor) -> Tensor:
            path, _, leaf = name.rpartition(".")
            if std := _std(parts[path], shaped):
                weight = torch.zeros(shaped.shape, dtype=dtype)
                return add_noise_(weight, self.seed, std, streams=f"{component}.{name}")
            return torch.full(shaped.shape, float(leaf == "weight"), dtype=dtype)  # of a norm: 1

        return materialize(network, draw)

    def tokenizer(self, component: str) -> Any:
        return build_tokenizer(self.family, component)


def _std(part: nn.Module, weight: Tensor) -> float:
    """Of a weight's distribution; 0 for norms and biases, which are not drawn."""
    if isinstance(part, nn.Embedding):
        return _EMBEDDING_STD
    return weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.0
