"""Textual inversion: the steps of a run that trains the embeddings of a new word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint, optimizer_state, restore_optimizer
from ..models.storage import Storage
from ..steps.forward_gradient import ForwardGradient, forward_gradient
from ..steps.loss import Loss, diffusion_loss, diffusion_losses
from ..training import Training, skipped
from .subspace import SubspaceGradient
from .text import TokenText
from .words import learn_word


class TokenTraining(Training):
    """The embeddings of a new word; U-Net and text encoders are frozen, and stay in memory.

    Backprop steps are Adam's without weight decay, which would draw an embedding to zero.

    A zeroth-order step is ZOODiP's: estimate, projection, Adam on it. The subspace is that of the
    tokens after each step of either kind.

    Source:
        Gal et al., "An image is worth one word", ICLR 2023; ZOODiP, arXiv 2503.14868.
    """

    _text_is_frozen = False

    def _insert(self, unet: Any, dtype: Storage) -> dict[str, Tensor]:
        config, device = self._config, self._memory.device
        assert config.token is not None
        words = learn_word(config, self._model)
        self._text = TokenText(self._model, config.token, config.num_vectors, words, dtype, device)
        return self._text.rows

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config, rows = self._config, list(self.adapter.values())
        self._zo_optimizer: torch.optim.Optimizer
        if config.zo_optimizer == "adam":
            self._zo_optimizer = torch.optim.Adam(rows, lr=config.zo_lr, eps=config.zo_adam_eps)
        else:
            self._zo_optimizer = torch.optim.SGD(rows, lr=config.zo_lr)
        self._subspaces: dict[str, SubspaceGradient] = {}
        if config.subspace and config.schedule != 0.0:
            self._subspaces = {
                name: SubspaceGradient(row, config.tau, config.nu)
                for name, row in self.adapter.items()
            }
        return torch.optim.Adam(rows, lr=config.lr)

    def _loss(self, step: int, timestep: int, side: int, share: int = 0) -> Loss:
        drawn = self._cache.draw_subject(self._config.seed, step, timestep, side, share)

        def loss() -> Tensor:
            sample = drawn.sample(self._text.encode(drawn.caption))
            return diffusion_loss(self._unet, self._scheduler, sample, min_snr=self._config.min_snr)

        return loss

    def backprop(self, step: int, timestep: int) -> dict[str, Any]:
        outcome = super().backprop(step, timestep)
        if outcome["loss"] is not None:
            self._record()
        return outcome

    def zeroth_order(self, step: int, timestep: int) -> dict[str, Any]:
        estimate = self._estimate(step, timestep, self._directions(step), self.eps)
        if estimate is None:
            return skipped()
        self._step_along(estimate.gradient)
        self._record()
        return {
            "loss": estimate.loss,
            "seeds": estimate.seeds,
            "coefficients": estimate.coefficients,
        }

    def _estimate(
        self, step: int, timestep: int, seeds: Sequence[int], eps: float
    ) -> ForwardGradient | None:
        config = self._config
        assert config.resolution is not None
        drawn = self._cache.draw_subject(config.seed, step, timestep, config.resolution)

        def losses(candidates: Mapping[str, Tensor]) -> Tensor:
            sample = drawn.sample(self._text.encode(drawn.caption, candidates))
            return diffusion_losses(self._unet, self._scheduler, sample, min_snr=config.min_snr)

        return forward_gradient(
            self.adapter,
            losses,
            seeds,
            eps=eps,
            estimator=config.estimator,
            noise=config.noise,
            batch=config.perturbation_batch,
        )

    def _slopes(self, step: int, timestep: int, seeds: Sequence[int], eps: float) -> Tensor:
        estimate = self._estimate(step, timestep, seeds, eps)
        if estimate is None:
            return torch.full((len(seeds),), torch.nan)
        return torch.tensor(estimate.coefficients) * len(seeds)

    def _step_along(self, gradient: Mapping[str, Tensor]) -> None:
        config = self._config
        scale = 1.0
        if config.scale_by_dimension:
            dimensions = sum(row.numel() for row in self.adapter.values())
            dimensions -= sum(subspace.num_removed for subspace in self._subspaces.values())
            n = config.num_perturbations
            scale = math.sqrt((dimensions + n - 1) / n)
        for name, row in self.adapter.items():
            along = gradient[name]
            if name in self._subspaces:
                along = self._subspaces[name].project(along)
            row.grad = along / scale
        self._zo_optimizer.step()
        self._zo_optimizer.zero_grad(set_to_none=True)

    def _record(self) -> None:
        for name, subspace in self._subspaces.items():
            subspace.record(self.adapter[name])

    def fingerprint(self) -> str:
        return fingerprint(self._unet, *self._text.encoders.values())

    def state(self) -> dict[str, Tensor]:
        kept = {
            f"zo_optimizer/{name}/{key}": tensor
            for name, entry in optimizer_state(self.adapter, self._zo_optimizer).items()
            for key, tensor in entry.items()
        }
        for name, subspace in self._subspaces.items():
            kept |= {f"subspace/{name}/{key}": x for key, x in subspace.state().items()}
        return super().state() | kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        optimizer: dict[str, dict[str, Tensor]] = {}
        subspaces: dict[str, dict[str, Tensor]] = {}
        super().load_state(state)
        for path, tensor in state.items():
            match path.split("/"):
                case ["zo_optimizer", name, key]:
                    optimizer.setdefault(name, {})[key] = tensor
                case ["subspace", name, key]:
                    subspaces.setdefault(name, {})[key] = tensor
        restore_optimizer(self.adapter, self._zo_optimizer, optimizer)
        for name, subspace in self._subspaces.items():
            subspace.load(subspaces[name])
