"""The seed log: all that a run did to its weights, in about 12 bytes a perturbation.

A file is a header and rows of 12 bytes, little-endian:

======  ========  ==========================================================================
offset  type      content
======  ========  ==========================================================================
0       uint32    step, from 1
4       float32   value
8       uint16    what: perturbation index n, or ``SETTING | 8 * group + field``; ``LAST`` is set
                  in the last row of a step
10      uint16    CRC-16 of the bytes above, continued from the row before (the header's for the
                  first), so that a row is valid only after all rows before it
======  ========  ==========================================================================

A step is the settings that changed, then for each perturbation its coefficient in each group that
takes part. Seeds are functions of the run's seed, the step and n, and need no bytes.
The header is the magic, the lengths of the rest and its BLAKE2b, and compressed JSON.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_all, write_bytes

logger = logging.getLogger(__name__)

MAGIC = b"sopt seeds 1\n"
PREFIX = struct.Struct("<I16s")  # bytes of JSON, compressed; their BLAKE2b
ROW = struct.Struct("<IfH")
CRC = struct.Struct("<H")
ROW_BYTES = ROW.size + CRC.size
LAST, SETTING = 1 << 15, 1 << 14
MOST_PERTURBATIONS = 1 << 14


@dataclass(frozen=True)
class GroupSettings:
    """What a parameter group was set to in a step; float32 values."""

    enabled: float = 1.0  # 0: neither perturbed nor updated
    eps: float = 0.0
    decay: float = 1.0  # factor of the weights, 1 - lr * weight_decay
    lr: float = 0.0  # where the coefficients do not have it already: with momentum, and in Adam
    momentum: float = 0.0

    @classmethod
    def rounded(cls, *values: float) -> GroupSettings:
        """The settings as the log holds them, in float32: a step uses no others."""
        return cls(*struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


FIELDS = [field.name for field in fields(GroupSettings)]


@dataclass(frozen=True)
class Update:
    """What a step did: in group j, ``c[n][j] z(seed_n)`` was added for n in ``indices``.

    To the weights, or with momentum and in Adam to the estimate of the gradient. Groups that are
    not enabled have the coefficient 0. A step that was skipped has no indices.
    """

    step: int
    settings: list[GroupSettings]
    indices: list[int]
    coefficients: list[list[float]]  # one list per index, one float32 per group

    @property
    def skipped(self) -> bool:
        """Whether a step that was to have an effect had none.

        One for which no group is enabled was not, whatever its losses: the log has none of them.
        """
        return not self.indices and any(group.enabled for group in self.settings)


class SeedLog:
    """An append-only file of updates.

    ``step`` is the last whole step in it.

    Example:
        >>> log = SeedLog.create("run.zolog", {"seed": 0, "groups": 1})
        >>> log.append(Update(1, [GroupSettings(eps=1e-3)], [0], [[-0.5]]))
        >>> [update.coefficients for update in SeedLog("run.zolog").updates()]
        [[[-0.5]]]
    """

    def __init__(self, path: str | Path) -> None:
        """Open a log.

        Raises:
            InputError: There is no such file, or it is not a seed log, or its header is damaged.
        """
        self.path = Path(path)
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"log: there is no file {path}") from error
        start = len(MAGIC) + PREFIX.size
        if not data.startswith(MAGIC) or len(data) < start:
            raise InputError(f"log: {path} is not a seed log")
        size, checksum = PREFIX.unpack_from(data, len(MAGIC))
        body = data[start : start + size]
        if _checksum(body) != checksum:
            raise InputError(f"log: the header of {path} is damaged")
        self.header: dict[str, Any] = json.loads(zlib.decompress(body))
        self._groups: int = self.header["groups"]
        self._start = start + size
        self._first_crc = binascii.crc_hqx(checksum, 0)
        self._settings: list[GroupSettings] | None = None
        self._crc = self._first_crc
        self._end = self._start
        self.step = 0
        for update, end, crc in self._scan(data):
            self.step, self._settings, self._end, self._crc = update.step, update.settings, end, crc

    @classmethod
    def create(cls, path: str | Path, header: Mapping[str, Any]) -> SeedLog:
        """Begin a log; ``header`` is plain values, among them the number of ``"groups"``.

        Raises:
            InputError: The file exists.
        """
        if Path(path).exists():
            raise InputError(f"log: {path} exists already; files are not overwritten")
        body = zlib.compress(json.dumps(header, sort_keys=True).encode(), 9)
        write_bytes(path, MAGIC + PREFIX.pack(len(body), _checksum(body)) + body)
        return cls(path)

    @classmethod
    def of_run(cls, path: str | Path, header: Mapping[str, Any], steps: int) -> SeedLog:
        """The log that a run goes on with after ``steps`` steps: a new one if there are none.

        Raises:
            InputError: There is a file without these steps, or none with them; or it is of a run
                with another header, but for the weights, which are those after ``steps`` here.
        """
        if not Path(path).exists():
            if steps:
                raise InputError(f"log: there is no file {path} with {steps} steps")
            return cls.create(path, header)
        log = cls(path)
        if not steps:
            raise InputError(
                f"log: {path} holds {log.step} steps already; call resume() or "
                "load_state_dict() to continue it, or choose another file"
            )
        log.check({**header, "weights": log.header["weights"]})
        return log.truncated(steps)

    @property
    def torn_bytes(self) -> int:
        """How many bytes after the last whole step do not belong to one."""
        return self.path.stat().st_size - self._end

    def updates(self, last: int | None = None) -> Iterator[Update]:
        """The steps in order, up to and including step ``last``."""
        for update, _, _ in self._scan(self.path.read_bytes()[: self._end]):
            if last is not None and update.step > last:
                return
            yield update

    def check(self, header: Mapping[str, Any]) -> None:
        """InputError unless the log's header has these values."""
        told = {
            "tensors": "names, shapes or dtypes",
            "weights": "first weights",
            "constants": "constants of its groups",
        }
        for key, value in header.items():
            if self.header.get(key) != value:
                raise InputError(
                    f"log: {self.path} is of a run with other {told.get(key, key)}: "
                    f"{self.header.get(key)!r} there, {value!r} here"
                )

    def append(self, update: Update) -> None:
        """Write a step after the last whole one.

        Raises:
            InputError: It is not the next.
            OSError: The disk is full, and so on. What was written of the step is torn, and cut off
                by the next.
        """
        if update.step != self.step + 1:
            raise InputError(
                f"update must be step {self.step + 1}, the next of log {self.path}, "
                f"got step {update.step}"
            )
        if self.torn_bytes:
            logger.warning("log %s: %d bytes of a torn step cut off", self.path, self.torn_bytes)
            os.truncate(self.path, self._end)
        rows = self._setting_rows(update)
        rows += [
            (value, n)
            for n, values in zip(update.indices, update.coefficients, strict=True)
            for value, settings in zip(values, update.settings, strict=True)
            if settings.enabled
        ]
        if not rows:  # a skipped step
            rows = [(update.settings[0].enabled, SETTING)]
        data, crc = b"", self._crc
        for k, (value, what) in enumerate(rows):
            row = ROW.pack(update.step, value, what | (LAST if k == len(rows) - 1 else 0))
            crc = binascii.crc_hqx(row, crc)
            data += row + CRC.pack(crc)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
        self._end += len(data)
        self.step, self._settings, self._crc = update.step, update.settings, crc

    def truncated(self, step: int) -> SeedLog:
        """The log after its steps from ``step + 1`` on were cut off, in the file too.

        Raises:
            InputError: The log ends before ``step``.
        """
        if self.step < step:
            raise InputError(
                f"log: {self.path} ends at step {self.step}, before step {step} of the state"
            )
        ends = [end for update, end, _ in self._scan(self.path.read_bytes()) if update.step <= step]
        os.truncate(self.path, max(ends, default=self._start))
        return SeedLog(self.path)

    def _setting_rows(self, update: Update) -> list[tuple[float, int]]:
        before: Sequence[GroupSettings | None] = self._settings or [None] * self._groups
        return [
            (value, SETTING | 8 * group + field)
            for group, (new, old) in enumerate(zip(update.settings, before, strict=True))
            for field, value in enumerate(astuple(new))
            if old is None or value != astuple(old)[field]
        ]

    def _scan(self, data: bytes) -> Iterator[tuple[Update, int, int]]:
        """Whole steps, each with the offset and the CRC after it."""
        settings = [asdict(GroupSettings()) for _ in range(self._groups)]
        values: dict[int, list[float]] = {}
        crc = self._first_crc
        for offset in range(self._start, len(data) - ROW_BYTES + 1, ROW_BYTES):
            row = data[offset : offset + ROW.size]
            crc = binascii.crc_hqx(row, crc)
            if CRC.unpack_from(data, offset + ROW.size) != (crc,):
                return
            step, value, what = ROW.unpack(row)
            if what & SETTING:
                group, field = divmod(what & ~(LAST | SETTING), 8)
                settings[group][FIELDS[field]] = value
            else:
                values.setdefault(what & ~LAST, []).append(value)
            if what & LAST:
                now = [GroupSettings(**s) for s in settings]
                enabled = [s.enabled for s in now]
                coefficients = [
                    [next(rest) if e else 0.0 for e in enabled]
                    for rest in map(iter, values.values())
                ]
                yield Update(step, now, list(values), coefficients), offset + ROW_BYTES, crc
                values = {}


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
