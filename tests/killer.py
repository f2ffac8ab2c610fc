"""Runs that are killed: continued, each must end with the unbroken bytes.

As a program it imports everything once and forks a child for each run, so a run takes a second.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def killed_runs(
    settings: dict[str, Any],
    results: Sequence[str],
    kills: int,
    wanted: Sequence[str] = ("stage 2",),
) -> dict[str, int]:
    """Kill runs until ``kills`` of them were in each of the stages ``wanted``.

    Args:
        settings: Of the run; ``output`` is a folder for all of them.
        results: Files of the run folder that must have the unbroken run's bytes in the end.

    Returns:
        Kills by stage: before anything was there, in "stage 1" (of a hollow, whose activations are
        there), in "stage 2" (steps).
    """
    given = [settings, list(results), kills, list(wanted), random.randrange(2**32)]
    here = Path(__file__).parent
    paths = [str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(given)],
        # A fork copies one thread only, so torch must not have started others.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def kill_at_loss(settings: dict[str, Any], loss: str, number: int) -> None:
    """Train in another process, and kill it when it calls ``loss``, a function by the path that
    the run calls it by, for the ``number``-th time."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, loss, str(number), json.dumps(settings)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


_KILLED = """
import importlib, json, os, signal, sys
import sopt
path, number, settings = sys.argv[1:]
module, _, name = path.rpartition(".")
module, calls = importlib.import_module(module), []
losses = getattr(module, name)
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(*arguments, **options)
setattr(module, name, killed)
sopt.train(**json.loads(settings))
"""


def _kill_until(
    settings: dict[str, Any], results: list[str], kills: int, wanted: list[str], seed: int
) -> dict[str, int]:
    chance, folder = random.Random(seed), Path(settings["output"])
    output = folder / "unbroken" / "run"
    _, longest = _run(settings, output)
    expected = [(output / name).read_bytes() for name in results]
    killed = {"start": 0, "stage 1": 0, "stage 2": 0}
    output = folder / "killed" / "run"
    while any(killed[stage] < kills for stage in wanted):
        was_killed, _ = _run(settings, output, chance.uniform(0, longest))
        if was_killed:
            begun = (output / "history.jsonl").exists()
            stored = (output / "activations.safetensors").exists()
            killed["stage 2" if begun else "stage 1" if stored else "start"] += 1
        _run(settings, output)
        assert [(output / name).read_bytes() for name in results] == expected, killed
        shutil.rmtree(output.parent)
    return killed


def _run(
    settings: dict[str, Any], output: Path, seconds: float | None = None
) -> tuple[bool, float]:
    """Train in a child, killed after some seconds if given: whether it was, and the time taken."""
    import sopt

    started = time.monotonic()
    if not (child := os.fork()):
        sopt.train(**settings | {"output": str(output)})
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert seconds is not None or status == 0, status
    return os.WIFSIGNALED(status), time.monotonic() - started


if __name__ == "__main__":
    from pipelines import SkipMemory, draw_blank

    import sopt.memory
    import sopt.trainer

    sopt.trainer.generate = draw_blank
    sopt.memory.LiveStorage = SkipMemory
    print(json.dumps(_kill_until(*json.loads(sys.argv[1]))))
