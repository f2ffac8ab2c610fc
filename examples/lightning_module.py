"""Lightning: manual optimization, whose optimizer takes the closure."""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning
import torch
from language import pretrained_model, text
from torch import Tensor
from torch.utils.data import DataLoader

from sopt.optim import ZOSGD


class LanguageModule(lightning.LightningModule):
    """A causal language model trained by forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = pretrained_model()
        self.losses: list[float] = []

    def configure_optimizers(self) -> ZOSGD:
        return ZOSGD(self.named_parameters(), lr=2e-3, eps=1e-3)

    def training_step(self, tokens: Tensor, index: int) -> None:
        self.model.eval()
        loss = self.optimizers().step(lambda: self.model(input_ids=tokens, labels=tokens).loss)
        self.losses.append(loss.item())


def main(steps: int = 300) -> list[float]:
    warnings.filterwarnings("ignore", module="lightning")  # few workers, no validation
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = LanguageModule()
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(list(text(16 * steps, 0.95, seed=1)), batch_size=16))
    print(
        f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f} after {trainer.global_step} steps"
    )
    return module.losses


if __name__ == "__main__":
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
