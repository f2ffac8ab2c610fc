"""``restore="blocks"``: what leaves a module, what else it computes with, and Ctrl-C within it."""

from __future__ import annotations

import copy
import sys
from contextlib import suppress

import pytest
import torch
from small_models import EPS, batch, bits, loss_of, model_of, same
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize

from sopt.errors import InputError
from sopt.optim import ZOSGD, blocks
from sopt_kernels import write_noisy_


class Returning(nn.Module):
    """Returns its weight, or a view of it, at any depth of containers."""

    def __init__(self, what):
        super().__init__()
        self.weight, self.what = nn.Parameter(torch.randn(4, 8)), what

    def forward(self):
        return self.what(self.weight)


class Reading(nn.Module):
    """Reads what another module returned after a third one ran."""

    def __init__(self, what, of):
        super().__init__()
        self.returning, self.of = Returning(what), of
        self.linear = nn.Linear(8, 1)

    def forward(self, x):
        returned = self.returning()
        return self.linear(x) + (x[:4] * self.of(returned)).sum(dim=1).mean()


RETURNED = {
    "itself": (lambda w: w, lambda w: w),
    "view": (lambda w: w[:2], lambda w: w.repeat(2, 1)),
    "transposed": (lambda w: (1, {"w": w.t()}), lambda r: r[1]["w"].t()),
    "other": (lambda w: (w * 2).to_sparse(), lambda w: w.to_dense()),
}


@pytest.mark.parametrize("what, of", RETURNED.values(), ids=RETURNED)
def test_what_a_module_returns_of_its_weights_stays_perturbed(what, of):
    first, results = Reading(what, of), []
    for restore in ("copy", "blocks"):
        model = copy.deepcopy(first)
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, 2, restore=restore, module=module)
        losses = [optimizer.step(lambda m=model: loss_of(m)).item() for _ in range(3)]
        results.append((losses, bits(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert not torch.equal(model.returning.weight, first.returning.weight)


@pytest.mark.parametrize("before", [True, False])
def test_parametrized_weights_are_perturbed(before):
    """Also those that are after the optimizer was made: the same parameters, one module deeper."""
    results = []
    for restore in ("copy", "blocks"):
        model = model_of()
        named = list(model.named_parameters())
        if before:
            parametrize.register_parametrization(model[0], "weight", nn.Identity())
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(named, 0.01, EPS, restore=restore, module=module)
        if not before:
            parametrize.register_parametrization(model[0], "weight", nn.Identity())
        losses = [optimizer.step(lambda m=model: loss_of(m)).item() for _ in range(3)]
        results.append((losses, bits(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_outputs_without_one_memory_pass():
    """A nested tensor has none to ask for."""
    model = nn.Sequential(nn.Linear(8, 4))
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore="blocks", module=model)
    rows = torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)], layout=torch.jagged)
    optimizer.step(lambda: model(rows).values().square().mean())
    assert optimizer.steps == 1


def replica_of(module):
    """As nn.DataParallel makes it for a device: weights are tensors, hooks are the module's."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        replica._modules[name] = replica_of(child)
    for name, p in module.named_parameters(recurse=False):
        setattr(replica, name, p.detach().clone())
    return replica


def with_another_weight(module):
    module[2].weight = nn.Parameter(module[2].weight.detach().clone())
    return module


@pytest.mark.parametrize("others", [replica_of, with_another_weight])
def test_a_module_that_computes_with_other_weights_is_refused(others):
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore="blocks", module=model)
    start = [p.detach().clone() for p in optimizer.tensors().values()]
    with pytest.raises(InputError, match=r"compute with the trained.*'[02]' has others"):
        optimizer.step(lambda: loss_of_any(others(model)))
    assert optimizer.steps == 0
    assert same(list(optimizer.tensors().values()), start)


def loss_of_any(model):
    """Also of a module that has no parameters of its own."""
    x, y = batch()
    return mse_loss(model(x), y)


def test_an_error_before_a_block_does_not_end_the_perturbation_of_the_one_around(monkeypatch):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.inner = nn.Parameter(torch.ones(8)), nn.Linear(8, 1)

        def forward(self, x):
            try:
                self.inner(x)
            except torch.OutOfMemoryError:  # as that of its perturbation, below
                return (x * self.weight).sum(dim=1, keepdim=True)

    def full(out, *arguments, **options):
        if len(out) == 2:
            raise torch.OutOfMemoryError
        return write_noisy_(out, *arguments, **options)

    monkeypatch.setattr(blocks, "write_noisy_", full)
    model, seen = Around(), []
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore="blocks", module=model)
    optimizer.step(lambda: seen.append(loss_of(model)) or seen[-1])
    around = nn.ParameterDict({"weight": torch.ones(8)})
    x, y = batch()
    expected = ZOSGD(around.items(), 0.01, EPS)
    expected.step(lambda: seen.append(mse_loss((x * around["weight"]).sum(1, True), y)) or seen[-1])
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


def test_a_block_may_be_called_by_one_that_it_is_not_a_part_of():
    class Calling(nn.Linear):
        def forward(self, x):
            return super().forward(self.called[0](x))

    losses = []
    for restore in ("copy", "blocks"):
        torch.manual_seed(0)
        model = nn.ModuleList([Calling(8, 1), nn.Linear(8, 8)])
        model[0].called = [model[1]]  # a list of Python's: no submodule
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore=restore, module=module)
        losses.append([optimizer.step(lambda m=model[0]: loss_of(m)).item() for _ in range(3)])
    assert losses[0] == losses[1]


def traced(position, act):
    """Ctrl-C at an instruction of the hooks, counted from 1."""
    passed, codes = [], {getattr(blocks.BlockWeights, f).__code__ for f in ("_perturb", "_restore")}

    def instruction(frame, event, _):
        passed.append(event)
        if passed.count("opcode") == position:
            raise KeyboardInterrupt
        return instruction

    def call(frame, *_):
        frame.f_trace_opcodes = frame.f_code in codes
        return instruction if frame.f_trace_opcodes else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        act()
    finally:
        sys.settrace(before)


def test_ctrl_c_at_any_instruction_of_the_hooks():
    model, (x, y) = nn.Linear(8, 1), batch()
    optimizer = ZOSGD(model.named_parameters(), 0.0, EPS, restore="blocks", module=model)
    start, plain, position = bits(model), mse_loss(model(x), y), 0
    while optimizer.steps == 0:
        position += 1
        with suppress(KeyboardInterrupt):
            traced(position, lambda: optimizer.step(lambda: mse_loss(model(x), y)))
        assert same(bits(model), start)
        assert mse_loss(model(x), y) == plain  # and the hooks know that no block goes on
    assert position > 100
