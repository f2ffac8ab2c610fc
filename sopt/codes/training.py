"""The steps of a run that trains the int8 codes of a U-Net, or their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..errors import InputError
from ..models.storage import Storage
from ..optim.restore import Codes
from ..steps.seeds import Tag, seed64
from ..steps.zeroth_order import zeroth_order_step, zeroth_order_step_on_codes
from ..training import UnetTraining, skipped
from .tensors import check_scales, int8_tensors, is_chosen, layer_of, make_room, room_of


class CodesTraining(UnetTraining):
    """The int8 weights themselves, ``scale * code`` of every linear layer and convolution.

    With ``train="codes"`` the codes move, in place and by whole numbers: nothing is trained beside
    them and no copy of them is made. Each output channel that is trained is quantized with a larger
    scale than in other runs, so that its largest code is ``127 - headroom``. With
    ``train="scales"`` they stay, and the float32 scale of each output channel is trained. Norms and
    biases stay in both.

    Source:
        Scales alone, with slopes that are clipped: QZO, arXiv 2505.13430, for language models. What
        it publishes is the method; the settings here are ours.

    Args:
        simulated: Nothing has values, so there is no fingerprint.
    """

    def __init__(self, *arguments: Any, simulated: bool) -> None:
        self._simulated = simulated
        super().__init__(*arguments)

    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
        config = self._config
        self._base = "" if self._simulated else fingerprint(unet)  # before anything moves
        codes, scales = int8_tensors(unet, "codes"), int8_tensors(unet, "scales")
        self._int8 = codes | scales
        codes, scales = (self._chosen(tensors) for tensors in (codes, scales))
        if config.train == "scales":
            for scale in scales.values():
                scale.requires_grad_()
            return scales
        check_scales(self._model.name, scales)
        make_room(unet, self._model, room_of(config))
        beside = dict(zip(codes, scales.values(), strict=True))
        self._codes = Codes(0, codes, config.noise, "nearest", beside, config.headroom)
        return codes

    def _chosen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of the layers that are trained."""
        layers = self._config.layers
        chosen = {name: x for name, x in tensors.items() if is_chosen(layer_of(name), layers)}
        if not chosen:
            raise InputError(
                f"layers={layers!r} names no linear layer or convolution of the U-Net of "
                f"{self._model.name!r}"
            )
        return chosen

    def trained(self) -> dict[str, Tensor]:
        """Codes and scales, whichever of them moved: no second set of codes is made."""
        return {name: x.detach().cpu() for name, x in self._int8.items()}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.adapter.values(), lr=self._config.lr)  # has no steps to do

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        config = self._config
        assert config.resolution is not None
        loss = self._loss(step, timestep, config.resolution)
        seeds = self._directions(step)
        size: dict[str, Any] = {"lr": config.zo_lr, "eps": self.eps, "clip": config.zo_clip}
        if config.train == "scales":
            update = zeroth_order_step(self.adapter, loss, seeds, noise=config.noise, **size)
            return asdict(update) if update else skipped()
        # As ZOSGD has them: 0 is the update's.
        own, *roundings = (
            seed64(config.seed, step, n, Tag.ROUNDING) for n in range(len(seeds) + 1)
        )
        before = self._codes.clamped.clone()
        update = zeroth_order_step_on_codes(self._codes, loss, seeds, roundings, own, **size)
        clamped = int(self._codes.clamped - before)
        return (asdict(update) if update else skipped()) | {"clamped": clamped}

    def _slopes(self, step: int, timestep: int, seeds: Sequence[int], eps: float) -> Tensor:
        raise AssertionError("the settings do not go with eps='auto'")

    def fingerprint(self) -> str:
        return self._base
