"""A regression small enough for many steps of an optimizer, and its weights' bits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import mse_loss

from sopt.optim import ZOSGD
from sopt_kernels import noise

EPS = 2.0**-7  # a power of two: division by 2 eps does not round


def model_of(dtype=torch.float32, seed=0):
    """Two linear layers with a tanh between them; 8 -> 16 -> 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def batch(step=0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 8, generator=generator, dtype=torch.float32, device="cpu")
    return x, x.sin().sum(dim=1, keepdim=True)


def loss_of(model, step=0):
    x, y = batch(step)
    dtype = next(model.parameters()).dtype
    return mse_loss(model(x.to(dtype)).float(), y)


def bits(model):
    return [p.detach().clone().view(torch.uint8) for p in model.parameters()]


def same(a, b):
    return all(map(torch.equal, a, b))


class Training:
    """Floats under ``restore``, and int8 codes, in one optimizer."""

    def __init__(self, restore="copy", **options):
        self.model = model_of()
        for p in self.model.parameters():  # +-EPS is then added, and taken off, exactly
            p.data.mul_(2**12).round_().div_(2**12)
        self.codes = (noise((16, 8), 1, "codes") * 30).to(torch.int8)
        self.scales = torch.full((16,), 0.02)
        if restore == "blocks":
            options["module"] = self.model
        self.optimizer = ZOSGD(
            [*self.model.named_parameters(), ("codes", self.codes)], 0.01, EPS, 2,
            restore=restore, scales={"codes": self.scales}, **options,
        )  # fmt: skip

    def loss(self, step):
        weight = self.codes * self.scales[:, None]
        return loss_of(self.model, step) + (weight - noise((16, 8), 2, "centre")).square().mean()

    def step(self, step):
        return self.optimizer.step(lambda: self.loss(step)).item()

    def accumulate(self, step):
        self.optimizer.accumulate(lambda: self.loss(step))

    def state(self):
        return [*bits(self.model), self.codes.clone()]
