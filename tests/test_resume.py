"""A run that was stopped at any moment ends with the bits of one that was not."""

import errno
import functools
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from killer import FORKS, killed_runs
from pipelines import act_at_loss, crash

import sopt
from sopt.checkpoint import Checkpoint
from sopt.errors import InputError
from sopt.files import load_tensors

pytestmark = pytest.mark.usefixtures("quick")

# Results whose bytes do not depend on time.
RESULTS = [
    "pytorch_lora_weights.safetensors",
    "run_kohya.safetensors",
    "samples/before.png",
    "samples/after.png",
]


@pytest.fixture
def settings(settings):
    # With seed 6 the steps are bp, zo, bp, zo: 1, 2, 1 and 2 losses.
    return settings | {"steps": 4, "num_perturbations": 1, "checkpoint_every": 2, "seed": 6}


@pytest.fixture(scope="module")
def unbroken_bytes():
    return {}


@pytest.fixture
def unbroken(settings, unbroken_bytes, tmp_path):
    """The bytes of an unbroken run's results; made once."""
    if not unbroken_bytes:
        run = sopt.train(**settings | {"output": str(tmp_path / "unbroken" / "run")})
        unbroken_bytes |= {name: (run.output / name).read_bytes() for name in RESULTS}
        unbroken_bytes["history"] = timeless(run.history)
        assert [entry["branch"] for entry in run.history] == ["bp", "zo", "bp", "zo"]
    return unbroken_bytes


def timeless(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def assert_as_unbroken(output, unbroken):
    output = Path(output)
    for name in RESULTS:
        assert (output / name).read_bytes() == unbroken[name], name
    history = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert timeless(history) == unbroken["history"]
    assert not list(output.rglob("*.tmp"))


@pytest.fixture
def at_loss(monkeypatch):
    return functools.partial(act_at_loss, monkeypatch)


@pytest.mark.parametrize("every", [1, 2, 50])
@pytest.mark.parametrize("loss", [1, 4, 6])
def test_a_crashed_run_continues_to_the_same_bits(settings, unbroken, at_loss, every, loss):
    settings["checkpoint_every"] = every
    at_loss(loss, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    assert not (Path(settings["output"]) / RESULTS[0]).exists()
    calls = at_loss(0, None)
    sopt.train(**settings)
    assert_as_unbroken(settings["output"], unbroken)
    if every == 1:  # it continued rather than began again: the whole steps before are not redone
        assert len(calls) <= 6 - loss + 2
    elif every == 50:
        assert len(calls) == 6


def test_a_finished_run_is_returned_without_doing_anything(settings, unbroken, at_loss):
    first = sopt.train(**settings)
    times = {path: path.stat().st_mtime_ns for path in first.output.rglob("*")}
    calls = at_loss(0, None)
    again = sopt.train(**settings)
    assert not calls
    assert (again.history, again.memory, again.adapter) == (
        first.history,
        first.memory,
        first.adapter,
    )
    assert times == {path: path.stat().st_mtime_ns for path in first.output.rglob("*")}


@pytest.mark.parametrize("name", ["memory.json", "history.jsonl"])
def test_a_damaged_result_of_a_finished_run_is_named(settings, name):
    run = sopt.train(**settings)
    (run.output / name).write_text("{\n" * len(run.history))
    with pytest.raises(InputError, match=rf"^output: .*{name} is not JSON"):
        sopt.train(**settings)


def test_a_result_that_is_missing_is_made_again_without_training(settings, unbroken, at_loss):
    run = sopt.train(**settings)
    for missing in [*RESULTS, "memory.json"]:
        (run.output / missing).unlink()
        calls = at_loss(0, None)
        sopt.train(**settings)
        assert not calls
        assert_as_unbroken(settings["output"], unbroken)
        assert {"train-bp", "train-zo"} <= set(json.loads((run.output / "memory.json").read_text()))


@pytest.fixture
def ctrl_c():
    """Python's own handling of Ctrl-C, also where the tests run in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_finishes_the_step_saves_and_leaves(settings, unbroken, at_loss):
    settings["checkpoint_every"] = 50
    at_loss(3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        sopt.train(**settings)
    output = Path(settings["output"])
    step = Checkpoint.load(output / "checkpoint" / "state.safetensors").step
    assert 0 < step < settings["steps"]
    assert len((output / "history.jsonl").read_text().splitlines()) == step
    at_loss(0, None)
    sopt.train(**settings)
    assert_as_unbroken(output, unbroken)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_leaves_at_once(settings, unbroken, at_loss):
    reached = []

    def twice():
        signal.raise_signal(signal.SIGINT)
        reached.append("first")
        signal.raise_signal(signal.SIGINT)
        reached.append("second")

    at_loss(3, twice)
    with pytest.raises(KeyboardInterrupt):
        sopt.train(**settings)
    assert reached == ["first"]
    at_loss(0, None)
    sopt.train(**settings)
    assert_as_unbroken(settings["output"], unbroken)


def test_training_works_outside_the_main_thread(settings, unbroken):
    thread = threading.Thread(target=sopt.train, kwargs=settings)
    thread.start()
    thread.join()
    assert_as_unbroken(settings["output"], unbroken)


def fault_counter(monkeypatch, at):
    """Count the writes, flushes and renames; the call number ``at`` fails, after half its work."""
    calls = []
    real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}

    def counted(name):
        def call(*arguments):
            calls.append(name)
            if len(calls) - 1 == at:
                if name == "write":
                    descriptor, data = arguments
                    real["write"](descriptor, data[: len(data) // 2])
                raise OSError(errno.EIO, "injected fault")
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    return calls


def run_with_fault(settings, unbroken, at):
    with pytest.MonkeyPatch.context() as patch:
        calls = fault_counter(patch, at)
        try:
            sopt.train(**settings)
            return None
        except OSError as error:
            if error.strerror != "injected fault":
                raise
    output = Path(settings["output"])
    for path in output.rglob("*.safetensors"):
        load_tensors(path)  # whole, or it would be an InputError
    for path in output.rglob("*.json"):
        json.loads(path.read_text())
    sopt.train(**settings)
    assert_as_unbroken(output, unbroken)
    return calls[at]


# Of the 41 calls of a run; the slow test has them all.
@pytest.mark.parametrize("at", [0, 2, 6, 9, 13, 15, 18, 24, 30, 40])
def test_a_fault_in_a_write_flush_or_rename_costs_nothing(settings, unbroken, at):
    assert run_with_fault(settings, unbroken, at) in ("write", "fsync", "replace")


@pytest.mark.slow
def test_a_fault_in_each_write_flush_and_rename_costs_nothing(settings, unbroken, tmp_path):
    failed, at = [], 0
    while True:
        output = str(tmp_path / str(at) / "run")
        kind = run_with_fault(settings | {"output": output}, unbroken, at)
        if kind is None:
            break
        failed.append(kind)
        at += 1
    assert len(failed) == 49
    assert set(failed) == {"write", "fsync", "replace"}


@pytest.mark.slow
@FORKS
def test_twenty_kills_at_random_moments_cost_nothing(settings, tmp_path):
    settings |= {"output": str(tmp_path), "steps": 10, "checkpoint_every": 3}
    killed = killed_runs(settings, RESULTS, 20)
    print("kills:", killed)
    assert sum(killed.values()) >= 20
