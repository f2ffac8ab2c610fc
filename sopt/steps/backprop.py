"""The first-order step: one loss, its gradient, one update of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .loss import Loss


def backprop_step(
    adapter: Mapping[str, Tensor],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    average_: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
) -> float | None:
    """Update ``adapter`` along the gradient of ``loss``.

    Gradients are dropped before the return and the graph goes with the loss, so nothing of this
    step is in memory during the next. For the least memory turn on the U-Net's gradient
    checkpointing; it has no effect on forwards without gradients.

    Args:
        adapter: The trained parameters, which ``optimizer`` holds; they require grad.
        loss: Evaluates the loss at the current weights.
        optimizer: Any of ``torch.optim``.
        average_: Replaces loss and gradients by their means over processes, which all step alike.

    Returns:
        The loss before the update; None if it or a gradient was not finite, in which case neither
        weights nor optimizer state have changed.
    """
    try:
        value = loss()
        value.backward()
        value = value.detach()
        found = [value, *(p.grad for p in adapter.values() if p.grad is not None)]
        average_(found)
        if not get_total_norm(found, torch.inf).isfinite():
            return None
        optimizer.step()
        return value.item()
    finally:
        optimizer.zero_grad(set_to_none=True)
