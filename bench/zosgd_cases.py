"""A list of parameters as blocks whose forward costs nothing, and ZOSGD on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.parameter_lists import Shape, language_model
from sopt.optim import ZOSGD

EPS, LR = 1e-3, 1e-4
RESTORES = ("inplace", "copy", "blocks")


def language_model_100m() -> list[Shape]:
    """A decoder of 100.5 M parameters: 12 layers of width 768, 18,000 tokens."""
    return language_model(width=768, layers=12, vocabulary=18_000)


class Block(nn.Module):
    """Owns a weight and does nothing."""

    def __init__(self, shape: Shape, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return x


def step_of(
    shapes: Sequence[Shape], restore: str, noise: str = "gaussian", device: str = "cpu"
) -> Callable[[], object]:
    """A step of ZOSGD on float32 zeros, all but its forwards: the closure has no arithmetic."""
    model = nn.Sequential(*(Block(shape, device) for shape in shapes))
    module = model if restore == "blocks" else None
    optimizer = ZOSGD(
        model.named_parameters(), LR, EPS, noise=noise, restore=restore, module=module
    )
    losses = [torch.tensor(x, device=device) for x in (0.5, 0.25)]

    def closure() -> Tensor:
        losses.reverse()
        return model(losses[0])

    return lambda: optimizer.step(closure)
