"""``ZerothOrderMixin`` with what it asks of Hugging Face's Trainer; examples run the real one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from small_models import EPS, batch, bits, loss_of, model_of, same
from torch.nn.functional import mse_loss
from transformers import BatchEncoding

from sopt.errors import InputError
from sopt.integrations.transformers import ZerothOrderMixin
from sopt.optim import ZOSGD, Exchange


class Trainer(ZerothOrderMixin):
    """What the mixin asks of Trainer."""

    current_gradient_accumulation_steps = 1
    compute_loss_context_manager = nullcontext

    def __init__(self, model, exchange=None, processes=1, gpus=1, scaler=None):
        self.optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, exchange=exchange)
        self.accelerator = SimpleNamespace(num_processes=processes, scaler=scaler)
        self.args = SimpleNamespace(n_gpu=gpus)

    def _prepare_inputs(self, inputs):
        return inputs

    def compute_loss(self, model, inputs):
        """Trainer's own takes the labels out of the inputs to smooth them, or for a loss given to
        it; a model on several GPUs returns a loss of each."""
        labels = inputs.pop("labels")
        losses = mse_loss(model(inputs["x"]), labels, reduction="none")
        return losses.view(self.args.n_gpu, -1).mean(dim=1).squeeze()


def inputs():
    return dict(zip(("x", "labels"), batch(), strict=True))


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_micro_batch_is_a_step_of_its_loss(gpus):
    model, expected = model_of(), model_of()
    trainer, given = Trainer(model, gpus=gpus), inputs()
    trainer.training_step(model, given)
    assert set(given) == {"x", "labels"}
    trainer.optimizer.step()
    optimizer = ZOSGD(expected.named_parameters(), 0.01, EPS)

    def loss():
        x, y = batch()
        losses = mse_loss(expected(x), y, reduction="none")
        return losses.view(gpus, -1).mean(dim=1).mean()

    optimizer.step(loss)
    assert same(bits(model), bits(expected))


@pytest.mark.parametrize("given", [BatchEncoding(inputs()), tuple(inputs().values())])
def test_a_batch_keeps_its_type(given):
    """A compute_loss of the user's may read ``inputs.x``, or have a tuple."""

    class Own(Trainer):
        def compute_loss(self, model, inputs):
            x, y = inputs if isinstance(inputs, tuple) else (inputs.x, inputs.pop("labels"))
            return mse_loss(model(x), y)

    results = []
    for kind, batches in ((Own, given), (Trainer, inputs())):
        model = model_of()
        trainer = kind(model)
        trainer.training_step(model, batches)
        trainer.optimizer.step()
        results.append(bits(model))
    assert len(given) == 2  # the labels are there
    assert same(*results)


def test_a_trainer_of_several_processes_needs_an_exchange():
    """Trainer divides the data; what it would average, gradients, there is none of."""
    model = model_of()
    with pytest.raises(InputError, match=r"must have exchange=.* each of 2 processes"):
        Trainer(model, processes=2).training_step(model, inputs())
    exchange = Exchange(torch.distributed.HashStore(), 0, 2)
    # The two losses of a direction: the slope's curvature is below a per cent.
    loss = Trainer(model, exchange, processes=2).training_step(model, inputs())
    assert loss.item() == pytest.approx(loss_of(model).item(), rel=0.01)


def test_a_trainer_that_scales_gradients_is_refused():
    model = model_of()
    start, scaler = bits(model), torch.amp.GradScaler("cpu")
    with pytest.raises(InputError, match="fp16 must be False where there are no gradients"):
        Trainer(model, scaler=scaler).training_step(model, inputs())
    assert same(bits(model), start)
