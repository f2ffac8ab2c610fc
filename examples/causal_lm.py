"""Fine-tune a causal language model by forward passes: all weights, a LoRA, or int8 codes.

The step is the same for the three; they differ in what is handed to the optimizer.
"""

from __future__ import annotations

import argparse

from language import pretrained_model, text
from peft import LoraConfig, get_peft_model
from torch import nn

import sopt
from sopt.optim import ZOSGD


def full(model: nn.Module) -> ZOSGD:
    return ZOSGD(model.named_parameters(), lr=2e-3, eps=1e-3, restore="inplace")


def lora(model: nn.Module) -> ZOSGD:
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return ZOSGD(trained, lr=2e-2, eps=1e-2)


def int8(model: nn.Module) -> ZOSGD:
    sopt.quantize(model.model)  # all linear layers but the head, which is the embedding
    buffers = dict(model.named_buffers())
    codes = [(name, x) for name, x in buffers.items() if name.endswith(".codes")]
    scales = {name: buffers[name.removesuffix("codes") + "scales"] for name, _ in codes}
    return ZOSGD(codes, lr=2e-3, eps=1e-2, scales=scales, noise="rademacher")


WAYS = {"full": full, "lora": lora, "int8": int8}


def main(train: str = "full", steps: int = 300) -> list[float]:
    model = pretrained_model()
    optimizer = WAYS[train](model)
    model.eval()
    losses = []
    for step in range(steps):
        tokens = text(16, 0.95, seed=10_000 + step)  # once a step, outside of the closure
        losses.append(optimizer.step(lambda t=tokens: model(input_ids=t, labels=t).loss).item())
    tail = max(1, steps // 10)
    first, last = (sum(x) / tail for x in (losses[:tail], losses[-tail:]))
    print(f"{train}: loss {first:.3f} -> {last:.3f}, means of {tail} steps")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=WAYS, default="full")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.train, arguments.steps)
