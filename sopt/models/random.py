"""The published models with random weights: their exact architecture without a download.

For measurements of time and memory, and for plans: ``"random:sd15"`` has every layer, size and
dtype of Stable Diffusion 1.5 and knows nothing. Configurations come from configs/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sopt_kernels import add_noise_

from ..errors import InputError, nearest
from ..files import save_tensors
from ..quantization import quantizable_layers
from .folder import CONFIGS, open_folder, weights_name
from .kinds import build_on_meta
from .model import Model, Source, remove_submodules
from .quantized import float_shapes, quantizing, rows_of
from .random_tokenizer import build_tokenizer
from .weights import materialize

FAMILIES = ("sd15", "sd21-base", "sd21", "sdxl", "ssd1b")
_EMBEDDING_STD = 0.02
_BRANCH_GAIN = 0.5  # of the last layer of a residual branch; what it reaches: draw_weights
_BRANCH_ENDS = ("conv2", "to_out.0", "net.2", "proj_out", "out_proj", "fc2")


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
    """Components drawn from a seed."""

    family: str
    model: Model
    seed: int = 0

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None = None
    ) -> nn.Module:
        network = build_on_meta(self.model.kind, component, self.model.configs[component])
        remove_submodules(network, dropped)
        return draw_weights(network, component, dtype, self.seed, int8)

    def write(self, component: str, folder: Path) -> None:
        if component.startswith("tokenizer"):
            self.tokenizer(component).save_pretrained(folder)
            return
        network = self.model.skeleton(component)
        source = self.source(component, network)
        weights = {name: weight.half() for name, weight in network.named_parameters()}

        def read(name: str) -> Tensor:
            source.read(name, value := torch.empty(weights[name].shape, dtype=torch.float16))
            return value

        save_tensors(folder / weights_name(component), weights, {"format": "pt"}, read)

    def source(self, component: str, network: nn.Module) -> Source:
        parts, shapes = dict(network.named_modules()), float_shapes(network)
        return quantizing(_RandomSource(component, parts, shapes, self.seed), network)

    def tokenizer(self, component: str) -> Any:
        return build_tokenizer(self.family, component)


@dataclass(frozen=True)
class _RandomSource:
    """Draws a weight each time that it is read; one that is read by rows, once."""

    component: str
    parts: dict[str, nn.Module]
    shapes: dict[str, tuple[int, ...]]
    seed: int
    by_rows: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        if row is not None:
            if (key := (name, out.dtype)) not in self.by_rows:
                self.by_rows.clear()
                self.by_rows[key] = self._draw(
                    name, torch.empty(self.shapes[name], dtype=out.dtype)
                )
            out.copy_(rows_of(self.by_rows[key], out, row))
        elif out.is_contiguous():
            self._draw(name, out)
        else:
            out.copy_(self._draw(name, torch.empty(out.shape, dtype=out.dtype)))

    def _draw(self, name: str, out: Tensor) -> Tensor:
        return _draw(self.component, self.parts, self.seed, name, out)


def draw_weights(
    network: nn.Module, component: str, dtype: torch.dtype, seed: int, int8: str | None = None
) -> nn.Module:
    r"""Give a network on the meta device weights drawn under a seed, in place.

    A weight matrix or convolution kernel is drawn from N(0, 1 / fan_in), at the end of a residual
    branch from N(0, 1 / (4 fan_in)), an embedding from N(0, 0.02^2); norms start as the identity
    and biases at zero. Each tensor's noise stream is ``stream_id(f"{component}.{name}")``. The
    weights of a 16-bit dtype are those of float32 rounded to nearest.

    So activations stay of order 1 at every depth, and the output depends on every input. Outputs
    of all modules of all families at full size (bfloat16, latents of 64 x 64) have standard
    deviations of 0.1 to 4.7, but 0.02 after an embedding, and none exceeds 23 in absolute value;
    the U-Nets' own have 0.6. Without the damping the largest in SDXL are 32 and 136.

    Args:
        component: Its name, which begins the names of the noise streams.
        dtype: Of the weights: float32, bfloat16 or float16.
        seed: In ``[0, 2**64)``.
        int8: Put the layers on int8 weights, with these activations.

    Returns:
        ``network``, in eval mode and frozen. No more than its weights was ever in memory.

    Source:
        The scale: LeCun et al., "Efficient BackProp", 1998.
    """
    parts = dict(network.named_modules())
    exact = {} if int8 is None else quantizable_layers(network)

    def draw(name: str, shaped: Tensor) -> Tensor:
        kept = torch.float32 if name.rpartition(".")[0] in exact else dtype
        weight = torch.empty(shaped.shape, dtype=kept)
        return _draw(component, parts, seed, name, weight)

    return materialize(network, draw, int8)


def _draw(component: str, parts: dict[str, nn.Module], seed: int, name: str, out: Tensor) -> Tensor:
    """Fill ``out`` with the weight ``name``."""
    path, _, leaf = name.rpartition(".")
    if std := _std(parts[path], path, out):
        return add_noise_(out.zero_(), seed, std, streams=f"{component}.{name}")
    return out.fill_(float(leaf == "weight"))  # of a norm: 1


def _std(part: nn.Module, path: str, weight: Tensor) -> float:
    """Of a weight's distribution; 0 for those of norms and for biases, which are not drawn."""
    if weight.dim() == 1:
        return 0.0
    if isinstance(part, nn.Embedding):
        return _EMBEDDING_STD
    gain = _BRANCH_GAIN if path.endswith(_BRANCH_ENDS) else 1.0
    return gain * weight[0].numel() ** -0.5
