"""What the field does today: MeZO's step in plain PyTorch, pass for pass.

Each parameter is perturbed by a full-size ``z`` that is drawn again from torch's generator every
time: 4 operations and 8 passes over the parameter's bytes to perturb, 6 and 13 to update, so 18
launches and 37 passes a step (+eps, -2 eps, +eps, update), and a new tensor each time.

Source: Malladi et al., "Fine-tuning language models with just forward passes", NeurIPS 2023,
algorithm 1; the operations and their order are those of its published trainer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LAUNCHES = 18  # per parameter and step


def normal_like(p: Tensor) -> Tensor:
    return torch.normal(mean=0.0, std=1.0, size=p.size(), device=p.device, dtype=p.dtype)


def perturb(parameters: Sequence[Tensor], seed: int, scale: float, eps: float) -> None:
    """``p = p + scale * z * eps`` for each parameter."""
    torch.manual_seed(seed)
    for p in parameters:
        p.data = p.data + scale * normal_like(p) * eps


def update(
    parameters: Sequence[Tensor], seed: int, g: float, lr: float, weight_decay: float
) -> None:
    """``p = p - lr (g z + weight_decay p)`` for each parameter."""
    torch.manual_seed(seed)
    for p in parameters:
        p.data = p.data - lr * (g * normal_like(p) + weight_decay * p.data)


def step(parameters: Sequence[Tensor], seed: int, eps: float, g: float, lr: float) -> None:
    """All that a step does beside its two forwards."""
    perturb(parameters, seed, 1, eps)
    perturb(parameters, seed, -2, eps)
    perturb(parameters, seed, 1, eps)
    update(parameters, seed, g, lr, weight_decay=0.0)
