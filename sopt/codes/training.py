"""The steps of a run that trains the int8 codes of a U-Net, or their scales."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..models.storage import Storage
from ..optim.restore import Codes
from ..steps.seeds import Tag, seed64
from ..steps.zeroth_order import zeroth_order_step, zeroth_order_step_on_codes
from ..training import UnetTraining, skipped
from .tensors import check_scales, int8_tensors

logger = logging.getLogger(__name__)


class CodesTraining(UnetTraining):
    """The int8 weights themselves, ``scale * code`` of every linear layer and convolution.

    With ``train="codes"`` the codes move, in place and by whole numbers: nothing is trained beside
    them and no copy of them is made. With ``train="scales"`` they stay, and the float32 scale of
    each output channel is trained. Norms and biases stay in both.

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
        if config.train == "scales":
            for scale in scales.values():
                scale.requires_grad_()
            return scales
        check_scales(self._model.name, scales)
        beside = dict(zip(codes, scales.values(), strict=True))
        self._codes = Codes(0, codes, config.noise, "nearest", beside, config.headroom)
        logger.info(
            "%d of %d codes were beyond %d, and are there now: the head-room of the perturbations",
            int(self._codes.clamped),
            sum(map(Tensor.numel, codes.values())),
            127 - config.headroom,
        )
        return codes

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
