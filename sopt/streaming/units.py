"""The units of a U-Net in the order in which its forward runs them, and what each of them does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn


class Kind(Enum):
    """What a unit does with the hidden state."""

    TIME = "embedding of the timestep, and of SDXL's pooled prompt and sizes"
    FIRST = "first convolution"
    RESNET = "ResNet; in the decoder on hidden state and skip side by side"
    LAYER = "transformer layer; the first with the projection in, the last with the one out"
    DOWN = "downsampler"
    UP = "upsampler"
    LAST = "last norm and convolution"


@dataclass(frozen=True)
class Unit:
    """A part of a U-Net whose weights are in memory together or not at all."""

    name: str  # path of its module in the U-Net
    kind: Kind
    modules: tuple[str, ...]  # paths of all modules with its weights
    pops: bool = False  # takes the newest skip off the stack
    pushes: bool = False  # its output is a skip
    opens: bool = False  # the first layer of its transformer
    closes: bool = False  # the last

    @property
    def transformer(self) -> str:
        """Path of the transformer that a layer is part of."""
        return self.name.rpartition(".transformer_blocks.")[0]


@dataclass
class State:
    """What goes from unit to unit."""

    hidden: Tensor
    timestep: Any
    text: Tensor
    added: dict[str, Tensor] | None  # of SDXL, by diffusers' names
    resizes: bool  # the levels do not divide the sides: upsamplers are told their size
    skips: list[Tensor]  # on the meta device where only the size is wanted
    embedding: Tensor | None = None
    residual: Tensor | None = None  # input of the transformer in progress


def list_units(unet: Any) -> list[Unit]:
    """All units of a ``UNet2DConditionModel`` of Stable Diffusion's kind; it may be on meta.

    Example:
        >>> from sopt.models import open_model
        >>> from sopt.models.kinds import build_on_meta
        >>> model = open_model("tiny")
        >>> units = list_units(build_on_meta(model.kind, "unet", model.configs["unet"]))
        >>> [unit.name for unit in units[:4]]
        ['time_embedding', 'conv_in', 'down_blocks.0.resnets.0', \
'down_blocks.0.attentions.0.transformer_blocks.0']
    """
    units = [_time(unet), Unit("conv_in", Kind.FIRST, ("conv_in",), pushes=True)]
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            units += _stage(block, f"down_blocks.{i}", j, pushes=True)
        units += _samplers(block, f"down_blocks.{i}", "downsamplers")
    if unet.mid_block is not None:
        block = unet.mid_block
        units += _resnet("mid_block", 0)
        for j in range(1, len(block.resnets)):
            units += _transformer(block, "mid_block", j - 1)
            units += _resnet("mid_block", j)
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            units += _stage(block, f"up_blocks.{i}", j, pops=True)
        units += _samplers(block, f"up_blocks.{i}", "upsamplers")
    ends = tuple(name for name in ("conv_norm_out", "conv_out") if _child(unet, name) is not None)
    return [*units, Unit("conv_out", Kind.LAST, ends)]


def own_tensors(
    network: nn.Module, paths: Iterable[str]
) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Parameters and buffers of some modules: name in the network, owner, name there, tensor."""
    for path in paths:
        for inner, owner in network.get_submodule(path).named_modules(prefix=path):
            for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
                if tensor is not None:
                    yield f"{inner}.{leaf}", owner, leaf, tensor


def begin(
    unet: Any, sample: Tensor, timestep: Any, text: Tensor, added: dict[str, Tensor] | None
) -> State:
    """The state before the first unit, as the U-Net's forward begins."""
    factor = 2**unet.num_upsamplers
    resizes = any(side % factor for side in sample.shape[-2:])
    return State(sample, timestep, text, added, resizes, [])


def embed(unet: Any, state: State) -> Tensor:
    """The embedding of timestep and sizes that all ResNets take: (batch, width)."""
    time = unet.get_time_embed(sample=state.hidden, timestep=state.timestep)
    embedding = unet.time_embedding(time)
    more = unet.get_aug_embed(
        emb=embedding, encoder_hidden_states=state.text, added_cond_kwargs=state.added
    )
    return embedding if more is None else embedding + more


def compute(
    unet: Any,
    unit: Unit,
    given: list[Tensor],
    embedding: Tensor | None,
    text: Tensor,
    size: torch.Size | None,
) -> Tensor:
    """The hidden state after any unit but that of the timestep.

    Args:
        given: The hidden state before it; and the skip where the unit pops one, or the
            transformer's input where it closes one. Emptied: what nobody else holds is freed as
            soon as it was used.
        size: Of an upsampler's output, where the sides do not say it.
    """
    module = unet.get_submodule(unit.name)
    match unit.kind:
        case Kind.RESNET:
            hidden = torch.cat(given, dim=1) if unit.pops else given[0]
            given.clear()
            return module(hidden, embedding)
        case Kind.LAYER:
            hidden = given.pop(0)
            whole = unet.get_submodule(unit.transformer)
            if unit.opens:
                hidden = _to_tokens(whole, hidden)
            hidden = module(hidden, encoder_hidden_states=text)
            if unit.closes:
                residual = given.pop()
                hidden = _from_tokens(whole, hidden, residual.shape) + residual
            return hidden
        case Kind.UP:
            return module(given.pop(), size)
        case Kind.LAST:
            hidden = given.pop()
            if unet.conv_norm_out is not None:
                hidden = unet.conv_act(unet.conv_norm_out(hidden))
            return module(hidden)
        case _:
            return module(given.pop())


def _to_tokens(transformer: Any, x: Tensor) -> Tensor:
    """(batch, channels, height, width) to (batch, positions, width of the layers)."""
    x = transformer.norm(x)
    if transformer.use_linear_projection:
        return transformer.proj_in(_channels_last(x))
    return _channels_last(transformer.proj_in(x))


def _from_tokens(transformer: Any, tokens: Tensor, shape: torch.Size) -> Tensor:
    if transformer.use_linear_projection:
        tokens = transformer.proj_out(tokens)
    batch, _, height, width = shape
    x = tokens.reshape(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()
    return x if transformer.use_linear_projection else transformer.proj_out(x)


def _channels_last(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)


def _time(unet: Any) -> Unit:
    names = ("time_embedding", "add_embedding")
    return Unit("time_embedding", Kind.TIME, tuple(n for n in names if _child(unet, n) is not None))


def _stage(block: Any, path: str, j: int, pops: bool = False, pushes: bool = False) -> list[Unit]:
    """A ResNet and the transformer behind it, if there is one."""
    layers = _transformer(block, path, j, pushes)
    return [*_resnet(path, j, pops, pushes and not layers), *layers]


def _resnet(path: str, j: int, pops: bool = False, pushes: bool = False) -> list[Unit]:
    name = f"{path}.resnets.{j}"
    return [Unit(name, Kind.RESNET, (name,), pops=pops, pushes=pushes)]


def _transformer(block: Any, path: str, j: int, pushes: bool = False) -> list[Unit]:
    attentions = _child(block, "attentions")
    if attentions is None or attentions[j] is None:
        return []
    name, last = f"{path}.attentions.{j}", len(attentions[j].transformer_blocks) - 1
    units = []
    for k in range(last + 1):
        modules = [f"{name}.transformer_blocks.{k}"]
        modules += [f"{name}.norm", f"{name}.proj_in"] if k == 0 else []
        modules += [f"{name}.proj_out"] if k == last else []
        units.append(
            Unit(
                modules[0],
                Kind.LAYER,
                tuple(modules),
                pushes=pushes and k == last,
                opens=k == 0,
                closes=k == last,
            )
        )
    return units


def _samplers(block: Any, path: str, name: str) -> list[Unit]:
    down = name == "downsamplers"
    kind = Kind.DOWN if down else Kind.UP
    paths = [f"{path}.{name}.{k}" for k in range(len(_child(block, name) or ()))]
    return [Unit(each, kind, (each,), pushes=down) for each in paths]


def _child(module: Any, name: str) -> Any:
    return getattr(module, name, None)
