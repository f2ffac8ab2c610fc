"""The forwards of a zeroth-order step side by side: one visit of each unit serves many of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..models import Model
from ..steps.loss import Sample, losses_of_predictions
from .network import Inputs, UnitNetwork
from .shapes import skip_elements
from .units import Unit

# Bytes of skips that may be in memory together. SD1.5 at 512 pixels in bfloat16 has 13 MiB of them
# a forward, so the eight forwards of four perturbations read the weights once; SDXL at 1024 has 49.
_SKIPS = 104 * 2**20


class Together:
    """Evaluates losses for :func:`~sopt.steps.zeroth_order.zeroth_order_step_together`."""

    def __init__(self, network: UnitNetwork, adapter: Mapping[str, Tensor], model: Model) -> None:
        self._network, self._model = network, model
        self._groups: dict[int, int] = {}  # by side
        self._names = {
            unit.name: [
                name
                for name in adapter
                if name.removeprefix("unet.").startswith(tuple(f"{m}." for m in unit.modules))
            ]
            for unit in network.units
        }

    def losses(
        self,
        scheduler: Any,
        sample: Sample,
        weighting: Mapping[str, Any],
        count: int,
        write: Callable[[int, Sequence[str]], None],
    ) -> list[Tensor]:
        """The losses of ``count`` forwards on one sample; ``write`` puts their weights in place."""
        group = self._group(sample.latents.shape[-1] * self._model.vae_factor)
        losses: list[Tensor] = []
        for first in range(0, count, group):
            size = min(group, count - first)

            def predict(
                sample: Tensor,
                timestep: Tensor,
                encoder_hidden_states: Tensor,
                added_cond_kwargs: Any,
                central: Tensor | None = None,
                first: int = first,
                size: int = size,
            ) -> list[Tensor]:
                inputs = Inputs(sample, timestep, encoder_hidden_states, added_cond_kwargs, central)

                def prepare(number: int, unit: Unit) -> None:
                    if names := self._names[unit.name]:
                        write(first + number, names)

                return self._network.predict_each([inputs] * size, prepare)

            losses += losses_of_predictions(
                predict, self._network.dtype, scheduler, sample, **weighting
            )
        return losses

    def _group(self, side: int) -> int:
        """How many forwards on pictures of ``side`` pixels run side by side."""
        if side not in self._groups:
            skips = skip_elements(self._model, side) * self._network.dtype.itemsize
            self._groups[side] = max(2, _SKIPS // skips)
        return self._groups[side]
