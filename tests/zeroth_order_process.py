"""One process of a training by several: ``zeroth_order_process.py FOLDER PORT RANK WORLD SHARE``.

With PORT 0, RANK and WORLD are torchrun's. Does STEPS steps, slowly where FOLDER has a file
``slow``, and writes the weights' hash, the bytes exchanged and the losses as JSON. Leaves at the
step that ``exit-<rank>`` names, if there is such a file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from small_models import EPS, loss_of, model_of

from sopt.optim import ZOSGD, Exchange

STEPS, PERTURBATIONS = 30, 4


def main() -> None:
    folder, port, rank, world, share = sys.argv[1:]
    torch.set_num_threads(1)
    options = {"share": share, "timeout": 20.0, "check_every": 5}
    if int(port):
        timeout = timedelta(seconds=300)
        store = torch.distributed.TCPStore("127.0.0.1", int(port), timeout=timeout)
        options["timeout"] = 3.0
        exchange = Exchange(store, int(rank), int(world), **options)
        store.add("ready", 1)  # imports take much longer than the time limit
        while store.add("ready", 0) < int(world):
            time.sleep(0.01)
    else:
        torch.distributed.init_process_group("gloo")
        exchange = Exchange.from_environment(**options)
    files = Path(folder)
    log = files / f"log-{exchange.rank}.zolog"
    model = model_of()
    optimizer = ZOSGD(
        model.named_parameters(), 0.01, EPS, PERTURBATIONS, log=log, exchange=exchange
    )
    replayed, losses, evaluated = optimizer.resume(), [], 0
    leave = files / f"exit-{exchange.rank}"

    def closure(step: int) -> torch.Tensor:
        nonlocal evaluated
        evaluated += 1
        if (files / "slow").exists():
            time.sleep(0.005)
        own = exchange.rank if share == "data" else 0
        return loss_of(model, 100 * step + own)

    for step in range(replayed, STEPS):
        if leave.exists() and step == int(leave.read_text()):
            leave.unlink()
            os._exit(3)
        losses.append(optimizer.step(lambda s=step: closure(s)).item())
    exchanged = exchange.sent + exchange.received
    result = {"digest": optimizer.digest(), "bytes": exchanged, "losses": losses}
    result |= {"replayed": replayed, "evaluated": evaluated}
    (files / f"result-{exchange.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
