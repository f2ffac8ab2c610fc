"""Peak memory per phase: the most bytes of live tensor storage at any moment.

On a GPU the figures are those of CUDA's caching allocator. On the CPU a dispatch mode sees every
operation and counts each storage once while it is alive: weights, also those mapped from a file,
activations, what gradient checkpointing recomputes, gradients and optimizer state. Scratch that an
operation takes and frees inside is not seen. Beside it stands the anonymous resident memory of
the whole process, where the system reports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .budget import Budget, readable
from .errors import InputError

_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE = 256 * 1024  # bytes
_MOST_MAPPED = 32 * 2**20  # where the limit ends up by itself


class OverBudget(Exception):
    """More bytes were alive than allowed."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of CPU tensor storage that are alive, and their peak, while entered.

    What is alive at the start counts too, unless ``found`` is False: finding it takes some tenths
    of a second. What is in ``others`` never does. Every operation takes some tens of microseconds
    more. More than ``limit`` bytes raise :class:`OverBudget`.

    Example:
        >>> with LiveStorage() as live:
        ...     before = live.bytes
        ...     for _ in range(3):
        ...         x = torch.ones(1000)  # the next is made while the last one is alive
        >>> live.peak - before
        8000
    """

    def __init__(
        self, found: bool = True, limit: int | None = None, others: _Storages | None = None
    ) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._found = found
        self._limit = limit
        self._others = _Storages() if others is None else others
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def __enter__(self) -> LiveStorage:
        if self._found:
            self._count_living()
        return super().__enter__()

    def _count_living(self) -> None:
        for tensor in _living():
            self._count(tensor)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._alive.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "prim::device":  # C++ asks tensors of Python's: half of all calls
            return args[0].device
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        if (storage := _storage_of(tensor)) is None:
            return
        key, size = id(storage), storage.nbytes()  # torch keeps one object per living storage
        if key in self._others:
            return
        if key in self._alive:
            counted = self._alive[key][1]
            if size == counted:
                return
            self.bytes -= counted  # resized
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key)), size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        if self._limit is not None and self.bytes > self._limit:
            raise OverBudget(self.bytes)

    def _forget(self, key: int) -> None:
        if key in self._alive:
            self.bytes -= self._alive.pop(key)[1]


def _storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Where a tensor's elements are in the CPU's memory, if they are there in one piece."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage()


_Storages = weakref.WeakValueDictionary[int, torch.UntypedStorage]  # by id, while they live


def _living() -> Iterator[Tensor]:
    """All tensors of the process."""
    gc.collect()
    for found in gc.get_objects():
        # By type: isinstance would run the code of proxy objects.
        # What torch.compile keeps of its traces has a size, and no storage behind it.
        if issubclass(type(found), Tensor) and not issubclass(type(found), FakeTensor):
            yield found


class MemoryRecorder:
    """Peak bytes of each phase of a run on one device; a context manager.

    Entering a phase more than once keeps the highest peak. On the CPU one :class:`LiveStorage`
    counts through consecutive measured phases.
    """

    def __init__(
        self,
        device: torch.device,
        budget: Budget | None = None,
        found: bool = True,
        own: Iterable[Tensor] | None = None,
    ) -> None:
        """
        Args:
            budget: What a measured phase may take; more of it stops the run.
            found: Whether tensors count that exist already.
            own: Those of them that do, where the others are of somebody else; on the CPU.
        """
        self.device = device
        self._budget = budget
        self._found = found
        self._others = None if own is None else _storages_but(own)
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.process: dict[str, int] = {}
        self._live: LiveStorage | None = None
        self._watch = _ResidentWatch()
        if (resident := anonymous_resident_bytes()) is not None:
            self.process["at_start"] = resident

    def __enter__(self) -> MemoryRecorder:
        self._watch.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop_counting()
        self._watch.stop()

    @contextlib.contextmanager
    def phase(self, name: str, measured: bool = True) -> Iterator[None]:
        """Attribute what is alive meanwhile to the phase ``name``.

        ``measured=False`` leaves out the count of tensors on the CPU, which slows operations down:
        a step whose shapes repeat those of a measured one has the same peak. Allocator and process
        figures cost nothing and are always taken.
        """
        started = perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not measured:
            self._stop_counting()
        self._watch.restart()
        try:
            if measured and self.device.type != "cuda":
                return_freed_memory()
                self._count_from_here()
            yield
        except (OverBudget, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                raise
            raise InputError(self._too_much(name, error)) from error
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self._raise_to(self.peaks, name, peak)
            if self._budget and not self._budget.of_process and peak > self._budget.bytes:
                raise InputError(self._too_much(name, OverBudget(peak)))
        elif self._live is not None:
            self._raise_to(self.peaks, name, self._live.peak)
        if (resident := self._watch.peak()) is not None:
            self._raise_to(self.process, name, resident)
            if self._budget and self._budget.of_process and resident > self._budget.bytes:
                raise InputError(self._too_much(name, OverBudget(resident)))
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - started

    def _too_much(self, phase: str, error: Exception) -> str:
        if isinstance(error, OverBudget):
            assert self._budget is not None
            what = f"the budget is {readable(self._budget.bytes)}, it takes {readable(error.size)}"
        else:
            peak = self._live.peak if self._live is not None else 0
            if self.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(self.device)
            what = f"{self.device} has no more, at a peak of {readable(peak)}"
        return (
            f"out of memory in the phase {phase}: {what}; a smaller resolution, checkpointing=true"
            ", weights=int8, hollow or offload=stream take less, and `sopt plan` says how much"
        )

    def summary(self) -> dict[str, Any]:
        """What ``memory.json`` holds: peak bytes by phase, and under ``process_anonymous`` the
        process's anonymous resident bytes, at the start and the highest seen in each phase."""
        return {**self.peaks, "process_anonymous": dict(self.process)}

    def _count_from_here(self) -> None:
        if self._live is None:
            limit = self._budget.bytes if self._budget and not self._budget.of_process else None
            live = LiveStorage(self._found, limit, self._others)
            live.__enter__()  # raises where too much is alive already
            self._live = live
        self._live.peak = self._live.bytes

    def _stop_counting(self) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    @staticmethod
    def _raise_to(figures: dict[str, int], name: str, value: int) -> None:
        figures[name] = max(value, figures.get(name, 0))


def _storages_but(own: Iterable[Tensor]) -> _Storages:
    """All of the process but those of ``own``."""
    counted = {id(_storage_of(tensor)) for tensor in own}
    others = _Storages()
    for storage in map(_storage_of, _living()):
        if storage is not None and id(storage) not in counted:
            others[id(storage)] = storage
    return others


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or, which has no class of its own, of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _ResidentWatch:
    """The highest anonymous resident memory of the process, read every ``INTERVAL`` seconds."""

    INTERVAL = 0.02

    def __init__(self) -> None:
        self._seen = [
            0
        ]  # a new list at each restart: what the thread looked at before goes nowhere
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resident memory", daemon=True)

    def start(self) -> None:
        if anonymous_resident_bytes() is not None:
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def restart(self) -> None:
        """Forget what was seen."""
        self._seen = [0]

    def peak(self) -> int | None:
        """The highest since the last restart; None where the system does not say."""
        now = anonymous_resident_bytes()
        return None if now is None else max(now, *self._seen)

    def _run(self) -> None:
        while not self._stopped.wait(self.INTERVAL):
            seen = self._seen
            seen[0] = max(seen[0], anonymous_resident_bytes() or 0)


def return_freed_memory() -> None:
    """Give the system back what the C library's allocator keeps of freed blocks: after training
    SD1.5 at 512 pixels, some hundreds of MiB that sampling could not use in one piece."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)


@contextlib.contextmanager
def mapped_blocks() -> Iterator[None]:
    """Have the C library's allocator give each larger block that is allocated meanwhile pages of
    its own, which the system has back as soon as it is freed.

    Otherwise it raises its limit up to 32 MiB, as blocks are freed, and keeps their memory in
    pieces that larger tensors do not fit into: 270 MiB after a streamed backprop step of SD1.5,
    whose tensors take 240. With activations in pages of their own too, denoising takes a fifth more
    time: runs that have the whole network in memory do this for its weights alone, which live long,
    so that activations do not lie scattered between them.
    """
    before = _mapped[0]
    _map_blocks_of(min(_LARGE, before))
    try:
        yield
    finally:
        _map_blocks_of(before)


_mapped = [_MOST_MAPPED]  # the process's limit, in a list that functions can write into


def _map_blocks_of(size: int) -> None:
    _mapped[0] = size
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, size)
        # As glibc itself keeps them. With its first limit of 128 KiB a backprop step of SD1.5 at
        # 256 pixels took 2.35 s instead of 2.00: the heap's end goes and comes with activations.
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * size)


def anonymous_resident_bytes() -> int | None:
    """Resident memory of this process that no file backs; None where the system does not say."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None
