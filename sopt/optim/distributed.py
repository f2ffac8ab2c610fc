"""Many processes, one training: only losses travel, a few bytes a perturbation.

Every process holds all weights. In a step it evaluates its share, posts its losses in a
:class:`torch.distributed.Store`, and applies what was decided: one list of losses, stored once and
read by all, so that the weights stay equal bit for bit whoever was late. Those who were in the last
decision take turns to decide, and wait for the others for a limited time; if the one whose turn it
is is gone, another does. Decisions stay in the store: a process that was late applies them without
forward passes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import struct
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import Store

from ..errors import InputError
from ..launch import attempt

logger = logging.getLogger(__name__)

Row = tuple[int, float, float]  # perturbation n and its two losses

_exchanges = itertools.count()  # of this process, see from_environment

SHARES = ("data", "perturbations")
ROW = struct.Struct("<Hff")


class Exchange:
    """The losses of a step, shared by processes that lose or delay none of the others.

    Args:
        store: A :class:`torch.distributed.TCPStore` that all processes reach, with nothing of
            another training in it. It lives as long as the process that serves it: under torchrun
            that is its agent.
        rank: Of this process, in [0, world_size).
        world_size: How many processes there are.
        share: ``"data"``: each process evaluates every perturbation on data of its own, and losses
            are averaged. ``"perturbations"``: each evaluates the n with n % world_size == rank.
        timeout: Seconds to wait for the losses of a process before the step goes on without
            them. The mean is then over the perturbations that are there.
        check_every: Steps between comparisons of the weights' hashes.

    ``sent`` and ``received`` count bytes of keys and values, without what a
    :class:`torch.distributed.PrefixStore` puts before keys.

    Source:
        Exchanging scalars instead of gradients: Malladi et al., NeurIPS 2023, section 2.

    Example:
        >>> store = torch.distributed.HashStore()  # for one process; else TCPStore
        >>> exchange = Exchange(store, rank=0, world_size=1)
        >>> exchange.share(1, [(0, 0.5, 0.25)])
        [(0, 0.5, 0.25)]
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        share: str = "data",
        timeout: float = 30.0,
        check_every: int = 100,
    ) -> None:
        if share not in SHARES:
            raise InputError(f"share must be one of {SHARES}, got {share!r}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be in [0, {world_size}), got {rank}")
        if not timeout > 0:
            raise InputError(f"timeout must be positive, got {timeout}")
        if check_every < 1:
            raise InputError(f"check_every must be at least 1, got {check_every}")
        self.rank, self.world_size = rank, world_size
        self.sent = self.received = 0
        self._store, self._share = store, share
        self._timeout, self._check_every = timeout, check_every
        self._alive = list(range(world_size))  # who was in the last decision
        self._last = 0  # step that was done through this exchange

    @classmethod
    def from_environment(cls, **options: object) -> Exchange:
        """The exchange of a process that torchrun started; ``options`` are those of the class.

        The store is the one through which ``torch.distributed`` finds its processes. Each exchange
        has keys of its own in it: all processes make the same ones in the same order.
        """
        store, rank, world_size = next(iter(torch.distributed.rendezvous("env://")))
        prefix = f"zo/{attempt()}/{next(_exchanges)}"
        return cls(torch.distributed.PrefixStore(prefix, store), rank, world_size, **options)  # type: ignore[arg-type]

    def indices(self, num_perturbations: int) -> range:
        """The perturbations that this process evaluates.

        Raises:
            InputError: There is none for some process.
        """
        if self._share == "data":
            return range(num_perturbations)
        if num_perturbations < self.world_size:
            raise InputError(
                f"num_perturbations must be at least {self.world_size} where as many processes "
                f"share them, got {num_perturbations}"
            )
        return range(self.rank, num_perturbations, self.world_size)

    def agree(self, step: int, header: Mapping[str, Any]) -> None:
        """Compare what a training is with that of who first went on after ``step``.

        Raises:
            InputError: They differ; or a later step was done through this exchange, whose losses
                would be taken for those of that step done again.
        """
        if step < self._last:
            raise InputError(
                f"exchange must be a new one where a training goes back to step {step}, got one "
                f"by which step {self._last} was done"
            )
        if self.world_size == 1:
            return
        own = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=8)
        name = own.hexdigest().encode()
        if self._compare_set(f"{step}/run", name) != name:
            raise InputError(
                f"exchange must be of processes that train the same, but process {self.rank} goes "
                f"on after step {step} with other weights, parameters or settings than another: "
                "did all begin with the same weights?"
            )

    def begin(self, step: int) -> int:
        """The step to go on from, of a process whose log ends at ``step``.

        At the start of a run it is the least of all logs', as the others' later steps will be done
        again, perhaps by fewer processes. A process that returns goes on from its own.

        Raises:
            InputError: The others began after ``step``.
        """
        if self.world_size == 1 or self._has(f"joined/{self.rank}"):
            return step
        deadline = time.monotonic() + self._timeout
        self._set(f"start/{self.rank}", b"%d" % step)
        steps = [
            self._get(f"start/{rank}", max(0.001, deadline - time.monotonic()))
            for rank in range(self.world_size)
        ]
        least = min(int(x) for x in steps if x is not None)
        start = int(self._compare_set("start", b"%d" % least))
        if start > step:
            raise InputError(
                f"log of process {self.rank} ends at step {step}, but the others go on from step "
                f"{start}: put a copy of one of their logs in its place"
            )
        return start

    def joined(self) -> None:
        """From now on this process's log is of this run."""
        if self.world_size > 1:
            self._set(f"joined/{self.rank}", b"1")

    def share(self, step: int, rows: Sequence[Row]) -> list[Row]:
        """Post this process's losses; what was decided, the same for all.

        Raises:
            torch.distributed.DistNetworkError: The store is gone.
        """
        own = b"".join(ROW.pack(*row) for row in rows)
        leads = self._alive[step % len(self._alive)] == self.rank
        if not leads:
            self._set(f"{step}/{self.rank}", own)
            # The leader waits for the others as long; twice that means that it is gone.
            decided = self._get(f"{step}", 2 * self._timeout)
            if decided is not None:
                return self._read(decided)
        return self._decide(step, own, wait=leads)

    def decision(self, step: int) -> list[Row] | None:
        """What was decided for ``step``, if it was."""
        if self.world_size == 1 or not self._has(f"{step}"):
            return None
        decided = self._get(f"{step}", self._timeout)
        return None if decided is None else self._read(decided)

    def done(self, step: int) -> None:
        """The step's losses are in the weights."""
        self._last = step

    def checks(self, step: int) -> bool:
        return step % self._check_every == 0

    def check(self, step: int, digest: str) -> None:
        """Compare the weights' hash with that of whoever was here first.

        Raises:
            RuntimeError: They differ.
        """
        first = self._compare_set(f"{step}/h", digest.encode())
        if first != digest.encode():
            raise RuntimeError(
                f"weights of process {self.rank} differ from the others' after step {step}: hash "
                f"{digest}, theirs {first.decode()}; did all begin with the same weights?"
            )

    def _decide(self, step: int, own: bytes, wait: bool) -> list[Row]:
        deadline = time.monotonic() + self._timeout
        posted = {self.rank: own}
        for rank in range(self.world_size):
            key = f"{step}/{rank}"
            if rank == self.rank:
                continue
            # One that missed the last decision is waited for only if it posted too late for that.
            if wait and (rank in self._alive or self._has(f"{step - 1}/{rank}")):
                value = self._get(key, max(0.001, deadline - time.monotonic()))
            else:
                value = self._get(key, self._timeout) if self._has(key) else None
            if value is not None:
                posted[rank] = value
        losses: dict[int, list[tuple[float, float]]] = {}
        for _, value in sorted(posted.items()):
            for n, plus, minus in ROW.iter_unpack(value):
                losses.setdefault(n, []).append((plus, minus))
        rows = [
            ROW.pack(n, *(sum(column) / len(pairs) for column in zip(*pairs, strict=True)))
            for n, pairs in sorted(losses.items())
        ]
        ranks = [] if len(posted) == self.world_size else sorted(posted)  # none stands for all
        header = struct.pack(f"<H{len(ranks)}H", len(ranks), *ranks)
        return self._read(self._compare_set(f"{step}", header + b"".join(rows)))

    def _read(self, decided: bytes) -> list[Row]:
        (count,) = struct.unpack_from("<H", decided)
        ranks = struct.unpack_from(f"<{count}H", decided, 2)
        self._alive = list(ranks or range(self.world_size))
        return list(ROW.iter_unpack(decided[2 + 2 * count :]))

    def _has(self, key: str) -> bool:
        self.sent += len(key)
        return self._store.check([key])

    def _set(self, key: str, value: bytes) -> None:
        self.sent += len(key) + len(value)
        self._store.set(key, value)  # type: ignore[arg-type]  # bytes will do

    def _get(self, key: str, timeout: float) -> bytes | None:
        """The value of ``key`` as soon as there is one; None if the time is over."""
        self.sent += len(key)
        try:
            self._store.wait([key], timedelta(seconds=timeout))
        except torch.distributed.DistStoreError:
            return None
        value = self._store.get(key)
        self.sent += len(key)
        self.received += len(value)
        return value

    def _compare_set(self, key: str, value: bytes) -> bytes:
        """Store ``value`` if there is none yet; what is stored."""
        self.sent += len(key) + len(value)
        stored = self._store.compare_set(key, "", value)  # type: ignore[arg-type]
        self.received += len(stored)
        return stored


def losses_of(rows: Sequence[Row]) -> Tensor:
    """The losses of a step as a tensor (perturbations, 2)."""
    pairs = [row[1:] for row in rows]
    return torch.tensor(pairs, dtype=torch.float32, device="cpu").view(-1, 2)


def warn_of_others() -> None:
    """Say that a training without an exchange is one of several, which may be meant: where all
    processes have the same data, or a closure averages its loss over them."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        logger.warning(
            "torch.distributed has %d processes, but the optimizer no exchange=: their weights "
            "differ from now on, unless all closures return the same losses",
            torch.distributed.get_world_size(),
        )
