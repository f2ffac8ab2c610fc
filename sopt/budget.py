"""Memory budgets: "2GiB" of tensors, or "process:2GiB" of the whole process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import InputError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**i for i, prefix in enumerate("kMGT", 1)}
_UNITS |= {f"{prefix}iB": 1024**i for i, prefix in enumerate("KMGT", 1)}

# What a process may take beyond its tensors: allocators keep freed memory for later, and the
# libraries have buffers of their own.
SLACK = 1.15
OVERHEAD = 120 * 2**20
# What tensors may take beyond a prediction: real runs of full size took up to 0.8 % more.
ERROR = 1.01


@dataclass(frozen=True)
class Budget:
    """An upper bound in bytes, of tensors or of the process's anonymous resident memory."""

    bytes: int
    of_process: bool = False

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """The budget that a text such as "2GiB", "1500 MB" or "process:2GiB" means.

        Raises:
            InputError: It is not a number with a unit, or not above 0.

        Example:
            >>> Budget.parse("process:1.5GiB")
            Budget(bytes=1610612736, of_process=True)
        """
        kind, _, amount = str(value).rpartition(":")
        units = "|".join(sorted(_UNITS, key=len, reverse=True))
        match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({units})", amount.strip(), re.IGNORECASE)
        if match is None or kind not in ("", "process"):
            raise InputError(
                f"memory_budget must be a size such as '2GiB', or 'process:2GiB' for the whole "
                f"process, got {value!r}"
            )
        unit = next(u for u in _UNITS if u.lower() == match[2].lower())
        size = int(float(match[1]) * _UNITS[unit])
        if size < 1:
            raise InputError(f"memory_budget must be above 0, got {value!r}")
        return cls(size, kind == "process")

    def holds(self, tensors: int, process_at_start: int | None) -> bool:
        """Whether a run with this predicted peak of tensors stays within the budget."""
        return self._needed(tensors, process_at_start) <= self.bytes

    def least(self, tensors: int, process_at_start: int | None) -> str:
        """The smallest budget of this kind, in whole MiB, that holds such a run."""
        size = -(-self._needed(tensors, process_at_start) // 2**20)
        return f"{'process:' if self.of_process else ''}{size}MiB"

    def _needed(self, tensors: int, process_at_start: int | None) -> int:
        if self.of_process:
            return process_bound(tensors, process_at_start)
        return int(ERROR * tensors)


def process_bound(tensors: int, process_at_start: int | None) -> int:
    """What the process takes at most, in bytes, for a peak of tensors in bytes."""
    return (process_at_start or 0) + int(SLACK * tensors) + OVERHEAD


def readable(size: int) -> str:
    """A size in MiB or GiB.

    Example:
        >>> readable(1717 * 2**20), readable(5 * 2**30)
        ('1717 MiB', '5.00 GiB')
    """
    return f"{size / 2**20:.0f} MiB" if size < 4 * 2**30 else f"{size / 2**30:.2f} GiB"
