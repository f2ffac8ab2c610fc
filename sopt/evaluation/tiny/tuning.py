"""The search: the same effort for every method, on subjects that are not in the table.

Its runs are as long as those of the table, because learning rates are chosen for a number of steps.
Of each prompt they draw half of the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from .benchmark import run_missing
from .lines import read_lines
from .methods import METHODS, training_settings
from .running import Protocol
from .scores import TUNING, overall

SUBJECTS = (TUNING, TUNING + 1)
SEED = 0


class SearchFile:
    """The lines of the search, in a file of their own."""

    def __init__(self, file: Path, protocol: Protocol) -> None:
        images = max(1, protocol.images_per_prompt // 2)
        self._file, self._protocol = file, replace(protocol, images_per_prompt=images)

    def complete(self, methods: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Do the trials that are missing; the chosen settings of each method that has trials."""
        tried = {name: METHODS[name].trials for name in methods if name in METHODS}
        run_missing(
            self._file,
            self._protocol,
            (
                ((name, subject, SEED), trial)
                for name, trials in tried.items()
                for subject, trial in product(SUBJECTS, trials)
            ),
        )
        own = asdict(self._protocol)
        lines = [
            line
            for line in read_lines(self._file)
            if line["protocol"] == own and line["settings"] == self._settings(line)
        ]
        return {name: choose(name, lines, trials) for name, trials in tried.items() if trials}

    def _settings(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """What the method of a line has now."""
        return training_settings(line["method"], self._protocol.steps, line["chosen"])


def choose(
    method: str, lines: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The trial with the highest :func:`merit`, its mean over the subjects; the first of equals."""

    def total(trial: Mapping[str, Any]) -> float:
        last = {  # of a run that was done twice
            (line["subject"], line["seed"]): merit(line["scores"])
            for line in lines
            if line["method"] == method and line["chosen"] == trial
        }
        return sum(last.values()) / max(1, len(last))

    return max(trials, key=total)


def merit(scores: Mapping[str, Mapping[str, float | None]]) -> float:
    """What the search makes large: the mean of subject and prompt score over the prompts.

    Not of the training prompt: its two pictures are a lottery. Of the first 52 trials 41 had
    nothing there and three more than 0.2.
    """
    return ((overall(scores, "subject") or 0) + (overall(scores, "prompt") or 0)) / 2
