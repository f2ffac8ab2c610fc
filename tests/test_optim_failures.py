"""Steps that are broken off: weights, log and waiting losses are as before, they can be redone."""

from __future__ import annotations

import copy
import errno
import itertools
import math
import os
import signal

import pytest
import torch
from small_models import EPS, Training, bits, loss_of, model_of, same

import sopt
from sopt.optim import ZOSGD, Exchange, SeedLog, ZOAdam, blocks, restore, seed_log
from sopt.optim.interrupts import uninterrupted


def interrupted(*_):
    raise KeyboardInterrupt


def torn(descriptor, data):
    """A disk that is full after 7 bytes."""
    os.write(descriptor, data[:7])
    raise OSError(errno.ENOSPC, "No space left on device")


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


def test_a_step_that_cannot_be_logged_is_not_done(tmp_path, monkeypatch):
    broken, whole = (Training(log=tmp_path / name) for name in ("broken", "whole"))
    for step in range(3):
        assert broken.step(step) == whole.step(step)
    start = broken.state()
    with monkeypatch.context() as patch:
        patch.setattr(seed_log, "write_all", torn)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                broken.step(3)
    assert same(broken.state(), start)
    assert broken.optimizer.steps == 3
    torn_log = SeedLog(tmp_path / "broken")
    assert (torn_log.step, torn_log.torn_bytes) == (3, 7)
    for step in range(3, 6):
        assert broken.step(step) == whole.step(step)
    assert same(broken.state(), whole.state())
    assert (tmp_path / "broken").read_bytes() == (tmp_path / "whole").read_bytes()


def adam(model, log):
    return ZOAdam(model.named_parameters(), 0.01, EPS, log=log)


def two_groups(model, log):
    named = list(model.named_parameters())
    return ZOSGD([{"params": named[:2]}, {"params": named[2:]}], 0.01, EPS, log=log)


def fails_at(position, function):
    """``function``, but that call number ``position`` finds no memory."""
    calls = itertools.count()

    def call(*arguments, **options):
        if next(calls) == position:
            raise torch.OutOfMemoryError
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("position", range(8))
def test_a_step_without_memory_for_its_averages_is_not_done(position, tmp_path, monkeypatch):
    """Adam's first step makes two of each tensor."""
    model, log = model_of(), tmp_path / "run.zolog"
    start, optimizer = bits(model), adam(model, log)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", fails_at(position, torch.zeros_like))
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step(lambda: loss_of(model))
    assert same(bits(model), start)
    assert (SeedLog(log).step, SeedLog(log).torn_bytes) == (0, 0)
    for step in range(3):
        optimizer.step(lambda s=step: loss_of(model, s))
    assert same(bits(sopt.replay(model_of(), log)), bits(model))


@pytest.mark.parametrize("make, module, op, position", [
    (adam, torch, "zeros_like", 1),  # the estimate of the second tensor
    (two_groups, restore, "write_noisy_", 5),  # two perturbations of each group, two updates
])  # fmt: skip
def test_after_an_update_that_failed_midway_no_step_follows(
    make, module, op, position, tmp_path, monkeypatch
):
    """Until weights and state are loaded: with weights of no step, no log could repeat it."""
    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = make(model, log)
    for step in range(2):
        optimizer.step(lambda s=step: loss_of(model, s))
    start = bits(model)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with monkeypatch.context() as patch:
        patch.setattr(module, op, fails_at(position, getattr(module, op)))
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step(lambda: loss_of(model, 2))
    assert not same(bits(model), start)
    assert (SeedLog(log).step, SeedLog(log).torn_bytes) == (2, 0)
    for call in (optimizer.step, optimizer.accumulate):
        with pytest.raises(RuntimeError, match="weights are between step 2 and the next"):
            call(lambda: pytest.fail("evaluated"))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for step in (2, 3):
        optimizer.step(lambda s=step: loss_of(model, s))
    assert same(bits(sopt.replay(model_of(), log)), bits(model))


def test_a_shared_step_that_failed_can_be_done_after_loading_the_one_before(monkeypatch):
    model, store = model_of(), torch.distributed.HashStore()
    exchange = Exchange(store, 0, 2, timeout=0.01)
    optimizer = ZOAdam(model.named_parameters(), 0.01, EPS, exchange=exchange)
    optimizer.step(lambda: loss_of(model))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", fails_at(1, torch.zeros_like))
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step(lambda: loss_of(model))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    optimizer.step(lambda: pytest.fail("evaluated a decided step"))
    assert optimizer.steps == 2


def test_a_replay_that_failed_midway_does_not_go_on(tmp_path, monkeypatch):
    log = tmp_path / "run.zolog"
    optimizer = adam(model := model_of(), log)
    for step in range(2):
        optimizer.step(lambda s=step: loss_of(model, s))
    resumed = adam(model_of(), log)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", fails_at(9, torch.zeros_like))  # the second estimate
        with pytest.raises(torch.OutOfMemoryError):
            resumed.resume()
    with pytest.raises(RuntimeError, match="weights are between step 0 and the next"):
        resumed.resume()


def test_abandoned_micro_batches_are_dropped_by_zero_grad():
    broken, whole = Training(), Training()
    broken.accumulate(7)
    with pytest.raises(ZeroDivisionError):  # out of memory, say: the batch is left out
        broken.optimizer.accumulate(lambda: 1 / 0)
    broken.optimizer.zero_grad()
    for training in (broken, whole):
        training.accumulate(1)
        training.accumulate(2)
    losses = [training.optimizer.step().item() for training in (broken, whole)]
    assert losses[0] == losses[1]
    assert same(broken.state(), whole.state())


@pytest.mark.parametrize("how, module, op", [
    ("copy", restore, "write_noisy_"), ("inplace", restore, "add_noise_"),
    ("blocks", blocks, "add_noise_"),
])  # fmt: skip
def test_nothing_has_changed_if_an_update_has_no_memory(how, module, op, monkeypatch):
    kernel, training = getattr(module, op), Training(how, noise="rademacher")
    start = training.state()

    def call(*arguments, **options):
        if "decay" in options:  # an update; a perturbation has none
            raise torch.OutOfMemoryError
        return kernel(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, op, call)
        with pytest.raises(torch.OutOfMemoryError):
            training.step(1)
    assert same(training.state(), start)
    assert training.optimizer.steps == 0
    training.step(1)  # so that the step can be tried again
    again = Training(how, noise="rademacher")
    again.step(1)
    assert same(training.state(), again.state())


@pytest.mark.parametrize("times", [1, 9])
@pytest.mark.parametrize("sooner", [False, True])
@pytest.mark.parametrize("how, module, op", [
    ("copy", restore, "perturb_int8_"), ("copy", restore, "update_int8_"),
    ("copy", restore, "write_noisy_"), ("inplace", restore, "add_noise_"),
    ("blocks", blocks, "write_noisy_"), ("blocks", blocks, "add_noise_"),
])  # fmt: skip
def test_ctrl_c_comes_before_a_step_or_after_it(how, module, op, sooner, times, monkeypatch):
    """While a kernel runs, Python waits for its end; before, for that of the last instruction."""
    kernel = getattr(module, op)
    whole = Training(how, noise="rademacher")
    start = whole.state()
    whole.step(1)
    for position in range(99):
        broken, calls = Training(how, noise="rademacher"), []

        def call(*arguments, position=position, calls=calls, **options):
            calls.append(op)
            comes = position < len(calls) <= position + times
            if comes and sooner:
                signal.raise_signal(signal.SIGINT)
            result = kernel(*arguments, **options)
            if comes:
                signal.raise_signal(signal.SIGINT)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(module, op, call)
            try:
                broken.step(1)
            except KeyboardInterrupt:
                pass
            else:
                break
        if not broken.optimizer.steps:
            assert same(broken.state(), start)
            broken.step(1)
        assert same(broken.state(), whole.state())
    assert len(calls) == position > 0


@pytest.mark.parametrize("how", ["copy", "inplace", "blocks"])
@pytest.mark.parametrize("act, factor", [("accumulate", 1), ("step", 1), ("step", math.nan)])
def test_ctrl_c_comes_before_what_it_must_not_interrupt_or_after_it(how, act, factor, monkeypatch):
    """At each entry of such a block; a step of losses that are NaN is skipped."""
    getsignal, position = signal.getsignal, 0
    while True:
        training, entries = Training(how, noise="rademacher"), []
        start = training.state()

        def entered(number, entries=entries, position=position):
            entries.append(number)
            if len(entries) == position + 1:
                signal.raise_signal(signal.SIGINT)
            return getsignal(number)

        with monkeypatch.context() as patch:
            patch.setattr(signal, "getsignal", entered)
            try:
                getattr(training.optimizer, act)(lambda t=training: factor * t.loss(1))
            except KeyboardInterrupt:
                position += 1
            else:
                break
        changes = training.optimizer.steps and factor == 1
        assert same(training.state(), start) != changes
    assert position > 1


def test_a_handler_is_told_of_every_ctrl_c():
    """That of a trainer finishes the step at the first, and stops at the second."""
    told = []
    before = signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert told == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [signal.SIGINT] * 2
