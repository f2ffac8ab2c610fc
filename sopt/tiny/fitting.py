"""One resumable training loop for everything that pretraining fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ..files import save_tensors

SAVE_EVERY = 100  # steps
COOLDOWN = 0.3  # share of the steps in which the rate falls linearly to zero
WARMUP = 50  # steps

LossOfStep = Callable[[np.random.Generator], Tensor]


def fit(
    name: str,
    module: nn.Module,
    loss_of_step: LossOfStep,
    *,
    steps: int,
    lr: float,
    work: Path,
    seed: int = 0,
    average: float = 0.0,
) -> None:
    """Minimise ``loss_of_step(rng)`` over the parameters of ``module`` with AdamW.

    Args:
        name: Names the checkpoint ``<work>/<name>.safetensors`` and the progress bar.
        loss_of_step: Draws a batch with the generator it is given, a function of ``(seed, name,
            step)`` alone, so that a stopped run goes on as if it had not stopped.
        average: Decay of the running mean of the weights that is left in ``module`` at the end;
            0 leaves the last weights.
    """
    path = work / f"{name}.safetensors"
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    mean = {k: p.detach().clone() for k, p in parameters.items()} if average else {}
    done = _load(path, parameters, optimizer, mean) if path.exists() else 0
    recent: list[float] = []
    with tqdm(total=steps, initial=done, desc=name, mininterval=5) as bar:
        for step in range(done, steps):
            rng = np.random.default_rng([seed, step, *name.encode()])
            for group in optimizer.param_groups:
                group["lr"] = lr * min(
                    1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps)
                )
            loss = loss_of_step(rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            decay = min(average, (1 + step) / (10 + step))
            for k, value in mean.items():
                value.lerp_(parameters[k].detach(), 1 - decay)
            recent = [*recent[-99:], loss.item()]
            bar.update()
            bar.set_postfix(loss=f"{np.mean(recent):.4f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                _save(path, parameters, optimizer, mean, step + 1)
    with torch.no_grad():
        for k, value in mean.items():
            parameters[k].copy_(value)


def _save(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mean: dict[str, Tensor],
    step: int,
) -> None:
    tensors = {f"weight/{k}": p.detach() for k, p in parameters.items()}
    tensors |= {f"mean/{k}": v for k, v in mean.items()}
    for k, p in parameters.items():
        state = optimizer.state[p]
        tensors |= {f"first/{k}": state["exp_avg"], f"second/{k}": state["exp_avg_sq"]}
    save_tensors(path, tensors, {"step": str(step)})


def _load(
    path: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mean: dict[str, Tensor],
) -> int:
    with safe_open(path, "pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for k, p in parameters.items():
            p.copy_(file.get_tensor(f"weight/{k}"))
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": file.get_tensor(f"first/{k}"),
                "exp_avg_sq": file.get_tensor(f"second/{k}"),
            }
        for k in mean:
            mean[k] = file.get_tensor(f"mean/{k}")
    return step
