"""A run that was stopped at any moment ends with the bits of one that was not."""

import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pipelines import act_at_loss, crash

import sopt
from sopt.checkpoint import Checkpoint
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


# One process imports everything, then forks a child for each run, so a run takes a second.
KILLER = """
import functools, json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import sopt, sopt.memory, sopt.trainer
from pipelines import SkipMemory, draw_blank
sopt.trainer.generate = draw_blank
sopt.memory.LiveStorage = SkipMemory
settings, kills, results = json.loads(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
chance = random.Random(int(sys.argv[5]))

def run(seconds=None):
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        sopt.train(**settings)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert seconds is not None or status == 0, status
    return status, time.monotonic() - started

folder = settings["output"]
settings["output"] = f"{folder}/unbroken/run"
longest = run()[1]
read = lambda: [open(f"{settings['output']}/{name}", "rb").read() for name in results]
expected = read()
killed = []
while len(killed) < kills:
    settings["output"] = f"{folder}/{len(killed)}/run"
    status, _ = run(chance.uniform(0, longest))
    if os.WIFSIGNALED(status):
        log = f"{settings['output']}/history.jsonl"
        killed.append(len(open(log).readlines()) if os.path.exists(log) else -1)
    elif os.path.exists(settings["output"]):
        import shutil; shutil.rmtree(settings["output"]); continue
    run()
    assert read() == expected, f"kill {len(killed)}"
print(json.dumps(killed))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_twenty_kills_at_random_moments_cost_nothing(settings, tmp_path):
    settings |= {"output": str(tmp_path), "steps": 10, "checkpoint_every": 3}
    script = [KILLER, str(Path(__file__).parent), json.dumps(settings), "20", json.dumps(RESULTS)]
    # A fork copies one thread only, so torch must not have started others.
    done = subprocess.run(
        [sys.executable, "-c", *script, str(random.randrange(2**32))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    killed = json.loads(done.stdout)
    print("lines of history at each kill:", killed)
    assert len(killed) == 20
