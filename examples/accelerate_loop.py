"""accelerate: the usual loop; ``accumulate`` takes the place of ``backward``."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from language import pretrained_model, text
from torch.utils.data import DataLoader

from sopt.optim import ZOSGD, Exchange


def main(steps: int = 300) -> list[float]:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = pretrained_model()
    # Under torchrun each process has batches of its own: losses are what makes them one training.
    exchange = Exchange.from_environment(share="data") if accelerator.num_processes > 1 else None
    zeroth_order = ZOSGD(model.named_parameters(), lr=2e-3, eps=1e-3, exchange=exchange)
    scheduler = torch.optim.lr_scheduler.LinearLR(zeroth_order, 1.0, 0.1, steps)
    data = DataLoader(list(text(16 * steps, 0.95, seed=1)), batch_size=8)
    model, optimizer, data, scheduler = accelerator.prepare(model, zeroth_order, data, scheduler)
    model.eval()
    losses = []
    for tokens in data:
        with accelerator.accumulate(model):
            loss = zeroth_order.accumulate(lambda t=tokens: model(input_ids=t, labels=t).loss)
            optimizer.step()  # once in two micro-batches; accelerate knows when
            scheduler.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} after {zeroth_order.steps} steps")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
