"""Models from a pipeline of diffusers that is in memory already; it is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import save_tensors
from ..quantization import Int8Layer, quantizable_layers, quantize
from .folder import weights_name
from .kinds import NOUNS, check_class, kind_of
from .model import Model, Source, remove_submodules
from .quantized import quantizing, rows_of


def open_pipeline(pipeline: Any) -> Model:
    """The model that a loaded pipeline holds."""
    name = f"a loaded {type(pipeline).__name__}"
    kind = kind_of(name, type(pipeline).__name__)
    components = pipeline.components
    for component in kind.components:
        if (found := components.get(component)) is None:
            raise InputError(f"model: {name} has no {NOUNS[component]}")
        check_class(name, kind, component, type(found).__name__)
    if any(path.endswith("lora_A") for path, _ in components["unet"].named_modules()):
        raise InputError(f"model: {name} has a LoRA loaded; unload_lora_weights() or fuse it first")
    for component in kind.networks:
        if any(weight.is_meta for weight in components[component].parameters()):
            raise InputError(f"model: {name} keeps weights offloaded; load it without offloading")
        check_one_device(name, component, components[component])
    configs = {component: _config(components[component]) for component in kind.networks}
    configs["scheduler"] = dict(components["scheduler"].config)
    return Model(
        name=name,
        kind=kind,
        configs=configs,
        scheduler_class=type(components["scheduler"]).__name__,
        weights=LoadedWeights(name, components),
        int8=_is_int8(components["unet"]),
    )


def held_tensors(model: Any) -> list[Tensor]:
    """What a loaded pipeline keeps in memory; of a model's name nothing."""
    networks = [x for x in getattr(model, "components", {}).values() if isinstance(x, nn.Module)]
    return [tensor for x in networks for tensor in (*x.parameters(), *x.buffers())]


@dataclass(frozen=True)
class LoadedWeights:
    """The components of a pipeline."""

    name: str
    components: dict[str, Any]

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None = None
    ) -> nn.Module:
        original = self.components[component]
        layers: list[nn.Module] = []
        if int8 is not None:
            layers += quantizable_layers(original).values()
        layers += [layer for layer in original.modules() if isinstance(layer, Int8Layer)]
        exact = {id(x) for layer in layers for x in (*layer.parameters(), *layer.buffers())}
        module = _sharing_copy(original, dtype, exact).eval()
        remove_submodules(module, dropped)
        check_finite(self.name, component, module)
        if int8 is not None:
            quantize(module, int8)
        return module

    def source(self, component: str, network: nn.Module) -> Source:
        if _is_int8(self.components[component]):
            raise InputError(
                f"model: {self.name} is on int8 weights already, which hollow, offload='stream', "
                "train='codes' and 'scales' cannot use: load the float model"
            )
        found = dict(self.components[component].named_parameters())
        return quantizing(_LoadedSource(found), network)

    def tokenizer(self, component: str) -> Any:
        return self.components[component]

    def write(self, component: str, folder: Path) -> None:
        part = self.components[component]
        if component.startswith("tokenizer"):
            part.save_pretrained(folder)
        else:
            weights = dict(part.named_parameters())
            save_tensors(folder / weights_name(component), weights, {"format": "pt"})


@dataclass(frozen=True)
class _LoadedSource:
    weights: dict[str, Tensor]

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        weight = self.weights[name].detach()
        out.copy_(weight if row is None else rows_of(weight, out, row))


def check_finite(name: str, component: str, network: nn.Module) -> None:
    """Raise InputError if a weight is NaN or infinite."""
    for path, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"model {name!r}: the weights must be finite, "
                f"but {path} of its {component} has NaN or infinite values"
            )


def check_one_device(name: str, component: str, network: nn.Module) -> None:
    """Raise InputError if the weights of a network are on several devices."""
    devices = {str(x.device) for x in (*network.parameters(), *network.buffers())}
    if len(devices) > 1:
        raise InputError(
            f"model: {name} has its {NOUNS[component]} on several devices, "
            f"{' and '.join(sorted(devices))}: put it on one"
        )


def _is_int8(network: Any) -> bool:
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return any(isinstance(module, Int8Layer) for module in modules)


def _config(network: Any) -> dict[str, Any]:
    config = network.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _sharing_copy(module: nn.Module, dtype: torch.dtype, exact: Container[int]) -> nn.Module:
    """A copy of the module tree whose tensors share storage with the original's where they can;
    the tensors ``exact``, which are int8 layers' or will be quantized, stay in their dtype.

    What happens to the copy (an adapter, frozen weights, gradient checkpointing, another device)
    leaves the original alone, and weights of the wanted dtype are not in memory twice.
    """
    memo: dict[int, Any] = {}
    for weight in module.parameters():
        kept = weight.dtype if id(weight) in exact else dtype
        memo[id(weight)] = nn.Parameter(weight.detach().to(kept), requires_grad=False)
    for buffer in module.buffers():
        shared = buffer.detach()
        kept = shared.dtype if id(buffer) in exact or not shared.is_floating_point() else dtype
        memo[id(buffer)] = shared.to(kept)
    return copy.deepcopy(module, memo)
