"""Hugging Face's ``Trainer`` with a zeroth-order optimizer: a mixin, no fork."""

from __future__ import annotations

import argparse
import tempfile

from language import pretrained_model, text
from transformers import Trainer, TrainingArguments

from sopt.integrations.transformers import ZerothOrderMixin
from sopt.optim import ZOSGD


class ZerothOrderTrainer(ZerothOrderMixin, Trainer):
    """``Trainer``, by forward passes alone."""


def main(steps: int = 300) -> list[float]:
    model = pretrained_model()
    sentences = text(16 * steps, 0.95, seed=1)
    data = [{"input_ids": x, "labels": x} for x in sentences]
    optimizer = ZOSGD(model.named_parameters(), lr=2e-3, eps=1e-3, restore="blocks", module=model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=0,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = ZerothOrderTrainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, None)
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]} -> {losses[-1]} after {optimizer.steps} steps")
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
