"""The files of a run, and which run a folder holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, logged_lines, read_history
from .config import TrainConfig
from .data import Picture
from .errors import InputError
from .settings_file import OF_A_RUN, read_yaml
from .text_files import read_object


@dataclass(frozen=True)
class Run:
    """A finished run.

    ``history`` has one dictionary a step: step, branch ("bp" or "zo"), timestep, p_zo, loss and
    seconds; for bp, where several processes train, also samples, whose mean the loss is; for zo
    also seeds and coefficients, ``adapter += sum coefficients * z(seeds)``, or of a
    token the gradient's estimate, ``sum coefficients * z(seeds)``. Codes move along what z became
    when it was rounded to whole numbers, and ``clamped`` says how many met the head-room. A step
    that was skipped because its loss was not finite has loss None and ``"skipped": True``.
    The first steps of each branch take longer than the others: their memory is measured.
    ``memory`` has the peak bytes of tensors by phase, and of the process.
    """

    # The file that diffusers loads; of a token for SDXL, the one for others; of codes and scales,
    # their difference, beside which is a folder with the whole int8 model.
    adapter: Path
    memory: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)  # thousands of steps
    output: Path
    config: TrainConfig


class RunFolder:
    """Where the files of a run are, whether they are there, and whose turn it is to write them."""

    def __init__(self, path: str | Path, adapters: Sequence[Path] = ()) -> None:
        """
        Args:
            adapters: The files that the run's adapter is written to.
        """
        self.path = Path(path)
        self.adapters = list(adapters)
        self.config = self.path / OF_A_RUN
        self.history = self.path / "history.jsonl"
        self.checkpoint = self.path / "checkpoint" / "state.safetensors"
        self.before = self.path / "samples" / "before.png"
        self.after = self.path / "samples" / "after.png"
        self.memory = self.path / "memory.json"  # the last to be written
        self.report = self.path / "report.html"
        self._descriptor: int | None = None  # of the folder, while it is locked

    @property
    def results(self) -> list[Path]:
        return [*self.adapters, self.before, self.after, self.memory]

    def previous(self, settings: Mapping[str, Any], resume: str) -> Checkpoint | None:
        """The checkpoint to continue from; None for a new run, or one without a checkpoint yet.

        Raises:
            InputError: The folder holds a run with other settings, any run if ``resume`` is
                "never", a damaged checkpoint, or files of the same names that no run of ours made.
        """
        started = self.config.exists() or self.checkpoint.exists()
        strangers = [
            file.name for file in [*self.results, self.history, self.report] if file.exists()
        ]
        if not started and strangers:
            raise InputError(
                f"output {str(self.path)!r} has a file {strangers[0]} but no run; "
                "files are not overwritten: choose another folder"
            )
        if started and resume == "never":
            raise InputError(
                f"output {str(self.path)!r} holds a run already and resume is 'never'; "
                "choose another folder, or resume='auto' to continue"
            )
        if self.config.exists():
            # The pictures are compared by content, below: they may have moved. So is what else
            # only the checkpoint knows.
            by_content = {name: settings[name] for name in ("images", "prior_images")}
            known = {**settings, **read_yaml(self.config), **by_content}
            self._check_same(known, settings)
        if not self.checkpoint.exists():
            return None
        checkpoint = Checkpoint.load(self.checkpoint)
        self._check_same(checkpoint.settings, settings)
        logged_lines(self.history, checkpoint.step)
        return checkpoint

    def lock(self) -> Path:
        """Make the folder if it is missing, and keep other runs out of it until :meth:`close`.

        The lock is on the folder itself: it leaves no file, and ends with the process. Locking it
        once more changes nothing.

        Returns:
            The folder.

        Raises:
            InputError: Another run is at work in the folder.
        """
        if self._descriptor is not None:
            return self.path
        self.path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"output {str(self.path)!r} is in use by a run that is still going on; "
                "wait for it, or choose another folder"
            ) from error
        return self.path

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def finished(self, checkpoint: Checkpoint, config: TrainConfig) -> bool:
        """Whether all that a run with these settings writes is there."""
        left_out = () if config.samples else (self.before, self.after)
        files = [file for file in self.results if file not in left_out]
        return checkpoint.step == config.steps and all(file.exists() for file in files)

    def run(self, config: TrainConfig) -> Run:
        """The result of a run that is finished."""
        return Run(
            adapter=self.adapters[0],
            memory=read_object(self.memory, "output: "),
            history=read_history(self.history),
            output=self.path,
            config=config,
        )

    def _check_same(self, previous: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if previous.get(name) != value:
                raise InputError(
                    f"output {str(self.path)!r} holds a run with {name}={previous.get(name)!r}, "
                    f"this one has {name}={value!r}: choose another folder, or the same settings"
                )


def picture_fingerprint(pictures: Sequence[Picture]) -> str:
    """A name for what the run sees of the pictures: BLAKE2b over their sizes, captions, repeats and
    pixels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        image = picture.image
        digest.update(json.dumps([image.size, picture.caption, picture.repeats]).encode() + b"\n")
        digest.update(image.tobytes())
    return f"{len(pictures)} pictures with checksum {digest.hexdigest()}"
