"""Several processes, one training: torchrun, bytes exchanged, ranks that are lost and return."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import EPS, bits, loss_of, model_of, same
from zeroth_order_process import PERTURBATIONS, STEPS

from sopt.errors import InputError
from sopt.optim import ZOSGD, Exchange, SeedLog, distributed

PROGRAM = Path(__file__).with_name("zeroth_order_process.py")


def results(folder, world):
    return [json.loads((folder / f"result-{r}.json").read_text()) for r in range(world)]


def one_process(share, world):
    """The same perturbations by a single process; its losses averaged as the exchange does."""
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, PERTURBATIONS)
    for step in range(STEPS):
        for rank in range(world if share == "data" else 1):
            optimizer.accumulate(lambda s=100 * step + rank: loss_of(model, s))
        optimizer.step()
    return optimizer.digest()


@pytest.mark.slow
@pytest.mark.parametrize("world, share", [
    (2, "data"), (2, "perturbations"), (4, "perturbations"), (4, "data"),
])  # fmt: skip
def test_torchrun_gives_the_weights_of_one_process(world, share, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", PROGRAM, tmp_path, "0", "0", "0", share]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    found = results(tmp_path, world)
    assert {result["digest"] for result in found} == {one_process(share, world)}
    assert len({tuple(result["losses"]) for result in found}) == 1
    evaluations = 2 * PERTURBATIONS * STEPS
    assert sum(r["evaluated"] for r in found) == evaluations * (world if share == "data" else 1)
    done = STEPS * PERTURBATIONS // (world if share == "perturbations" else 1)
    for rank, result in enumerate(found):
        share_of_rank = result["bytes"] / done
        print(f"{world} processes, {share}, rank {rank}: {share_of_rank:.1f} bytes a perturbation")
        assert share_of_rank < 100


def start(folder, store, rank, world, share="perturbations"):
    arguments = [folder, str(store.port), str(rank), str(world), share]
    return subprocess.Popen([sys.executable, PROGRAM, *arguments])


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_does_not_stop_the_rest_and_catches_up(lost, tmp_path):
    """Step 8, before which it leaves, is rank 0's turn to decide."""
    (tmp_path / "slow").touch()
    (tmp_path / f"exit-{lost}").write_text("7")
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300)
    )
    processes = [start(tmp_path, store, rank, 2) for rank in range(2)]
    assert processes[lost].wait(300) == 3
    other = 1 - lost
    log = tmp_path / f"log-{other}.zolog"
    while SeedLog(log).step < 9:  # the other goes on alone
        time.sleep(0.02)
        assert processes[other].poll() is None
    again = start(tmp_path, store, lost, 2)
    assert processes[other].wait(300) == 0
    assert again.wait(300) == 0
    found = results(tmp_path, 2)
    assert found[0]["digest"] == found[1]["digest"]
    assert found[lost]["replayed"] == 7
    logs = [SeedLog(tmp_path / f"log-{rank}.zolog") for rank in range(2)]
    assert logs[0].path.read_bytes() == logs[1].path.read_bytes()
    counts = [len(update.indices) for update in logs[0].updates()]
    assert counts[:7] == [4] * 7
    assert counts[7:9] == [2] * 2  # N is that of what was there


def exchanges(world, **options):
    """Exchanges of several ranks over one store, and a function that runs one call in each."""
    store = torch.distributed.HashStore()
    ranks = [Exchange(store, rank, world, **options) for rank in range(world)]

    def together(call, which=range(world)):
        answers = {}
        threads = [
            threading.Thread(target=lambda r=r: answers.update({r: call(ranks[r])})) for r in which
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    return ranks, together


def rows_of(exchange):
    return [(exchange.rank, exchange.rank + 0.5, -exchange.rank)]


def test_what_was_decided_is_the_same_list_for_all():
    _, together = exchanges(3, share="perturbations", timeout=5.0)
    answers = together(lambda e: e.share(1, rows_of(e)))
    expected = [(0, 0.5, 0.0), (1, 1.5, -1.0), (2, 2.5, -2.0)]
    assert answers == {0: expected, 1: expected, 2: expected}


@pytest.mark.parametrize("missing", [1, 2], ids=["whose turn it is", "another"])
def test_a_missing_rank_is_waited_for_once_and_awaited_again_after_it_returns(missing):
    ranks, together = exchanges(3, share="perturbations", timeout=0.5)
    there = [rank for rank in range(3) if rank != missing]
    waits = []
    for step in (1, 2):
        started = time.monotonic()
        answers = together(lambda e, s=step: e.share(s, rows_of(e)), there)
        waits.append(time.monotonic() - started)
        assert all([row[0] for row in rows] == there for rows in answers.values())
    assert waits[0] > 0.4 > waits[1]
    late = ranks[missing]
    assert [late.decision(step) for step in (1, 2, 3)] == [answers[there[0]]] * 2 + [None]
    assert [row[0] for row in late.share(2, rows_of(late))] == there  # too late for this one
    answers = together(lambda e: e.share(3, rows_of(e)))
    assert all([row[0] for row in rows] == [0, 1, 2] for rows in answers.values())


def test_processes_that_all_restart_go_on_from_the_least_of_their_logs(tmp_path):
    """As after a failure under torchrun: one had logged a step more than the other."""

    def run(store, last_of_rank, digests):
        models = [model_of() for _ in range(2)]  # not in the threads: they share torch's generator

        def process(rank):
            model = models[rank]
            exchange = Exchange(store, rank, 2, share="perturbations", timeout=20.0)
            optimizer = ZOSGD(
                model.named_parameters(), 0.01, EPS, 2, log=tmp_path / f"{rank}", exchange=exchange
            )
            for step in range(optimizer.resume(), last_of_rank[rank]):
                optimizer.step(lambda s=step: loss_of(model, s))
            digests[rank] = optimizer.digest()

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    digests = {}
    run(torch.distributed.HashStore(), [5, 5], digests)
    log = tmp_path / "1"
    log.write_bytes(log.read_bytes()[:-5])  # killed while it wrote step 5
    run(torch.distributed.HashStore(), [9, 9], digests)
    alone = model_of()
    optimizer = ZOSGD(alone.named_parameters(), 0.01, EPS, 2)
    for step in range(9):
        optimizer.step(lambda s=step: loss_of(alone, s))
    assert digests == {0: optimizer.digest(), 1: optimizer.digest()}
    assert (tmp_path / "0").read_bytes() == log.read_bytes()


def test_a_process_that_is_behind_where_the_others_began_is_told():
    store = torch.distributed.HashStore()
    late, early = (Exchange(store, rank, 2, timeout=0.01) for rank in range(2))
    assert early.begin(7) == 7
    early.joined()
    assert early.begin(9) == 9  # back after a failure of its own
    with pytest.raises(InputError, match="ends at step 6, but the others go on from step 7"):
        late.begin(6)
    assert late.begin(8) == 7


def test_a_second_training_of_a_program_knows_nothing_of_the_first(monkeypatch):
    """Nor does one that torchrun started again, where the store has outlived the processes."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(store, 0, 2)]))

    def training():
        return Exchange.from_environment(timeout=0.01)

    first = training()
    assert first.share(1, rows_of(first)) == first.decision(1) == [(0, 0.5, 0.0)]
    assert training().decision(1) is None
    monkeypatch.setattr(distributed, "_exchanges", itertools.count())  # another process
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert training().decision(1) is None


@pytest.mark.parametrize("other", [
    {"seed": 1}, {"noise": "rademacher"}, {"model": 1}, {"estimator": "one-sided"},
    {"lr": 0.02}, {"eps": 2 * EPS}, {"clip": np.float32(1)}, {"weight_decay": 0.1},
    {"momentum": 0.9}, {"num_perturbations": 2},
])  # fmt: skip
def test_processes_that_do_not_train_the_same_are_told_before_a_loss(other, tmp_path):
    store = torch.distributed.HashStore()

    def training(rank, model=0, **options):
        trained = model_of(seed=model)
        exchange = Exchange(store, rank, 2, timeout=0.01)
        options = {"lr": 0.01, "eps": EPS, **options}
        optimizer = ZOSGD(trained.named_parameters(), exchange=exchange, **options)
        return lambda: optimizer.step(lambda: loss_of(trained))

    training(0)()
    with pytest.raises(InputError, match=r"process 1 goes on after step 0 with other weights"):
        training(1, log=tmp_path / "log", **other)()
    assert not (tmp_path / "log").exists()
    training(1)()


def test_processes_without_an_exchange_are_told_once(monkeypatch, caplog):
    """It may be meant: the same data in all, or a closure that averages its loss over them."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for exchange in (None, Exchange(torch.distributed.HashStore(), 0, 1)):
        caplog.clear()
        model = model_of()
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, exchange=exchange)
        for step in range(3):
            optimizer.step(lambda m=model, s=step: loss_of(m, s))
        assert caplog.text.count("2 processes, but the optimizer no exchange=") == (not exchange)


def test_weights_that_differ_are_found():
    ranks, _ = exchanges(2, check_every=3)
    assert [ranks[0].checks(step) for step in (1, 2, 3, 6)] == [False, False, True, True]
    ranks[0].check(3, "aa")
    ranks[0].check(3, "aa")
    with pytest.raises(RuntimeError, match="weights of process 1 differ from the others' after"):
        ranks[1].check(3, "ab")


class CountingStore:
    """A store, and the bytes of the keys and values that pass."""

    def __init__(self, store):
        self.store, self.bytes = store, 0

    def __getattr__(self, name):
        def call(key, *arguments):
            self._count(*([key] if isinstance(key, str) else key), *arguments)
            answer = getattr(self.store, name)(key, *arguments)
            self._count(answer)
            return answer

        return call

    def _count(self, *values):
        self.bytes += sum(len(x) for x in values if isinstance(x, str | bytes))


def test_all_bytes_of_keys_and_values_are_counted():
    """Of a process that waits in vain for another, which then applies what was decided."""
    store = torch.distributed.HashStore()
    for rank in range(2):
        counting, model = CountingStore(store), model_of()
        exchange = Exchange(counting, rank, 2, timeout=0.01, check_every=2)
        exchange.begin(0)
        exchange.joined()
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, exchange=exchange)
        for step in range(4):
            optimizer.step(lambda m=model, s=step: loss_of(m, s))
        assert exchange.sent + exchange.received == counting.bytes > 0


def test_a_store_that_is_gone_is_an_error():
    """Not a process that is late."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = torch.distributed.TCPStore("127.0.0.1", server.port)
    exchange = Exchange(client, 0, 2, timeout=0.01)
    exchange.share(1, rows_of(exchange))
    del server
    with pytest.raises(torch.distributed.DistNetworkError):
        exchange.share(2, rows_of(exchange))


@pytest.mark.parametrize("accumulating", [False, True])
def test_a_late_process_applies_what_was_decided_without_forwards(accumulating):
    store = torch.distributed.HashStore()
    models = [model_of(), model_of()]
    first, late = (
        ZOSGD(m.named_parameters(), 0.01, EPS, exchange=Exchange(store, r, 2, timeout=0.05))
        for r, m in enumerate(models)
    )
    decided = [first.step(lambda s=step: loss_of(models[0], s)) for step in range(4)]
    for loss in decided:
        if accumulating:
            assert late.accumulate(lambda: pytest.fail("evaluated a decided step")) == loss
            assert late.step() == loss
        else:
            assert late.step(lambda: pytest.fail("evaluated a decided step")) == loss
    assert same(bits(models[0]), bits(models[1]))


@pytest.mark.parametrize("world", [1, 2])
def test_a_training_that_goes_back_needs_a_new_exchange(world):
    """What was decided for its steps is of the losses of then."""
    store = torch.distributed.HashStore()

    def alone(prefix):
        return Exchange(torch.distributed.PrefixStore(prefix, store), 0, world, timeout=0.01)

    def steps(model, optimizer, number):
        for step in range(number):
            optimizer.step(lambda s=step: loss_of(model, s))

    model, exchange = model_of(), alone("first")
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, exchange=exchange)
    steps(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    optimizer.load_state_dict(saved[1])
    steps(model, optimizer, 2)  # not back
    optimizer.load_state_dict(saved[1])
    with pytest.raises(InputError, match="goes back to step 2, got one by which step 4 was done"):
        optimizer.step(lambda: pytest.fail("evaluated"))
    other = model_of()
    optimizer = ZOSGD(other.named_parameters(), 0.01, EPS, exchange=alone("second"))
    other.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    steps(other, optimizer, 2)
    assert same(bits(model), bits(other))


@pytest.mark.parametrize("options, message", [
    ({"rank": 2}, r"rank must be in \[0, 2\), got 2"),
    ({"share": "weights"}, "share must be one of"),
    ({"timeout": 0}, "timeout must be positive, got 0"),
    ({"check_every": 0}, "check_every must be at least 1, got 0"),
])  # fmt: skip
def test_settings(options, message):
    with pytest.raises(InputError, match=message):
        Exchange(torch.distributed.HashStore(), **{"rank": 0, "world_size": 2, **options})


def test_in_place_floats_are_not_exchanged():
    exchange = Exchange(torch.distributed.HashStore(), 0, 1)
    with pytest.raises(InputError, match="inplace"):
        ZOSGD(model_of().named_parameters(), 0.01, EPS, restore="inplace", exchange=exchange)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_has_a_perturbation_to_evaluate(rank):
    def training(share):
        exchange = Exchange(torch.distributed.HashStore(), rank, 2, share=share)
        ZOSGD(model_of().named_parameters(), 0.01, EPS, 1, exchange=exchange)

    training("data")
    with pytest.raises(InputError, match=r"num_perturbations must be at least 2 where .*, got 1"):
        training("perturbations")
