"""The whole table: which runs are missing, what they will take, and the runs, one line each.

What takes seconds to import is imported on use: the command line reads the signature.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import InputError
from .methods import CEILING, FLOOR, NAMES, check_methods, training_settings

logger = logging.getLogger(__name__)

# Of the table.
SUBJECTS, SEEDS = 10, 3
STEPS, IMAGES_PER_PROMPT, SAMPLING_STEPS = 400, 4, 15
Key = tuple[str, int, int]  # method, subject, seed


def benchmark_tiny(
    output: str | Path,
    *,
    subjects: Sequence[int] = tuple(range(SUBJECTS)),
    seeds: Sequence[int] = tuple(range(SEEDS)),
    methods: Sequence[str] = NAMES,
    steps: int = STEPS,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    sampling_steps: int = SAMPLING_STEPS,
    tuning: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Teach the bundled model unseen subjects by every method, and score what it draws.

    Each (method, subject, seed) is a line of ``output``, appended when it is done. A benchmark that
    was stopped goes on when called again, with more subjects, seeds or methods too; lines with
    other settings, the method's own among them, stay in the file and count for nothing. Several
    processes may share the file: given subjects, seeds and methods in opposite orders, they meet in
    the middle.

    Args:
        output: The file of results, ``.jsonl``.
        subjects: Numbers of subjects, each in [0, 100).
        seeds: Of training and drawing.
        methods: Names. Beside them ceiling and floor are always scored, "drawings" and "others",
            which take seconds.
        steps: Of a LoRA; a token has 7.5 times as many.
        images_per_prompt, sampling_steps: Of the pictures that are scored.
        tuning: A file of the search, which is completed first for these methods: six trials of
            each on two other subjects. Without it LoRAs have the learning rates that the search
            chose for most of them, and tokens those it chose for them (:mod:`~.methods`).

    Returns:
        The lines of these methods, subjects and seeds, those of ceiling and floor first.

    Raises:
        InputError: A value out of range, or a damaged line.
    """
    from ...files import check_writable
    from .lines import read_lines
    from .running import Protocol
    from .tuning import SearchFile

    check_methods(methods)
    for name, values, most in (("subjects", subjects, 100), ("seeds", seeds, 2**32)):
        for value in values:
            checks.integer(name, value, 0, most)
    for name, value in (
        ("steps", steps), ("images_per_prompt", images_per_prompt),
        ("sampling_steps", sampling_steps),
    ):  # fmt: skip
        checks.integer(name, value, 1, 1001)
    file = Path(output)
    for each in (file, *([] if tuning is None else [Path(tuning)])):
        if each.suffix != ".jsonl" or each.is_dir():
            raise InputError(f"the file of results must be named *.jsonl, got {str(each)!r}")
        check_writable(each.parent)
    if tuning is not None and Path(tuning).absolute() == file.absolute():
        raise InputError(f"tuning must be another file than output, got {str(tuning)!r} twice")
    protocol = Protocol(steps, images_per_prompt, sampling_steps)
    read_lines(file)  # damaged: known at once
    chosen: Mapping[str, Mapping[str, Any]] = {}
    if tuning is not None:
        chosen = SearchFile(Path(tuning), protocol).complete(methods)
    names = dict.fromkeys((CEILING, FLOOR, *methods))
    wanted = [(m, subject, seed) for seed, subject, m in product(seeds, subjects, names)]
    runs = [(key, chosen.get(key[0], {})) for key in wanted]
    run_missing(file, protocol, runs)
    found = {_identity(line): line for line in read_lines(file)}
    return [found[_wanted(key, protocol, settings)] for key, settings in runs]


def run_missing(file: Path, protocol: Any, runs: Iterable[tuple[Key, Mapping[str, Any]]]) -> None:
    """Do those runs, in order, that the file has no line of, and append theirs."""
    from tqdm import tqdm

    from .lines import append_line, read_lines
    from .running import run_line

    lines = read_lines(file)
    done = {_identity(line) for line in lines}
    missing = [(key, chosen) for key, chosen in runs if _wanted(key, protocol, chosen) not in done]
    if not missing:
        logger.info("%s has all lines", file)
        return
    expected = _expected({key[0] for key, _ in missing}, protocol, lines)
    total = sum(expected[key[0]] for key, _ in missing)
    logger.info("%d runs to do, %s expected; %s", len(missing), _core_time(total), file)
    with tqdm(
        total=round(total),
        unit="core-s",
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
    ) as bar:
        for key, settings in missing:
            method, subject, seed = key
            bar.set_postfix_str(f"{method}, subject {subject}, seed {seed}")
            if _wanted(key, protocol, settings) not in map(_identity, read_lines(file)):
                append_line(file, run_line(method, subject, seed, protocol, settings))
            # else another process did it meanwhile
            bar.update(round(expected[method]))


def _expected(
    methods: Iterable[str], protocol: Any, lines: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Core-seconds of a run of each method: of its earlier lines, or from a short run."""
    from .running import estimate

    methods = sorted(methods)
    known: dict[str, list[float]] = {}
    for line in lines:
        if line["protocol"] == asdict(protocol):
            known.setdefault(line["method"], []).append(line["core_seconds"])
    if any(method not in known for method in methods):
        logger.info("measuring in short runs how long one takes here")
    return {
        method: sum(known[method]) / len(known[method])
        if method in known
        else estimate(method, protocol)
        for method in methods
    }


def _core_time(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} core-minutes"
    return f"{seconds / 3600:.1f} core-hours"


def _identity(line: Mapping[str, Any]) -> tuple[Key, Any, Any]:
    key = (line["method"], line["subject"], line["seed"])
    return key, _frozen(line["protocol"]), _frozen(line["settings"])


def _wanted(key: Key, protocol: Any, chosen: Mapping[str, Any]) -> tuple[Key, Any, Any]:
    """The identity of the line that a run will have."""
    settings = training_settings(key[0], protocol.steps, chosen)
    return key, _frozen(asdict(protocol)), _frozen(settings)


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings.items()))
