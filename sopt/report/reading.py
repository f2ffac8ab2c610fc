"""A run's folder as the report sees it: whole, or as far as the run got."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import InputError
from ..files import load_metadata
from ..run_folder import RunFolder
from ..settings_file import OF_A_RUN, read_yaml
from ..text_files import parse_object, read_object, read_text
from . import checking

RECORD = "record.json"  # versions, machine, seconds of each phase


@dataclass(frozen=True)
class RunFiles:
    """What is in a run's folder; ``memory`` and ``record`` are empty before the run's end."""

    path: Path
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    memory: dict[str, Any]
    record: dict[str, Any]
    subjects: str | None  # what the run saw of the subject's pictures, if a checkpoint says it

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def steps(self) -> int:
        return int(self.settings.get("steps", len(self.history)))

    @property
    def schedule(self) -> Any:
        return self.settings.get("schedule")

    @property
    def low_res_ratio(self) -> float:
        return float(self.settings.get("low_res_ratio", TrainConfig.low_res_ratio))

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.steps and bool(self.memory)

    @property
    def num_train_timesteps(self) -> int:
        return int(self.record.get("num_train_timesteps", 1000))

    @property
    def peaks(self) -> dict[str, int]:
        """Peak bytes of tensors by phase."""
        return {phase: size for phase, size in self.memory.items() if isinstance(size, int)}

    @property
    def process(self) -> dict[str, int]:
        """Bytes of the process, at the run's start and by phase."""
        found = self.memory.get("process_anonymous", {})
        return {name.replace("_", " "): size for name, size in found.items()}

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase: training by the steps, of all processes that worked on the run."""
        phases = dict(self.record.get("seconds", {}))
        for branch in ("bp", "zo"):
            times = [each["seconds"] for each in self.history if each["branch"] == branch]
            if times:
                phases[f"train-{branch}"] = sum(times)
        order = ("load", "cache", "precompute", "train-bp", "train-zo", "save", "sample")
        return {phase: phases[phase] for phase in sorted(phases, key=_index(order))}

    def losses(self, branch: str) -> list[tuple[int, float]]:
        """(step, loss) of a branch's steps; those that were skipped have none."""
        return [
            (each["step"], each["loss"])
            for each in self.history
            if each["branch"] == branch and checking.is_number(each.get("loss"))
        ]

    @property
    def skipped(self) -> int:
        return sum(bool(each.get("skipped")) for each in self.history)

    def picture(self, name: str) -> Path | None:
        """The sample ``name`` ("before" or "after"), if it was drawn."""
        file = self.path / "samples" / f"{name}.png"
        return file if file.is_file() else None


def read_run(path: str | Path) -> RunFiles:
    """The files of a run that is finished, at work, or was stopped at any moment.

    Raises:
        InputError: There is no run in the folder, or a file of it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise InputError(f"run: there is no folder {path}")
    config = path / OF_A_RUN
    if not config.exists():
        raise InputError(f"run: the folder {path} holds no run: it has no {config.name}")
    run = RunFiles(
        path=path,
        settings=read_yaml(config),
        history=_read_history(path / "history.jsonl"),
        memory=_read_json(path / "memory.json"),
        record=_read_json(path / RECORD),
        subjects=_read_subjects(RunFolder(path).checkpoint),
    )
    checking.check_settings(config, run.settings)
    checking.check_memory(path / "memory.json", run.memory)
    checking.check(path / RECORD, run.record, checking.RECORD)
    return run


def _read_history(file: Path) -> list[dict[str, Any]]:
    """The whole lines; a run that is at work, or was killed, may have left part of a last one."""
    if not file.exists():
        return []
    lines = read_text(file, "run: ").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        entry = parse_object(line, f"run: line {number} of {file}")
        if not {*checking.STEP, "branch"} <= entry.keys() or entry["branch"] not in ("bp", "zo"):
            raise InputError(f"run: line {number} of {file} is not that of a step")
        checking.check(f"line {number} of {file}", entry, checking.STEP)
        entries.append(entry)
    return entries


def _read_json(file: Path) -> dict[str, Any]:
    return read_object(file, "run: ") if file.exists() else {}


def _read_subjects(checkpoint: Path) -> str | None:
    """The fingerprint of the subject's pictures; the tensors beside it are not read."""
    if not checkpoint.exists():
        return None
    try:
        return str(json.loads(load_metadata(checkpoint)["content"])["settings"]["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"run: {checkpoint} is not a checkpoint of a run") from error


def _index(order: tuple[str, ...]) -> Any:
    return lambda name: (order.index(name) if name in order else len(order), name)
