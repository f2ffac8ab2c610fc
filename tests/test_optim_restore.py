"""How weights come back: each ``restore=``, tied weights, int8 codes, failures, and the memory."""

from __future__ import annotations

import copy
import io
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from small_models import EPS, batch, bits, loss_of, model_of, same
from torch import nn
from torch.nn.functional import linear, mse_loss

from sopt.errors import InputError
from sopt.optim import ZOSGD
from sopt_kernels import noise

FLOAT32 = 2.0**-24  # relative rounding error of one operation


def test_in_place_stays_within_its_drift_and_copy_has_none():
    """+eps, -2 eps and the way back with the update: 3 roundings a step where copy has one."""
    results = {}
    for restore in ("copy", "inplace"):
        model = model_of()
        optimizer = ZOSGD(model.named_parameters(), 0.0, EPS, restore=restore)
        for step in range(20):
            optimizer.step(lambda m=model, s=step: loss_of(m, s))
        results[restore] = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = torch.cat([p.detach().flatten() for p in model_of().parameters()])
    assert torch.equal(results["copy"], start)
    drift = (results["inplace"] - start).abs().max()
    assert 0 < drift <= 20 * 3 * FLOAT32 * (start.abs().max() + 6 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_give_the_bits_of_copy(dtype):
    results = []
    for restore in ("copy", "blocks"):
        model = model_of(dtype)
        optimizer = ZOSGD(
            model.named_parameters(), 0.01, EPS, 2, restore=restore,
            module=model if restore == "blocks" else None,
        )  # fmt: skip
        losses = [optimizer.step(lambda m=model, s=s: loss_of(m, s)).item() for s in range(10)]
        results.append((losses, bits(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@pytest.mark.parametrize("restore", ["copy", "inplace", "blocks"])
def test_tied_weights_are_trained_once(restore):
    class Tied(nn.Module):
        def __init__(self, tie):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(noise((4, 4), 1, "w"))
            if tie == "object":
                self.second.weight = self.first.weight
            elif tie == "storage":
                self.second.weight = nn.Parameter(self.first.weight.detach())

        def forward(self, x):
            return self.second(self.first(x).tanh())

    x = noise((3, 4), 2, "x")
    results = []
    for tie in ("object", "storage"):
        model = Tied(tie)
        assert len(list(model.named_parameters())) == (1 if tie == "object" else 2)
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(model.named_parameters(), 0.125, EPS, restore=restore, module=module)
        assert list(optimizer.tensors()) == ["first.weight"]
        loss = [optimizer.step(lambda m=model: m(x).square().sum()).item() for _ in range(3)]
        assert torch.equal(model.first.weight, model.second.weight)
        results.append((loss, model.first.weight.detach().clone()))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


class Idle(nn.Module):
    """Owns a weight and does nothing: what is allocated is the optimizer's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 64))

    def forward(self, x):
        return x


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("restore, tensors", [("inplace", 0), ("copy", 8), ("blocks", 1)])
def test_memory_of_a_step_is_none_in_place_one_copy_or_the_largest_block(restore, tensors, around):
    """A weight of the module around the blocks adds its own bytes, in a cache line."""
    from sopt.memory import LiveStorage

    model, loss = nn.Sequential(*(Idle() for _ in range(8))), torch.tensor(1.0)
    if around:
        model.token = nn.Parameter(torch.ones(1))
    module = model if restore == "blocks" else None
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore=restore, module=module)
    with LiveStorage() as live:
        before = live.bytes
        optimizer.step(lambda: model(loss))
        extra = live.peak - before
    scalars = 256 + 64 * around  # losses, slopes, seeds
    assert tensors * 64 * 64 * 4 <= extra <= tensors * 64 * 64 * 4 + scalars


def test_int8_codes_come_back_and_move_along_what_they_did():
    codes = torch.randint(-119, 120, (6, 32), dtype=torch.int8)
    scales = torch.full((6,), 0.01)
    start, x, seen = codes.clone(), torch.randn(16, 32), []
    y = linear(x, codes * scales[:, None]) + 0.5 * torch.randn(16, 6)

    def closure():
        seen.append(codes.clone())
        return mse_loss(linear(x, codes * scales[:, None]), y)

    optimizer = ZOSGD([("w", codes)], 0.0, 0.02, scales={"w": scales}, noise="rademacher")
    optimizer.step(closure)
    assert torch.equal(codes, start)  # every byte
    up, down = (c.int() - start.int() for c in seen)
    assert torch.equal(up, -down)
    assert (up != 0).any()
    optimizer.param_groups[0]["lr"] = 0.02
    losses = [optimizer.step(closure).item() for _ in range(400)]
    assert losses[-1] < losses[0] / 2
    assert codes.abs().max() <= 119


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    for restore in ("copy", "blocks"):
        model = model_of()
        start = bits(model)
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(
            model.named_parameters(), 0.01, EPS, 2, restore=restore, weight_decay=0.1, module=module
        )
        for bad in (math.nan, math.inf, -math.inf):
            for position in range(4):
                calls = []

                def closure(calls=calls, bad=bad, position=position, model=model):
                    calls.append(1)
                    return loss_of(model) * (bad if len(calls) == position + 1 else 1)

                optimizer.step(closure)
                assert same(bits(model), start)
        assert optimizer.skipped == optimizer.steps == 12
        signs = iter([1, -1, 1, -1])
        # Finite losses, whose difference is not.
        optimizer.step(lambda m=model, s=signs: 0 * loss_of(m) + 3e38 * next(s))
        assert optimizer.skipped == 13
        assert same(bits(model), start)


@pytest.mark.parametrize("restore", ["copy", "blocks"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_weights_come_back_when_the_closure_raises(restore, error):
    model = model_of()
    start = bits(model)
    module = model if restore == "blocks" else None
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, 2, restore=restore, module=module)
    for position in range(4):
        calls = []

        def closure(calls=calls, position=position):
            calls.append(1)
            if len(calls) == position + 1:
                model[0].forward = stop  # within a block
            return loss_of(model)

        def stop(x):
            raise error

        with pytest.raises(error):
            optimizer.step(closure)
        del model[0].forward
        assert same(bits(model), start)
    assert optimizer.steps == 0
    optimizer.step(lambda: loss_of(model))
    assert not same(bits(model), start)


@pytest.mark.parametrize("restore", ["copy", "inplace", "blocks"])
def test_autocast_around_a_step_is_autocast_within_its_closure(restore):
    """Autocast keeps its casts of weights, whatever is written to them: both losses of a direction
    would be those of the first cast."""
    contexts = nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)
    results = []
    for around in (False, True):
        model, seen = model_of(), []
        module = model if restore == "blocks" else None
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, 2, restore=restore, module=module)

        def closure(model=model, seen=seen, around=around):
            with contexts[not around]():
                seen.append(loss_of(model))
            return seen[-1]

        for _ in range(3):
            with contexts[around]():
                closure()  # casts the weights before the step, and then those after it
                optimizer.step(closure)
                closure()
        assert len(set(map(float, seen[1:5]))) == 4
        assert seen[0] != seen[5] == seen[6]
        results.append((seen, bits(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def hooks(model):
    return [len(x._forward_pre_hooks) + len(x._forward_hooks) for x in model.modules()]


def test_hooks_of_blocks_end_with_the_optimizer_or_its_groups():
    model = model_of()
    first, *others = model.named_parameters()
    optimizer = ZOSGD([first], 0.01, EPS, restore="blocks", module=model)
    assert hooks(model) == [0, 2, 0, 0]
    optimizer.add_param_group({"params": others})
    assert optimizer.step(lambda: loss_of(model)) > 0
    assert hooks(model) == [0, 4, 0, 2]  # two of each group
    del optimizer
    assert hooks(model) == [0, 0, 0, 0]
    with pytest.raises(InputError, match="module must own"):
        ZOSGD(model_of().named_parameters(), 0.01, EPS, restore="blocks", module=model)
    assert hooks(model) == [0, 0, 0, 0]


def test_copies_of_a_module_under_training_are_not_perturbed():
    """Made in the closure, between two perturbations: one in memory, one of a file."""
    model, seen = model_of(), []
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore="blocks", module=model)
    plain = loss_of(model).item()

    def closure():
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = copy.deepcopy(model), torch.load(file, weights_only=False)
        seen.append([loss_of(x).item() for x in (model, *copied, model)])
        return seen[-1][0]

    optimizer.step(closure)
    for perturbed, *copies, again in seen:
        assert copies == [plain, plain]
        assert perturbed == again != plain


def test_a_compiled_module_is_compiled_once_for_all_perturbations():
    (x, y), graphs, results = batch(), [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for compiled in (False, True):
        model = model_of()
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, restore="blocks", module=model)
        run = torch.compile(model, backend=backend, dynamic=False) if compiled else model
        results.append([optimizer.step(lambda r=run: mse_loss(r(x), y)).item() for _ in range(6)])
    assert results[0] == results[1]
    assert len(graphs) == 2  # one of each layer
