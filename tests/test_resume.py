"""A run that was stopped at any moment ends with the bits of one that was not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sopt
from sopt import InputError
from sopt.checkpoint import Checkpoint, History
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
    """``at_loss(n, action)``: do something when a run evaluates its n-th loss, from 1."""
    from sopt.steps.loss import diffusion_loss

    def install(n, action):
        calls = []

        def loss(*arguments):
            calls.append(1)
            if len(calls) == n:
                action()
            return diffusion_loss(*arguments)

        monkeypatch.setattr("sopt.trainer.diffusion_loss", loss)
        return calls

    return install


def crash():
    raise RuntimeError("crash")


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
    assert len(failed) == 41
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


def contents(folder):
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_damaged_checkpoint_is_an_input_error(settings, at_loss):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    path = Path(settings["output"]) / "checkpoint" / "state.safetensors"
    data = path.read_bytes()
    for where in (0.0, 0.01, 0.2, 0.5, 0.9, 0.9999):
        position = int(where * len(data))
        for damaged in (data[:position], flipped(data, position)):
            path.write_bytes(damaged)
            content = contents(settings["output"])
            with pytest.raises(InputError, match=r"state\.safetensors.*delete the run folder"):
                sopt.train(**settings)
            assert contents(settings["output"]) == content


CHANGES = {
    "steps": 5, "seed": 1, "rank": 2, "lr": 1e-4, "zo_lr": 0, "eps": 1e-3, "num_perturbations": 2,
    "noise": "rademacher", "low_res_ratio": 0.75, "prompt": "a dog", "schedule": "tap",
    "resolution": 24,
}  # fmt: skip


@pytest.mark.parametrize("stage", ["begun", "finished"])
def test_other_settings_in_the_folder_are_refused_by_name(settings, at_loss, stage):
    if stage == "begun":
        at_loss(1, crash)
        with pytest.raises(RuntimeError, match="crash"):
            sopt.train(**settings)
    else:
        sopt.train(**settings)
    at_loss(0, None)
    content = contents(settings["output"])
    for name, value in CHANGES.items():
        with pytest.raises(InputError, match=f"holds a run with {name}=.*this one has {name}="):
            sopt.train(**settings | {name: value})
    assert contents(settings["output"]) == content


def test_other_pictures_are_refused_and_the_same_elsewhere_are_not(
    settings, unbroken, at_loss, tmp_path, pictures
):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    (moved / "2.png").rename(tmp_path / "2.png")
    with pytest.raises(InputError, match="holds a run with images='3 pictures"):
        sopt.train(**settings | {"images": str(moved)})
    (tmp_path / "2.png").rename(moved / "2.png")
    sopt.train(**settings | {"images": str(moved)})
    assert_as_unbroken(settings["output"], unbroken)


def test_another_model_with_other_layers_is_refused(settings, at_loss, monkeypatch, micro_model):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    from sopt.models import inject_lora

    monkeypatch.setattr(
        "sopt.trainer.inject_lora", lambda unet, rank, seed: inject_lora(unet, rank + 1, seed)
    )
    with pytest.raises(InputError, match="attention layers are not those of the run"):
        sopt.train(**settings)


def test_resume_never_refuses_a_run_and_takes_a_new_folder(settings):
    settings |= {"resume": "never", "steps": 1}
    sopt.train(**settings)
    with pytest.raises(InputError, match="holds a run already and resume is 'never'"):
        sopt.train(**settings)


@pytest.mark.parametrize("name", ["history.jsonl", *RESULTS])
def test_files_of_others_are_not_overwritten(settings, name):
    path = Path(settings["output"]) / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(InputError, match=f"has a file {path.name} but no run"):
        sopt.train(**settings)
    assert path.read_text() == "precious"


def test_a_folder_with_other_things_in_it_is_used(settings):
    (Path(settings["output"])).mkdir()
    (Path(settings["output"]) / "notes.txt").write_text("mine")
    sopt.train(**settings | {"steps": 1})
    assert (Path(settings["output"]) / "notes.txt").read_text() == "mine"


def test_a_shortened_history_is_an_input_error(settings, at_loss):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    path = Path(settings["output"]) / "history.jsonl"
    path.write_text(path.read_text()[:30])
    at_loss(0, None)
    with pytest.raises(InputError, match=r"history\.jsonl has 1 lines.*of step 2"):
        sopt.train(**settings)


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with History(path, 2) as history:
        history.append({"step": 3, "loss": 0.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    saved = Checkpoint(
        step=3,
        settings={"lr": 1e-5, "images": "ä"},
        skipped={"bp": 1, "zo": 0},
        peaks={"load": 2**40},
        adapter={"unet.a.to_out.0.lora_A.weight": torch.randn(2, 3)},
        optimizer={"unet.a.to_out.0.lora_A.weight": {"step": torch.tensor(2.0)}},
    )
    saved.save(tmp_path / "a" / "state.safetensors")
    loaded = Checkpoint.load(tmp_path / "a" / "state.safetensors")
    assert (loaded.step, loaded.settings) == (3, saved.settings)
    assert (loaded.skipped, loaded.peaks) == (saved.skipped, saved.peaks)
    for name, tensor in saved.adapter.items():
        assert torch.equal(loaded.adapter[name], tensor)
        assert loaded.optimizer[name]["step"].item() == 2
    saved.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a" / "state.safetensors").read_bytes()
    assert len(load_file(tmp_path / "b")) == 2
