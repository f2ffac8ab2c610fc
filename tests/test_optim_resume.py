"""``resume``: broken off, with another run's log, and steps that had no effect."""

from __future__ import annotations

import signal

import pytest
import torch
from small_models import EPS, bits, loss_of, model_of, same

import sopt
from sopt.errors import InputError
from sopt.optim import ZOSGD, Exchange, SeedLog, ZOAdam, optimizer, restore, zoadam, zosgd

OPTIMIZERS = {
    "plain": lambda m, log: ZOSGD(m.named_parameters(), 0.01, EPS, log=log),
    "momentum": lambda m, log: ZOSGD(m.named_parameters(), 0.01, EPS, momentum=0.9, log=log),
    "adam": lambda m, log: ZOAdam(m.named_parameters(), 0.01, EPS, log=log),
}


def trained(make, log, steps):
    model = model_of()
    made = make(model, log)
    for step in range(steps):
        made.step(lambda s=step: loss_of(model, s))
    return model


@pytest.mark.parametrize("name, module, passes", [
    ("plain", restore, [4, 8, 10]),
    ("momentum", zosgd, range(1, 11)),  # what is not one kernel call ends after each step
    ("adam", zoadam, range(1, 11)),
])  # fmt: skip
def test_a_resume_broken_off_by_ctrl_c_goes_on(name, module, passes, tmp_path, monkeypatch):
    """Ctrl-C while a kernel runs, in each of the passes over 10 steps."""
    make, log = OPTIMIZERS[name], tmp_path / "run.zolog"
    end, whole = bits(trained(make, log, 10)), log.read_bytes()
    monkeypatch.setattr(optimizer, "REPLAYED_AT_ONCE", 4)
    kernel, reached = module.add_noise_, []
    for position in range(99):
        model, calls = model_of(), []
        resumed = make(model, log)

        def call(*arguments, position=position, calls=calls, **options):
            calls.append(1)
            if len(calls) == position + 1:
                signal.raise_signal(signal.SIGINT)
            return kernel(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, "add_noise_", call)
            try:
                resumed.resume()
            except KeyboardInterrupt:
                reached.append(resumed.steps)
            else:
                break
        if resumed.steps < 10:
            with pytest.raises(InputError, match=r"resume\(\) must be called again before a step"):
                resumed.step(lambda: pytest.fail("evaluated"))
        assert resumed.resume() == 10  # also if it came in the last pass
        assert same(bits(model), end)
        assert log.read_bytes() == whole
    assert sorted(set(reached)) == list(passes)


def test_a_pass_of_a_replay_ends_where_settings_change(tmp_path, monkeypatch):
    """One pass over memory has one decay: Ctrl-C would wait for as many as there are."""
    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, weight_decay=0.1, log=log)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.01 if step < 4 else 0.005
        optimizer.step(lambda s=step: loss_of(model, s))
    again, updates = ZOSGD(model_of().named_parameters(), 0.01, EPS), []
    monkeypatch.setattr(again, "_apply", lambda chunk: updates.append([u.step for u in chunk]))
    again.replay(SeedLog(log))
    assert updates == [[1, 2, 3, 4], [5, 6]]
    assert same(bits(sopt.replay(model_of(), log)), bits(model))


def test_a_log_takes_no_step_but_the_next(tmp_path):
    log = tmp_path / "run.zolog"
    trained(OPTIMIZERS["plain"], log, 3)
    whole, file = log.read_bytes(), SeedLog(log)
    for update in file.updates():
        with pytest.raises(InputError, match=rf"must be step 4, .* got step {update.step}"):
            file.append(update)
    assert log.read_bytes() == whole


def test_a_replay_comes_before_the_first_step(tmp_path):
    log = tmp_path / "run.zolog"
    trained(OPTIMIZERS["plain"], log, 3)
    again = OPTIMIZERS["plain"](model_of(), None)
    again.replay(SeedLog(log), last=2)
    with pytest.raises(InputError, match="must come before the first step, got 2 done"):
        again.replay(SeedLog(log))


def test_a_log_of_another_run_is_refused_whole_where_others_go_on_from_an_earlier_step(tmp_path):
    log, store = tmp_path / "run.zolog", torch.distributed.HashStore()
    trained(OPTIMIZERS["plain"], log, 5)
    whole = log.read_bytes()
    store.set("start/0", "0")
    exchange = Exchange(store, 1, 2, timeout=0.01)
    other = ZOSGD(model_of(seed=1).named_parameters(), 0.01, EPS, log=log, exchange=exchange)
    with pytest.raises(InputError, match="first weights"):
        other.resume()
    assert log.read_bytes() == whole
    assert not store.check(["start/1"])


def test_skipped_steps_are_counted_alike_by_the_run_and_its_replay(tmp_path):
    """A step without groups has no effect whatever its loss is."""
    counts = []
    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = OPTIMIZERS["plain"](model, log)
    for enabled in (True, False):
        for loss in (1.0, float("nan")):
            optimizer.param_groups[0]["enabled"] = enabled
            optimizer.step(lambda x=loss: loss_of(model) * x)
            counts.append(optimizer.skipped)
    assert counts == [0, 1, 1, 1]
    for step, count in enumerate(counts, 1):
        again = OPTIMIZERS["plain"](model_of(), None)
        again.replay(SeedLog(log), last=step)
        assert (again.steps, again.skipped) == (step, count)
