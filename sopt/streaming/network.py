"""Runs a U-Net unit by unit: the whole of it, or what a cut leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .units import Kind, State, Unit, begin, compute, embed, list_units


class Weights(Protocol):
    """Where the weights of units are."""

    def visit(self, unit: int, following: int | None) -> None:
        """Have the weights of a unit in place, and begin to read those of the one visited next."""
        ...


class Resident:
    """All weights are in memory all the time."""

    def visit(self, unit: int, following: int | None) -> None:
        pass


@dataclass(frozen=True)
class Inputs:
    """What a U-Net's forward is called with."""

    sample: Tensor
    timestep: Any
    text: Tensor
    added: dict[str, Tensor] | None = None
    central: Tensor | None = None  # the activation behind the hole


class UnitNetwork:
    """A U-Net as the loss and the samplers call it, run unit by unit.

    Args:
        unet: A ``UNet2DConditionModel``; modules in the hole may be missing.
        units: All its units, of :func:`list_units`, those in the hole too.
        weights: Where they are.
        hole: Positions of the units that are left out; each call then needs ``central``.
        checkpointing: Keep no activations within units for the backward pass.

    Example:
        >>> from sopt.models import open_model
        >>> unet = open_model("tiny").load("unet")
        >>> x, text = torch.ones(1, 8, 16, 16), torch.ones(1, 77, 192)
        >>> network = UnitNetwork(unet)
        >>> torch.equal(network(x, 7, text)[0], unet(x, 7, text).sample)
        True
    """

    def __init__(
        self,
        unet: Any,
        units: Sequence[Unit] | None = None,
        weights: Weights | None = None,
        hole: range = range(0),
        checkpointing: bool = False,
    ) -> None:
        self.unet = unet
        self.units = list_units(unet) if units is None else list(units)
        self.weights: Weights = Resident() if weights is None else weights
        self.hole = hole
        self.checkpointing = checkpointing
        self.order = [i for i in range(len(self.units)) if i not in hole]

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def __call__(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
        central: Tensor | None = None,
    ) -> tuple[Tensor]:
        """As the U-Net's forward with ``return_dict=False``; ``central`` enters behind the hole."""
        assert not return_dict
        inputs = Inputs(sample, timestep, encoder_hidden_states, added_cond_kwargs, central)
        (state,) = self.run([inputs], self.order)
        return (state.hidden,)

    def predict_each(
        self,
        inputs: Sequence[Inputs],
        prepare: Callable[[int, Unit], None],
    ) -> list[Tensor]:
        """The prediction for each of several inputs, with one visit of each unit for all of them.

        Args:
            prepare: Called with the number of an input and a unit before the unit runs on it.
        """
        return [state.hidden for state in self.run(inputs, self.order, prepare)]

    def run(
        self,
        inputs: Sequence[Inputs],
        order: Sequence[int],
        prepare: Callable[[int, Unit], None] | None = None,
        kept: Iterable[int] | None = None,
    ) -> list[State]:
        """States after the units ``order``, each unit visited once.

        Args:
            kept: The units whose skips are wanted; all if not given. Of others the size is kept.
        """
        keep = set(self.order if kept is None else kept)
        states = [
            begin(self.unet, each.sample, each.timestep, each.text, each.added) for each in inputs
        ]
        for place, position in enumerate(order):
            unit = self.units[position]
            if self.hole and position == self.hole.stop:
                for state, each in zip(states, inputs, strict=True):
                    assert each.central is not None, "a hollowed network needs the activation"
                    state.hidden = each.central.to(state.hidden.dtype)
            following = order[place + 1] if place + 1 < len(order) else order[0]
            before = order[place - 1] if place else None
            for number, state in enumerate(states):
                if prepare is not None:
                    prepare(number, unit)
                self._advance(position, state, following, before)
                if unit.pushes:
                    hidden = state.hidden
                    state.skips.append(
                        hidden if position in keep else torch.empty_like(hidden, device="meta")
                    )
        return states

    def _advance(self, position: int, state: State, following: int, before: int | None) -> None:
        """Run one unit on one state, in place."""
        unit = self.units[position]
        self.weights.visit(position, following)
        if unit.kind is Kind.TIME:
            state.embedding = embed(self.unet, state)
            return
        given = [state.hidden]
        if unit.opens:
            state.residual = state.hidden
        if unit.pops:
            given.append(state.skips.pop())
        if unit.closes:
            assert state.residual is not None
            given.append(state.residual)
            state.residual = None
        size = state.skips[-1].shape[2:] if unit.kind is Kind.UP and state.resizes else None
        embedding, text = state.embedding, state.text
        if not (self.checkpointing and torch.is_grad_enabled()):
            del state.hidden  # nobody but compute holds it then
            state.hidden = compute(self.unet, unit, given, embedding, text, size)
            return
        next_visited = [following]

        def forward(*given: Tensor) -> Tensor:
            self.weights.visit(position, next_visited[0])
            return compute(self.unet, unit, list(given), embedding, text, size)

        result = checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False)
        if before is not None:
            next_visited[0] = before  # from now on it runs in the backward pass
        if result.requires_grad:
            # Before any of the unit's own nodes: some read their weights without having saved them.
            result.register_hook(lambda _: self.weights.visit(position, before))
        state.hidden = result
