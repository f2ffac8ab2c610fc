"""Runs of ``sopt.train`` by several processes, one after the other: ``train_together.py RUNS``.

RUNS is a JSON list of objects: ``world`` processes with these ``settings``, of which number
``rank`` does ``act`` when it evaluates its ``loss``-th loss. Prints, for each run and process, how
it ended and the hashes of its weights by step. This process imports everything, then forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest
from pipelines import SkipMemory, act_at_loss, draw_blank

import sopt
import sopt.memory
import sopt.processes
import sopt.trainer
from sopt.optim.tensors import digest

trainings = []


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def drift():
    next(iter(trainings[0].adapter.values())).data.view(-1)[0] += 2.0**-12


def process(run, rank, port, result):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(run["world"]),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    patch, digests = pytest.MonkeyPatch(), {}
    make, compare = sopt.trainer.make_training, sopt.processes.Processes.compare

    def made(*arguments):
        trainings.append(make(*arguments))
        return trainings[0]

    def compared(self, step, adapter):
        digests[step] = digest(adapter[name] for name in sorted(adapter))
        compare(self, step, adapter)

    patch.setattr(sopt.trainer, "make_training", made)
    patch.setattr(sopt.processes.Processes, "compare", compared)
    patch.setattr(sopt.processes, "TIMEOUT", run.get("timeout", 60.0))
    if run.get("rank") == rank:
        act_at_loss(patch, run["loss"], globals()[run["act"]])
    try:
        sopt.train(**run["settings"])
        end = "done"
    except BaseException as error:  # noqa: BLE001  the test looks at it
        end = f"{type(error).__name__}: {error}"
    result.write_text(json.dumps({"end": end, "digests": digests}))
    time.sleep(0.2 * (rank == 0))  # it serves the others' keys
    os._exit(0)


def results_of(run, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, files = [], [folder / f"{rank}.json" for rank in range(run["world"])]
    for rank, file in enumerate(files):
        child = os.fork()
        if child == 0:
            process(run, rank, port, file)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads(x.read_text()) if x.exists() else {"end": "killed"} for x in files]


if __name__ == "__main__":
    sopt.trainer.generate = draw_blank
    sopt.memory.LiveStorage = SkipMemory
    found = []
    for run in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            found.append(results_of(run, Path(folder)))
    print(json.dumps(found))
