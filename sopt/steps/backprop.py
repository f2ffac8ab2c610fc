"""The first-order step: one loss, its gradient, one update of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .loss import Loss


def backprop_step(
    adapter: Mapping[str, Tensor], loss: Loss, optimizer: torch.optim.Optimizer
) -> float | None:
    """Update ``adapter`` along the gradient of ``loss``.

    Gradients are dropped before the return and the graph goes with the loss, so nothing of this
    step is in memory during the next. For the least memory turn on the U-Net's gradient
    checkpointing; it has no effect on forwards without gradients.

    Args:
        adapter: The trained parameters, which ``optimizer`` holds; they require grad.
        loss: Evaluates the loss at the current weights.
        optimizer: Any of ``torch.optim``.

    Returns:
        The loss before the update; None if it or a gradient was not finite, in which case neither
        weights nor optimizer state have changed.
    """
    try:
        value = loss()
        if not torch.isfinite(value):
            return None
        value.backward()
        gradients = [p.grad for p in adapter.values() if p.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            return None
        optimizer.step()
        return value.item()
    finally:
        optimizer.zero_grad(set_to_none=True)
