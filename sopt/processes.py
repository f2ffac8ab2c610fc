"""A run by several processes, as torchrun starts them; in one process nothing of this happens.

All processes hold all weights, the same bits. In a zeroth-order step they divide the perturbations
and exchange losses; in a backprop step each takes a sample of its own and gradients are averaged.
Process 0 alone writes files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import PrefixStore, Store

from . import launch
from .config import TrainConfig
from .errors import InputError
from .optim.distributed import Exchange, losses_of
from .optim.tensors import digest

# Seconds that a zeroth-order step waits for the losses of a process: longer than the forwards of
# one perturbation take at 1024 pixels on two cores, by which some are ahead of the others.
TIMEOUT = 600.0
AVERAGE_TIMEOUT = timedelta(minutes=30)  # in which all come to a backprop step
LINGER = timedelta(seconds=3)  # that process 0 waits for the others to read what its error was
MOST_PERTURBATIONS = 2**16  # that the exchange can number

_runs = itertools.count()  # of this process; every process does the same ones in the same order


def check_processes(config: TrainConfig, world_size: int) -> None:
    """Raise InputError for settings that do not go with so many processes."""
    if world_size == 1:
        return
    several = f"does not go with {world_size} processes"
    if config.train != "lora":
        raise InputError(f"train={config.train!r} {several}, which train a LoRA together")
    if config.eps == "auto":
        raise InputError(f"eps='auto' {several}: have one process choose it, and give its size")
    if config.hollow is not None:
        raise InputError(
            f"hollow={config.hollow!r} {several}: activations are stored for the samples of one"
        )
    n = config.num_perturbations
    if config.schedule != 0.0 and not world_size <= n <= MOST_PERTURBATIONS:
        raise InputError(
            f"num_perturbations must be in [{world_size}, {MOST_PERTURBATIONS}] with {world_size} "
            f"processes, so that each has its share of a zeroth-order step, got {n}"
        )


def take_gpu(device: str | None) -> None:
    """Have "cuda" mean another GPU in each process of a machine.

    Raises:
        InputError: There are fewer GPUs than processes.
    """
    if launch.world_size() == 1 or device not in (None, "cuda") or not torch.cuda.is_available():
        return
    if launch.local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"device='cuda' needs a GPU for each process of a machine, this one has "
            f"{torch.cuda.device_count()}; 'cuda:0' has them share one"
        )
    torch.cuda.set_device(launch.local_rank())


class Processes:
    """The processes of one run; a context manager, whose end by an exception stops the others.

    Args:
        store: Reached by all of them, with nothing of another run in it; None for one process.
        rank: Of this process, in [0, world_size).

    Example:
        >>> alone = Processes()
        >>> alone.losses(1, [7], lambda seeds: torch.ones(len(seeds), 2))
        ([7], tensor([[1., 1.]]))
    """

    def __init__(self, store: Store | None = None, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = store
        self._group: Any = None  # a ProcessGroupGloo, for which PyTorch declares no allreduce
        if store is not None:
            inner = PrefixStore("losses", store)
            self._exchange = Exchange(
                inner, rank, world_size, share="perturbations", timeout=TIMEOUT
            )

    @classmethod
    def from_environment(cls) -> Processes:
        """Those that torchrun started; a run's keys in its store are apart from other runs'."""
        if launch.world_size() == 1:
            return cls()
        prefix = f"sopt.train/{launch.attempt()}/{next(_runs)}"
        return cls(PrefixStore(prefix, _store()), launch.rank(), launch.world_size())

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def begin(self, step: int, run: Mapping[str, Any], backprop: bool) -> None:
        """Wait until all are about to go on after ``step``.

        Args:
            run: What must be the same for all, as plain values.
            backprop: Whether gradients will be averaged.

        Raises:
            InputError: Another process would go on after another step, or with another run.
        """
        if self._store is None:
            return
        name = blake2b(json.dumps(run, sort_keys=True).encode(), digest_size=16).hexdigest()
        self._store.set(f"begin/{self.rank}", f"{step} {name}")
        for rank in range(self.world_size):
            theirs = self._wait_for(f"begin/{rank}").decode().split()
            if theirs[1] != name:
                raise InputError(
                    "settings, pictures and model must be the same in all processes, but those of "
                    f"process {rank} are not those of process {self.rank}"
                )
            if int(theirs[0]) != step:
                raise InputError(
                    f"output must be a folder that all processes see, but process {rank} finds "
                    f"step {theirs[0]} in it and process {self.rank} step {step}"
                )
        if backprop:
            inner = PrefixStore("gradients", self._store)
            self._group = torch.distributed.ProcessGroupGloo(
                inner, self.rank, self.world_size, AVERAGE_TIMEOUT
            )

    def losses(
        self, step: int, seeds: Sequence[int], evaluate: Callable[[Sequence[int]], Tensor]
    ) -> tuple[list[int], Tensor]:
        """Losses along all seeds, of which this process evaluates its share.

        Args:
            evaluate: Gives the two losses along each seed, (seeds, 2).

        Returns:
            The seeds, but for those of processes that did not answer in time, and their losses: the
            same in all processes.
        """
        if self._store is None:
            return list(seeds), evaluate(seeds)
        rows = self._exchange.decision(step)
        if rows is None:  # else the others have done this step without this process
            own = self._exchange.indices(len(seeds))
            values = evaluate([seeds[n] for n in own]).tolist()
            rows = self._exchange.share(step, [(n, *v) for n, v in zip(own, values, strict=True)])
        return [seeds[row[0]] for row in rows], losses_of(rows)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors by their mean over the processes, the same bits in all.

        Raises:
            RuntimeError: A process is gone.
        """
        if self._group is None:
            return
        flat = torch.cat([x.reshape(-1) for x in tensors]).cpu()
        try:
            self._group.allreduce([flat]).wait()
        except RuntimeError as error:
            self._raise_if_failed()
            raise RuntimeError(
                f"process {self.rank} cannot average gradients: another process is gone, or has "
                f"not come to this step within {AVERAGE_TIMEOUT}"
            ) from error
        means = flat.div_(self.world_size).split([x.numel() for x in tensors])
        for x, mean in zip(tensors, means, strict=True):
            x.copy_(mean.view_as(x))

    def compare(self, step: int, adapter: Mapping[str, Tensor]) -> None:
        """Check that all processes have the same weights after ``step``.

        Raises:
            RuntimeError: They have not.
        """
        if self._store is not None:
            self._exchange.check(step, digest(adapter[name] for name in sorted(adapter)))

    def stops(self, step: int, steps: int, interrupted: bool) -> bool:
        """Whether all stop after ``step`` of ``steps``, because one was interrupted.

        Others may be within the step after that, but not beyond: they stop after it together.

        Raises:
            RuntimeError: Another process has failed.
        """
        if self._store is None:
            return interrupted
        self._raise_if_failed()
        if interrupted:
            last = self._store.compare_set("stop", "", str(min(step + 1, steps)))
        elif self._store.check(["stop"]):
            last = self._store.get("stop")
        else:
            return False
        return step >= int(last)

    def finish(self) -> None:
        """Wait until process 0 has written the files."""
        if self._store is not None:
            if self.writes:
                self._store.set("finished", "1")
            else:
                self._wait_for("finished")

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # After a Ctrl-C all stop by themselves, and must not fail before they have.
        if self._store is not None and isinstance(error, Exception):
            text = f"{self.rank}, {type(error).__name__}: {error}"
            self._group = None  # closed, which ends the waiting of who averages gradients
            with contextlib.suppress(torch.distributed.DistError):  # gone, with who served it
                self._store.compare_set("failed", "", text)
                self._store.set(f"ended/{self.rank}", "")
                if self.rank == 0:  # which may serve the store: the others read the reason there
                    ends = [f"ended/{rank}" for rank in range(self.world_size)]
                    self._store.wait(ends, LINGER)

    def _raise_if_failed(self) -> None:
        assert self._store is not None
        try:
            failed = self._store.check(["failed"]) and self._store.get("failed").decode()
        except torch.distributed.DistNetworkError as error:
            raise RuntimeError("the process that serves the others is gone") from error
        if failed:
            raise RuntimeError(f"stopped with process {failed}")

    def _wait_for(self, key: str) -> bytes:
        assert self._store is not None
        while True:
            try:
                self._store.wait([key], timedelta(seconds=1))  # no Ctrl-C is noticed meanwhile
            except torch.distributed.DistStoreError:
                self._raise_if_failed()
            else:
                return self._store.get(key)


@cache
def _store() -> Store:
    """The store by which ``torch.distributed`` finds its processes; as long as this one lives."""
    return next(iter(torch.distributed.rendezvous("env://")))[0]
