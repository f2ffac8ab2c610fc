"""Peak memory against sums that can be done by hand."""

import json
import platform
import subprocess
import sys
import time
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import sopt
from sopt import InputError
from sopt.budget import Budget
from sopt.memory import LiveStorage, MemoryRecorder, anonymous_resident_bytes, return_freed_memory

KB = 1000  # elements of float32 tensors below: 4000 bytes each
CPU = torch.device("cpu")


def peak_of(function):
    """Peak bytes above those alive before, and what is left of them afterwards."""
    with LiveStorage() as live:
        before = live.bytes
        kept = function()
        after = live.bytes
        del kept
    return live.peak - before, after - before


def chain():
    x = torch.zeros(KB)  # 1 alive
    y = x + 1  # 2
    z = y * 2  # 3
    del x, y  # 1
    return z - 1  # 2


def views():
    x = torch.zeros(KB)
    return x.view(10, 100).t()[3:].unsqueeze(0), x[5:], x.detach()


def in_place():
    return torch.zeros(KB).add_(1).mul_(2).clamp_(0, 1)


def in_two_pieces():
    return torch.zeros(KB).split(100), torch.empty(2 * KB).chunk(2)


def freed_before_the_next():
    for _ in range(5):
        torch.zeros(KB).sum()


def slice_keeps_all():
    return torch.zeros(KB)[:1]


@pytest.mark.parametrize(
    "function, peak, left",
    [
        (chain, 12000, 4000),
        (views, 4000, 4000),
        (in_place, 4000, 4000),
        (in_two_pieces, 12000, 12000),
        (freed_before_the_next, 4004, 0),
        (slice_keeps_all, 4000, 4000),
    ],
)
def test_every_storage_counts_once_while_it_is_alive(function, peak, left):
    assert peak_of(function) == (peak, left)


def test_what_was_alive_before_is_counted_until_it_goes():
    x = torch.zeros(KB)
    with LiveStorage() as live:
        with_x = live.bytes
        x.add_(1)
        assert live.bytes == with_x
        del x
        assert live.bytes == with_x - 4000
        assert live.peak == with_x


def test_tensors_mapped_from_a_file_count(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(8000))
    mapped = torch.from_file(str(tmp_path / "weights"), size=2000)
    with LiveStorage() as live:
        before = live.bytes
        del mapped
        assert live.bytes == before - 8000


def block(x):
    return torch.exp(torch.exp(torch.exp(x)))  # exp saves its result for the backward


def test_activations_saved_for_backward_count():
    def step():
        x = torch.zeros(KB, requires_grad=True)
        block(block(x)).sum().backward()
        return x.grad

    # Highest at the last exp: x, six results, and the gradient being made; with it the loss and
    # its own gradient, of 4 bytes each.
    assert peak_of(step) == (4 * KB * 8 + 8, 4 * KB)


def test_what_checkpointing_recomputes_counts():
    def step():
        x = torch.zeros(KB, requires_grad=True)
        y = checkpoint(block, x, use_reentrant=False)
        checkpoint(block, y, use_reentrant=False).sum().backward()
        return x.grad

    # Highest in the first block's backward: x and y, the gradient of y, three results computed
    # again, and the next gradient being made; with the loss and its own gradient.
    assert peak_of(step) == (4 * KB * 7 + 8, 4 * KB)


def test_optimizer_state_and_gradients_count():
    weight = torch.zeros(KB, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, foreach=False)

    def step():
        (weight * 1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    _, left = peak_of(step)
    assert left == 2 * 4 * KB + 4  # two moments and the count of steps


def test_phases_have_peaks_of_their_own_and_keep_the_highest():
    held = []
    with MemoryRecorder(CPU) as memory:
        with memory.phase("small"):
            base = memory._live.bytes
            torch.zeros(KB).sum()
        with memory.phase("large"):
            held.append(torch.zeros(5 * KB))
            torch.zeros(5 * KB).sum()
        with memory.phase("small"):
            torch.zeros(1)
        with memory.phase("large", measured=False):
            torch.zeros(90 * KB)
        with memory.phase("later"):
            torch.zeros(KB)
        with memory.phase("later"):
            torch.zeros(1)
    assert memory.peaks["small"] - base == 20000 + 4  # on re-entry, with what the large one left
    assert memory.peaks["large"] - base == 40000 + 4
    assert memory.peaks["later"] - base == 24000


def test_process_figures_stand_beside():
    return_freed_memory()  # a phase does: what tests before freed would be missing at its end
    with MemoryRecorder(CPU) as memory:
        with memory.phase("a"):
            held = bytearray(64 << 20)
        del held
    summary = memory.summary()
    assert set(summary) == {"a", "process_anonymous"}
    if anonymous_resident_bytes() is not None:
        process = summary["process_anonymous"]
        assert process["a"] - process["at_start"] >= 63 << 20
    json.dumps(summary)


def test_nothing_is_kept_alive_by_being_counted():
    with LiveStorage():
        x = torch.zeros(KB)
        storage = weakref.ref(x.untyped_storage())
        del x
        assert storage() is None


def test_zeroth_order_needs_less_than_backprop_at_the_same_resolution(settings, monkeypatch):
    from pipelines import draw_blank

    monkeypatch.setattr("sopt.trainer.generate", draw_blank)
    run = sopt.train(**settings | {"low_res_ratio": 1.0, "resolution": 64})
    unet = sum(p.numel() * 4 for p in open_unet(settings).parameters())
    assert unet < run.memory["train-zo"] < run.memory["train-bp"]
    # The text encoder and the VAE, without the U-Net, are smaller here than the U-Net.
    assert run.memory["save"] < unet


def test_tensors_of_others_are_not_of_the_run(settings):
    settings |= {"samples": False, "memory_budget": "60MiB"}
    alone = sopt.train(**settings)
    others = torch.zeros(64 << 20, dtype=torch.uint8)
    beside = sopt.train(**settings | {"output": settings["output"] + "2"})
    assert max(alone.memory["train-zo"], alone.memory["train-bp"]) < others.nbytes
    for phase in ("load", "cache", "train-zo", "train-bp"):
        assert beside.memory[phase] == alone.memory[phase]


def test_weights_of_a_given_pipeline_are_of_the_run(settings):
    from pipelines import micro_pipeline

    pipeline = micro_pipeline()
    held = sum(x.nbytes for x in (*pipeline.unet.parameters(), *pipeline.vae.parameters()))
    run = sopt.train(**settings | {"model": pipeline, "samples": False})
    assert min(run.memory["train-zo"], run.memory["save"]) > held


def open_unet(settings):
    from sopt.models import open_model

    return open_model(settings["model"]).load("unet")


def test_tensors_without_storage_do_not_count():
    with FakeTensorMode():
        kept = torch.ones(1000)
    with LiveStorage() as live:
        counted = live.bytes
    del kept
    with LiveStorage() as live:
        assert live.bytes == counted


def test_the_process_is_watched_within_a_phase():
    with MemoryRecorder(torch.device("cpu")) as memory:
        if "at_start" not in memory.process:
            pytest.skip("the system does not tell resident memory")
        with memory.phase("a"):
            block = torch.ones(32 << 20)  # 128 MiB, gone at the phase's end
            time.sleep(0.2)
            del block
        with memory.phase("b"):
            pass
    assert memory.process["a"] - memory.process["at_start"] >= 120 << 20
    assert memory.process["a"] - memory.process["b"] >= 100 << 20


def test_what_is_alive_already_counts_against_a_budget():
    block = torch.ones(1000)
    recorder = MemoryRecorder(torch.device("cpu"), Budget(block.nbytes - 1))
    with (
        pytest.raises(InputError, match="out of memory in the phase load"),
        recorder,
        recorder.phase("load"),
    ):
        pass


FREED = """
import contextlib, sys, torch
from sopt.memory import anonymous_resident_bytes, mapped_blocks
how = sys.argv[1]
torch.ones(2**22)  # 16 MiB: freed, it raises the limit of glibc
with mapped_blocks() if how != "default" else contextlib.nullcontext():
    if how == "nested":
        with mapped_blocks():
            pass
    blocks = [torch.ones(2**18) for _ in range(64)]  # of 1 MiB
if how == "after":
    blocks = [torch.ones(2**18) for _ in range(64)]
before = anonymous_resident_bytes()
del blocks[:-1]
print((before - anonymous_resident_bytes()) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
@pytest.mark.parametrize(
    "how, freed",
    [
        ("mapped", range(60, 68)),
        ("nested", range(60, 68)),
        ("default", range(-4, 4)),
        ("after", range(-4, 4)),
    ],
)
def test_large_blocks_that_are_freed_go_back_to_the_system(how, freed):
    script = [sys.executable, "-c", FREED, how]
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) in freed
