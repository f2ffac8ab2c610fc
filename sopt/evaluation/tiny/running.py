"""One method on one subject with one seed: train, draw, score, measure."""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...doctor import versions
from ...errors import InputError, NotFiniteError
from ...run_folder import Run
from ...sampling import TINY_GUIDANCE, generate, png_bytes
from ...tiny.drawings import draw
from ...trainer import train
from .methods import METHODS, Method, training_settings
from .scores import Task, draw_real, forget, make_task, nothing_drawn, score

SEEDS_A_RUN = 10**6  # a picture's seed does not depend on how many there are
BATCH = 12  # pictures of all prompts drawn at once
UNIT = 1 / 40  # of a run's steps, to learn what a whole one would take


@dataclass(frozen=True)
class Protocol:
    """What every method gets; lines of other protocols are of another table."""

    steps: int
    images_per_prompt: int
    sampling_steps: int
    guidance: float = TINY_GUIDANCE


def run_line(
    method: str, number: int, seed: int, protocol: Protocol, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The results of one run.

    Args:
        method: A name of :data:`~.methods.METHODS`, or of the drawings.
        number: Which subject.
        seed: Of the run, and of its pictures.
        chosen: Settings of the method that the search chose.

    Returns:
        ``scores`` by group of prompts, all 0 if the run diverged, and then ``failed`` says so: a
        run that is left out would be no failure; ``phases`` and ``peak_bytes`` of tensors in
        training; ``seconds`` of training and of drawing, ``core_seconds`` of both and of scoring,
        which takes about three, on all cores together; ``forwards`` and ``backwards`` of the U-Net
        in training; and what they rest on, with the method's ``settings``.
    """
    task, started, cores = make_task(number), time.perf_counter(), time.process_time()
    line: dict[str, Any] = {
        "method": method,
        "subject": number,
        "seed": seed,
        "protocol": asdict(protocol),
        "chosen": dict(chosen),
        "settings": training_settings(method, protocol.steps, chosen),
        **_provenance(),  # as it began: files may change meanwhile
    }
    kind = METHODS.get(method)
    pictures: list[list[Image.Image]] | None
    if kind is None:
        pictures = draw_real(task, method, seed, protocol.images_per_prompt)
        trained = time.perf_counter()
    else:
        with tempfile.TemporaryDirectory() as folder:
            run = None
            if kind.settings is not None:
                run = _train(task, kind, seed, kind.training(protocol.steps, chosen), Path(folder))
                line |= _costs(run)
            trained = time.perf_counter()
            words = kind.words.format(task.subject.kind)
            try:
                pictures = draw_prompts(task, words, run, seed, protocol)
            except NotFiniteError as error:
                pictures, line["failed"] = None, str(error)
    drawn = time.perf_counter()
    line["scores"] = nothing_drawn() if pictures is None else score(task, pictures)
    line["seconds"] = {"train": trained - started, "draw": drawn - trained}
    line["core_seconds"] = time.process_time() - cores
    return line


def estimate(method: str, protocol: Protocol) -> float:
    """Core-seconds that a run of a method will take, from a short one."""
    kind, task = METHODS.get(method), make_task(0)
    if kind is None:
        return 2.0  # drawings: hardly anything
    run, training = None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        if kind.settings is not None:
            settings = kind.training(max(2, round(protocol.steps * UNIT)), {})
            started, cores = time.perf_counter(), time.process_time()
            run = _train(task, kind, 0, settings, Path(folder))
            used = time.process_time() - cores
            share = used / (time.perf_counter() - started)  # of a machine that others use too
            more = kind.training(protocol.steps, {})["steps"] / settings["steps"] - 1
            training = used + more * share * usual_seconds(run.history)
        cores = time.process_time()
        first = Task(task.subject, task.photos, task.prompts[:1])
        draw_prompts(first, kind.words.format(task.subject.kind), run, 0, protocol)
        return training + (time.process_time() - cores) * len(task.prompts)


def usual_seconds(history: Sequence[Mapping[str, Any]]) -> float:
    """Of all steps, each counted as the median of its branch: the first ones take longer."""
    by_branch: dict[str, list[float]] = {}
    for entry in history:
        by_branch.setdefault(entry["branch"], []).append(entry["seconds"])
    return sum(len(each) * statistics.median(each) for each in by_branch.values())


def _train(task: Task, method: Method, seed: int, settings: Mapping[str, Any], folder: Path) -> Run:
    photos, words = folder / "photos", method.words.format(task.subject.kind)
    photos.mkdir()
    own: dict[str, Any] = {"initializer": task.subject.kind} if method.token else {}
    for index, (scene, caption) in enumerate(zip(task.photos, task.captions(words), strict=True)):
        (photos / f"{index}.png").write_bytes(png_bytes(draw(scene)))
        if method.token:  # ZOODiP's captions describe all but the subject; DreamBooth has none
            (photos / f"{index}.txt").write_text(caption)
    forget()
    with _quiet():
        return train(
            images=str(photos),
            prompt=f"a {words}",
            output=str(folder / "run"),
            seed=seed,
            **own,
            **settings,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings alone: every run would tell the captions of its pictures again."""
    package = logging.getLogger("sopt")
    level = package.level
    package.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        package.setLevel(level)


def draw_prompts(
    task: Task, words: str, run: Run | Path | None, seed: int, protocol: Protocol
) -> list[list[Image.Image]]:
    """Pictures of each prompt, with ``words`` for the subject, by a run or an adapter's file.

    Raises:
        InputError: There are fewer than asked, or one is not finite.
    """
    texts, count = [prompt.text(words) for prompt in task.prompts], protocol.images_per_prompt
    drawn = generate(
        "tiny",
        run,
        prompt=texts,
        seed=SEEDS_A_RUN * seed,
        steps=protocol.sampling_steps,
        guidance=protocol.guidance,
        num_images=count,
        batch_size=BATCH,
        weights=run.config.weights if isinstance(run, Run) else "float32",
    )
    if len(drawn) < count * len(texts):
        raise InputError(
            f"the {len(texts)} prompts from {texts[0]!r} on got {len(drawn)} of "
            f"{count * len(texts)} pictures"
        )
    return [drawn[first : first + count] for first in range(0, len(drawn), count)]


def _costs(run: Run) -> dict[str, Any]:
    """Memory of all phases but those that write files, and passes through the U-Net."""
    phases = {
        phase: size
        for phase, size in run.memory.items()
        if isinstance(size, int) and phase not in ("save", "sample")
    }
    return {
        "phases": phases,
        "peak_bytes": max(phases.values()),
        **passes(run.history, run.config.estimator, run.config.hollow is not None),
    }


def passes(history: Sequence[Mapping[str, Any]], estimator: str, hollowed: bool) -> dict[str, int]:
    """``forwards`` and ``backwards`` of the U-Net in a run's steps; a hollow has one forward more
    for each, beforehand."""
    backwards = sum(entry["branch"] == "bp" for entry in history)
    forwards = backwards + len(history) * hollowed
    for entry in history:
        if entry["branch"] == "zo":
            directions = len(entry["seeds"])
            forwards += directions + 1 if estimator == "rge" else 2 * directions
    return {"forwards": forwards, "backwards": backwards}


@cache
def _provenance() -> dict[str, Any]:
    """What the figures come from: the commit, with a plus if files differ, and versions."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", package, *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):  # installed, without a repository
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is not None and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    return {
        "commit": commit,
        "versions": versions(),
        "machine": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }
