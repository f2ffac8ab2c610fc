"""Steps that are broken off: weights, log and waiting losses are as before, they can be redone."""

from __future__ import annotations

import pytest
import torch
from small_models import EPS, bits, loss_of, model_of, same

from sopt.optim import ZOSGD, Exchange
from sopt_kernels import noise


def interrupted(*_):
    raise KeyboardInterrupt


class Training:
    """Floats under ``restore``, and int8 codes, in one optimizer."""

    def __init__(self, restore="copy", **options):
        self.model = model_of()
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


@pytest.mark.parametrize("restore", ["copy", "blocks"])
@pytest.mark.parametrize("owner, name", [
    (torch.Tensor, "cpu"),  # the wait for a GPU, where its errors and Ctrl-C show
    (torch, "isfinite"),
    (Exchange, "share"),  # the wait for other processes
])  # fmt: skip
def test_nothing_has_changed_if_a_step_fails_after_its_last_loss(owner, name, restore, monkeypatch):
    alone = [Exchange(torch.distributed.HashStore(), 0, 1) for _ in range(2)]
    broken, whole = (Training(restore, exchange=exchange) for exchange in alone)
    for training in (broken, whole):
        training.accumulate(1)
    start, loss = broken.state(), broken.loss(0).item()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            broken.step(2)
    assert same(broken.state(), start)
    assert broken.loss(0).item() == loss
    assert broken.step(2) == whole.step(2)
    assert same(broken.state(), whole.state())
    assert not any(map(torch.equal, broken.state(), start))


def test_nothing_has_changed_if_a_micro_batch_fails_after_its_last_loss(monkeypatch):
    broken, whole = Training(), Training()
    start = broken.state()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", interrupted)
        with pytest.raises(KeyboardInterrupt):
            broken.accumulate(1)
    assert same(broken.state(), start)
    assert broken.step(2) == whole.step(2)
    assert same(broken.state(), whole.state())
