"""A memory limit that the kernel enforces, by a control group."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

# Where groups are made; the files of the limit, of that with swap, and of the highest use.
_VERSION_2 = (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max", "memory.peak")
_VERSION_1 = (
    Path("/sys/fs/cgroup/memory"),
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.max_usage_in_bytes",
)


class MemoryLimit:
    """A control group: processes that are started inside it are killed when they need more.

    The kernel counts what they occupy and what they were the first to read of files, and lets go
    of the latter first. Nothing is limited before :meth:`set`.

    Raises:
        SystemExit: The system does not let this user limit memory.
    """

    def __init__(self) -> None:
        self._own = os.getpid()
        for version in (_VERSION_2, _VERSION_1):
            self._root, self._limit, self._swap, self._peak = version
            self._folder = self._root / f"sopt-{self._own}"
            if not (self._root / "cgroup.procs").exists() or not os.access(self._root, os.W_OK):
                continue
            self._folder.mkdir()
            if (self._folder / self._limit).exists():
                return
            self._folder.rmdir()
        sys.exit("--limit needs a control group for memory that this user may make")

    def __enter__(self) -> MemoryLimit:
        """Have processes that this one starts be in the group."""
        self._before = _group_of_this_process(self._root)
        (self._folder / "cgroup.procs").write_text(str(self._own))
        return self

    def leave(self) -> None:
        """Take this process out again; those that it started stay."""
        (self._before / "cgroup.procs").write_text(str(self._own))

    def set(self, size: int) -> None:
        """Allow so many bytes from now on, and no swap."""
        (self._folder / self._limit).write_text(str(size))
        if (swap := self._folder / self._swap).exists():
            swap.write_text("0" if self._root == _VERSION_2[0] else str(size))

    def peak(self) -> int | None:
        """The highest use in bytes, where the kernel says."""
        file = self._folder / self._peak
        return int(file.read_text()) if file.exists() else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the group; its processes must have ended."""
        self.leave()
        self._folder.rmdir()


def _group_of_this_process(root: Path) -> Path:
    name = "" if root == _VERSION_2[0] else "memory"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if name in controllers.split(","):
            return root / path.lstrip("/")
    return root
