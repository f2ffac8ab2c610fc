"""Plain PyTorch: a small network learns a function by forward passes alone.

The loop is that of any optimizer with a closure. A seed log is written on the way, and the weights
are rebuilt from it at the end.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

import sopt
from sopt.optim import ZOSGD, noise_floor, precision_report


def main(steps: int = 2000) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
    model.eval()  # no dropout: two losses at the same weights must agree
    first = copy.deepcopy(model)
    inputs = torch.randn(256, 8)
    targets = inputs.sin().sum(dim=1, keepdim=True)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(model(inputs), targets)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.zolog"
        optimizer = ZOSGD(model.named_parameters(), lr=2e-3, eps=1e-3, log=log)
        print(*precision_report(optimizer), sep="\n")
        print(f"error of a slope by what is random in the loss: {noise_floor(optimizer, loss):g}")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for _ in range(steps):
            losses.append(optimizer.step(loss).item())
            scheduler.step()
        sopt.replay(first, log)
        size = log.stat().st_size
    same = all(map(torch.equal, first.parameters(), model.parameters()))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; log {size} bytes; replay is equal: {same}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    main(parser.parse_args().steps)
