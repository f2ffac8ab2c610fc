"""The store of activations: what interrupts it costs nothing, and another run's is refused."""

import errno
import os

import pytest
import torch
from killer import FORKS, killed_runs
from pipelines import save_pictures
from safetensors.torch import load_file

import sopt
from sopt import InputError
from sopt.hollow.store import Store
from sopt.memory import MemoryRecorder

CPU = torch.device("cpu")
ACTIVATIONS = "activations.safetensors"


@pytest.fixture
def hollowed(settings):
    # With seed 6 the steps are bp, zo, bp, zo.
    more = {"steps": 4, "num_perturbations": 2, "seed": 6, "samples": False, "hollow": "a11"}
    return settings | more


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", [0, 3])
def test_a_crash_in_stage_1_costs_what_was_not_stored(hollowed, tmp_path, monkeypatch, at):
    unbroken = sopt.train(**hollowed)
    output = tmp_path / "crashed" / "run"
    write, calls = Store.write, []

    def crashing(store, name, value):
        calls.append(name)
        if len(calls) == at + 1:
            raise RuntimeError("crash")
        write(store, name, value)

    monkeypatch.setattr(Store, "write", crashing)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**hollowed | {"output": str(output)})
    sopt.train(**hollowed | {"output": str(output)})
    assert len(calls) == 1 + 4  # four samples, each stored once
    for name in (ACTIVATIONS, unbroken.adapter.name):
        assert (output / name).read_bytes() == (unbroken.output / name).read_bytes()


@pytest.fixture(scope="module")
def stored():
    """The store of a run, once it was made."""
    return []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "changed, word",
    [
        ({"seed": 7}, "seed"),
        ({"hollow": "a10"}, "cut"),
        ({"resolution": 64}, "resolution"),
        ({"prompt": "a zwx dog"}, "prompt"),
        ({"weights": "bfloat16", "hollow_dtype": "float32"}, "model"),
        ({"min_timestep": 1}, "timesteps"),
        ({"images": "other"}, "pictures"),
        ({"images": "2_a sks dog"}, "captions or repeats"),
    ],
)
def test_a_store_of_something_else_is_refused(hollowed, tmp_path, stored, changed, word):
    if not stored:
        stored.append((sopt.train(**hollowed).output / ACTIVATIONS).read_bytes())
    (kept,) = stored
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / ACTIVATIONS).write_bytes(kept)
    if "images" in changed:
        (tmp_path / "img").mkdir()
        repeated = changed["images"] != "other"
        folder = save_pictures(tmp_path / "img" / changed["images"], count=3 if repeated else 2)
        changed = {"images": str(folder.parent if repeated else folder)}
    with pytest.raises(InputError, match=f"was made with another {word}: "):
        sopt.train(**hollowed | changed | {"output": str(stray)})
    assert (stray / ACTIVATIONS).read_bytes() == kept


SHAPES = {f"{i}.32.0": (1, 3, 2, 2) for i in range(5)}


def filled(path, identity):
    store = Store(path, SHAPES, torch.float32, identity)
    for name in store.missing():
        store.write(name, torch.full(SHAPES[name], float(name[0]) + 1))
    store.close()
    return path.read_bytes()


def test_a_store_is_a_safetensors_file_that_is_mapped(tmp_path):
    filled(tmp_path / "a", {"seed": "1"})
    content = load_file(tmp_path / "a")
    store = Store(tmp_path / "a", SHAPES, torch.float32, {"seed": "1"})
    assert not store.missing()
    for name in SHAPES:
        assert torch.equal(content[name], torch.full((1, 3, 2, 2), float(name[0]) + 1))
        with MemoryRecorder(CPU, found=False) as memory, memory.phase("read"):
            entry = store.read(name)
        assert torch.equal(entry, content[name])
        assert memory.peaks["read"] == 12 * 4  # the entry alone counts, not the file


@pytest.mark.parametrize("size", [1, 60, 250, 10**6])  # the last within the header
def test_a_store_that_was_cut_short_goes_on(tmp_path, size):
    whole = filled(tmp_path / "a", {"seed": "1"})
    os.truncate(tmp_path / "a", max(10, len(whole) - size))
    store = Store(tmp_path / "a", SHAPES, torch.float32, {"seed": "1"})
    lost = -(-size // 48)
    assert store.missing() == list(SHAPES)[-min(lost, 5) :]
    assert filled(tmp_path / "a", {"seed": "1"}) == whole


def test_a_damaged_entry_is_computed_again(tmp_path):
    whole = filled(tmp_path / "a", {})
    with (tmp_path / "a").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x17")
    assert Store(tmp_path / "a", SHAPES, torch.float32, {}).missing() == ["4.32.0"]
    assert filled(tmp_path / "a", {}) == whole


def test_a_file_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "a").write_bytes(b"something else")
    with pytest.raises(InputError, match="is not a store of activations"):
        Store(tmp_path / "a", SHAPES, torch.float32, {})
    assert (tmp_path / "a").read_bytes() == b"something else"


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        with pytest.raises(InputError, match="is too full for 0 MiB of activations"):
            Store(tmp_path / "a", SHAPES, torch.float32, {})
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(InputError, match="is too full for 0 MiB of activations"):
            filled(tmp_path / "a", {})
    assert filled(tmp_path / "a", {}) == filled(tmp_path / "b", {})
    with pytest.raises(InputError, match="is too full for"):
        Store(tmp_path / "c", {"x": (2**45,)}, torch.float32, {})
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
@FORKS
def test_twenty_kills_in_each_stage_cost_nothing(hollowed, tmp_path):
    hollowed |= {"output": str(tmp_path), "steps": 8, "schedule": 0.2, "checkpoint_every": 3}
    results = [ACTIVATIONS, "pytorch_lora_weights.safetensors"]
    killed = killed_runs(hollowed, results, 20, ["stage 1", "stage 2"])
    print("kills:", killed)
    assert min(killed["stage 1"], killed["stage 2"]) >= 20
