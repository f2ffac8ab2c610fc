"""A memory limit on the current process that the kernel enforces, by a control group."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Where groups are made, the file of the limit and that of the highest use: version 2, version 1.
_VERSIONS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
)


class MemoryLimit:
    """A control group of its own for this process, which is killed when it needs more.

    The kernel counts what the process and its files in the page cache occupy, and lets go of the
    latter first.

    Raises:
        SystemExit: The system does not let this user limit memory.
    """

    def __init__(self) -> None:
        for root, limit, peak in _VERSIONS:
            self._folder, self._limit, self._peak = root / f"sopt-{os.getpid()}", limit, peak
            if not (root / "cgroup.procs").exists() or not os.access(root, os.W_OK):
                continue
            self._folder.mkdir()
            if (self._folder / limit).exists():
                (self._folder / "cgroup.procs").write_text(str(os.getpid()))
                return
            self._folder.rmdir()
        sys.exit("--limit needs a control group for memory that this user may make")

    def set(self, size: int) -> None:
        """Allow so many bytes from now on."""
        (self._folder / self._limit).write_text(str(size))

    def close(self) -> int | None:
        """Take the limit away; the highest use in bytes, where the kernel says."""
        peak = self._folder / self._peak
        found = int(peak.read_text()) if peak.exists() else None
        (self._folder.parent / "cgroup.procs").write_text(str(os.getpid()))
        self._folder.rmdir()
        return found
