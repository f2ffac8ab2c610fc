"""``train``: personalize a text-to-image model, a LoRA adapter or the embedding of a new word.

Phases, each with no more in memory than it needs: load and cache (text encoder, then VAE), train
(U-Net and adapter; for a token the text encoders too), save, sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import launch
from .adapters import adapter_files, save_adapter
from .budget import Budget, process_bound, readable
from .checkpoint import Checkpoint, History, optimizer_state
from .config import AUTO, TrainConfig
from .data import Picture, describe_pictures, load_pictures, warn_of_enlarging
from .errors import InputError
from .files import check_writable, write_bytes, write_json, write_text
from .memory import MemoryRecorder, anonymous_resident_bytes, mapped_blocks
from .models import Model, held_tensors, open_model
from .processes import Processes, check_processes, take_gpu
from .report import record_run
from .resolution import resolve
from .run_folder import Run, RunFolder, picture_fingerprint
from .sampling import generate, png_bytes
from .schedules import make_schedule
from .settings_file import settings_of_run
from .steps.draws import draw_step
from .text_files import checksum
from .token.words import check_captions, learn_word, warn_of_rounding
from .training import frozen_fingerprint, make_training, sides

logger = logging.getLogger(__name__)


def train(**settings: Any) -> Run:
    """Train a LoRA adapter, or a token, on pictures of a subject and write it to a run folder.

    A step is either backprop on reduced pictures (AdamW, gradient checkpointing) or zeroth-order on
    full-size ones (forward passes only, SGD); the schedule says how likely each is. The same
    settings and seed give the same adapter file, byte for byte (same machine, thread count and
    versions; on a GPU with deterministic algorithms turned on), also if the run was killed in
    between: call again with the same settings to continue. The first Ctrl-C saves a checkpoint.

    Args:
        **settings: The fields of :class:`~sopt.config.TrainConfig`; ``images``, ``prompt`` and
            ``output`` have no default. The defaults of ``lr``, ``zo_lr``, ``eps`` and
            ``num_perturbations`` are ours: the paper publishes none.

    Returns:
        The finished run. A run that was finished before is returned as it is.

    Raises:
        InputError: Settings, pictures, model or output folder will not do; nothing was written.
        KeyboardInterrupt: On Ctrl-C, after the step in progress, with the checkpoint saved.

    Source:
        arXiv 2507.10029: low-resolution backprop and high-resolution zeroth-order steps, chosen by
        a dynamic timestep-aware probability. Its Algorithm 1 prints the two branches the other way
        round; this is the reading of its equations and text. ``method="textual-inversion"``:
        ZOODiP, arXiv 2503.14868.

    Example:
        >>> run = train(images="photos/dog", prompt="a sks dog", output="runs/dog")
        >>> run.adapter, run.memory["train-bp"], run.history[-1]["loss"]
    """
    config, model, pictures = prepare(**settings)
    subjects, priors = (
        [picture for picture in pictures if picture.regularization == regularization]
        for regularization in (False, True)
    )
    identity = config.bits() | {
        "images": picture_fingerprint(subjects),
        "prior_images": picture_fingerprint(priors),
        "samples_per_backprop_step": launch.world_size() if config.schedule != 1.0 else 1,
        "scheduler": _scheduler_fingerprint(model),
    }
    if callable(config.schedule):
        identity["schedule_values"] = _schedule_fingerprint(config, model.num_train_timesteps)
    with (
        Processes.from_environment() as processes,
        contextlib.closing(RunFolder(config.output, adapter_files(config, model))) as folder,
    ):
        previous = folder.previous(identity, config.resume)
        if previous is not None and folder.finished(previous, config):
            logger.info("the run in %s is finished already", folder.path)
            previous.check_weights(frozen_fingerprint(config, model))
        else:
            del previous  # else its tensors would be in memory all along
            check_writable(config.output)
            if processes.writes and folder.path.is_dir():
                folder.lock()  # another run at work in it: known at once
            logger.info("%s", describe_pictures(pictures))
            warn_of_enlarging(pictures, max(sides(config)))
            _run(config, model, pictures, folder, identity, processes)
            processes.finish()
        return folder.run(config)


def prepare(**settings: Any) -> tuple[TrainConfig, Model, list[Picture]]:
    """The settings of a run with nothing left open, its model and its pictures, all checked.

    Raises:
        InputError: Settings, pictures or model will not do.
    """
    config = TrainConfig.create(**settings)
    pictures = _load_pictures(config)
    _check_apart(config, pictures)
    model = open_model(config.model)
    config = TrainConfig.create(family=model.family, **settings)
    take_gpu(config.device)
    config = resolve(config, model)
    check_processes(config, launch.world_size())
    config = _settle(config, model, pictures)
    if config.train == "token":
        check_captions(config, learn_word(config, model), pictures)
        warn_of_rounding(config)
    return config, model, pictures


def identify(config: TrainConfig, model: Model) -> dict[str, str]:
    """Which model trains under these settings, whatever its name: what a run is compared by."""
    weights = frozen_fingerprint(config, model)
    return {"weights": weights, "scheduler": _scheduler_fingerprint(model)}


def _load_pictures(config: TrainConfig) -> list[Picture]:
    """Pictures of the subject, and those for prior preservation."""
    pictures = load_pictures(config.images, config.prompt)
    if config.prior_images is not None:
        pictures += load_pictures(config.prior_images, config.prior_prompt, regularization=True)
    elif config.prior_weight != 1 and not any(picture.regularization for picture in pictures):
        raise InputError(
            f"prior_weight={config.prior_weight:g} has no effect without prior_images, "
            "or reg/ beside the img/ of a kohya folder"
        )
    return pictures


def _check_apart(config: TrainConfig, pictures: list[Picture]) -> None:
    """Raise InputError if a new run would strew its files among the pictures."""
    output = Path(config.output)
    files = [picture.source for picture in pictures if isinstance(picture.source, Path)]
    own = (output.resolve(), RunFolder(output).before.parent.resolve())
    among = [file for file in files if file.parent.resolve() in own]
    if among and not settings_of_run(output):
        raise InputError(
            f"output {config.output!r} must be a folder of the run's own, and has the picture "
            f"{among[0].name} in it: choose another folder"
        )


def _run(
    config: TrainConfig,
    model: Model,
    pictures: list[Picture],
    folder: RunFolder,
    identity: dict[str, Any],
    processes: Processes,
) -> None:
    budget = None if config.memory_budget is None else Budget.parse(config.memory_budget)
    own = held_tensors(config.model)
    with (
        mapped_blocks() if config.lean else contextlib.nullcontext(),
        MemoryRecorder(torch.device(str(config.device)), budget, own=own) as memory,
    ):
        adapter = _optimize(config, model, pictures, folder, identity, memory, processes)
        if not processes.writes:
            return
        with memory.phase("save"):
            save_adapter(config, model, adapter)
        if config.samples:
            try:
                with memory.phase("sample"):
                    _draw_samples(config, folder)
            except InputError as error:  # the adapter is there: the same command draws again
                logger.warning("there are no sample pictures: %s", error)
        write_json(folder.memory, memory.summary())
        record_run(folder.path, memory.seconds, model.num_train_timesteps)


def _optimize(
    config: TrainConfig,
    model: Model,
    pictures: list[Picture],
    folder: RunFolder,
    identity: dict[str, Any],
    memory: MemoryRecorder,
    processes: Processes,
) -> dict[str, Tensor]:
    """Cache and train; returns the adapter on the CPU, with all else gone from memory."""
    training = make_training(config, model, pictures, memory, folder.lock, processes)
    adapter, optimizer, weights = training.adapter, training.optimizer, training.fingerprint()
    schedule = make_schedule(config.schedule, config.steps, model.num_train_timesteps)
    skipped = {"bp": 0, "zo": 0}
    start = 0
    if processes.writes:
        folder.lock()  # the first trace of the run: what could be wrong was checked
    with memory.phase("load"):
        previous = folder.previous(identity, config.resume)  # again: nobody writes any more
        if previous is not None:
            previous.restore(adapter, optimizer, weights)
            training.load_state(previous.steps)
    if previous is not None:
        start, skipped = previous.step, dict(previous.skipped)
        logger.info("continuing the run in %s after step %d", folder.path, start)
        memory.peaks |= {k: max(v, memory.peaks.get(k, 0)) for k, v in previous.peaks.items()}
        del previous
    if config.eps == AUTO and config.schedule != 0.0:
        with memory.phase("train-zo"):
            training.settle_eps()
    processes.begin(start, identity | {"weights": weights}, backprop=config.schedule != 1.0)
    processes.compare(start, adapter)
    writes = processes.writes
    if writes:
        write_text(folder.config, config.to_yaml())
    measured: set[str] = set()
    steps = range(start + 1, config.steps + 1)
    with (
        History(folder.history, start) if writes else contextlib.nullcontext() as history,
        _deferred_interrupt() as interrupted,
        tqdm(steps, initial=start, total=config.steps, disable=not writes) as progress,
    ):
        for i in progress:
            started = time.perf_counter()
            draw = draw_step(config.seed, i, schedule, config.timesteps, config.pool)
            t, p_zo, zo = draw.timestep, draw.p_zo, draw.zeroth_order
            branch = "zo" if zo else "bp"
            # The steps of a branch repeat each other's memory once the optimizer's state exists.
            repeats = bool(optimizer.state) or config.schedule == 1.0
            with memory.phase(f"train-{branch}", measured=branch not in measured):
                outcome = (training.zeroth_order if zo else training.backprop)(i, t)
                training.count(i)
            if repeats:
                measured.add(branch)
            if outcome["loss"] is None:
                outcome["skipped"] = True
                skipped[branch] += 1
            seconds = time.perf_counter() - started
            entry = {"step": i, "branch": branch, "timestep": t, "p_zo": p_zo, **outcome}
            if zo and config.eps == AUTO:
                entry["eps"] = training.eps
            if history is not None:
                history.append({**entry, "seconds": seconds})
            _show(progress, branch, outcome["loss"], memory)
            stop = processes.stops(i, config.steps, interrupted.is_set())
            due = i % config.checkpoint_every == 0 or i == config.steps or stop
            if due:
                processes.compare(i, adapter)
            if due and history is not None:
                history.flush()
                state = optimizer_state(adapter, optimizer)
                checkpoint = Checkpoint(
                    i,
                    identity,
                    skipped,
                    memory.peaks,
                    weights,
                    adapter,
                    state,
                    training.state(),
                )
                checkpoint.save(folder.checkpoint)
            if stop:
                raise KeyboardInterrupt
    if any(skipped.values()):
        logger.warning(
            "of %d steps, %d backprop and %d zeroth-order ones were skipped: "
            "their loss was not finite",
            config.steps,
            skipped["bp"],
            skipped["zo"],
        )
    return training.trained()


def _draw_samples(config: TrainConfig, folder: RunFolder) -> None:
    """The same picture, from the same noise, without and with the adapter."""
    known = config.prompt  # to the model alone
    if config.token is not None and config.initializer is not None:
        known = known.replace(config.token, config.initializer)
    for path, adapter, prompt in (
        (folder.before, None, known),
        (folder.after, folder.adapters[0], config.prompt),
    ):
        (picture,) = generate(
            config.model,
            adapter,
            prompt=prompt,
            seed=config.seed,
            resolution=config.resolution,
            device=config.device,
            weights=config.weights,
            low_memory=True,
            offload="stream" if config.lean else "none",
        )
        write_bytes(path, png_bytes(picture))


def _settle(config: TrainConfig, model: Model, pictures: list[Picture]) -> TrainConfig:
    """The settings with what the memory budget decides filled in."""
    if config.memory_budget is None:
        checkpointing = config.checkpointing is not False  # the choice of less memory
        return replace(config, checkpointing=checkpointing)
    from .planning import choose  # here: most runs have no budget

    budget = Budget.parse(config.memory_budget)
    best = choose(config, model, pictures, budget)
    logger.info(
        "memory budget %s: tensors will take %s at most, the process about %s",
        config.memory_budget,
        readable(best.peak_bytes),
        readable(process_bound(best.peak_bytes, anonymous_resident_bytes())),
    )
    return best.config


def _scheduler_fingerprint(model: Model) -> str:
    """What the loss rests on beside the weights: the target, and how much noise a timestep has."""
    known = {k: v for k, v in model.configs["scheduler"].items() if not k.startswith("_")}
    return f"{model.prediction_type} with checksum {checksum(known)}"


def _schedule_fingerprint(config: TrainConfig, num_timesteps: int) -> str:
    """What a schedule of the user's says to every step of the run, checked before long work."""
    schedule = make_schedule(config.schedule, config.steps, num_timesteps)
    digest = hashlib.blake2b(digest_size=16)
    for i in range(1, config.steps + 1):
        draw = draw_step(config.seed, i, schedule, config.timesteps, config.pool)
        t, p_zo = draw.timestep, draw.p_zo
        if not isinstance(p_zo, (int, float)) or not 0 <= p_zo <= 1:
            raise InputError(f"schedule({i}, {t}) must be a number in [0, 1], got {p_zo!r}")
        digest.update(f"{float(p_zo)!r}\n".encode())
    return digest.hexdigest()


def _show(progress: tqdm, branch: str, loss: float | None, memory: MemoryRecorder) -> None:
    shown = "skipped" if loss is None else f"{loss:.4f}"
    peak = memory.peaks.get(f"train-{branch}", 0) / 2**20
    progress.set_postfix_str(f"{branch}, loss {shown}, peak {peak:.0f} MiB", refresh=False)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C meanwhile sets the event, the second interrupts at once."""
    interrupted = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def defer(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        interrupted.set()

    # Python handles signals in its main thread only; a process that ignores Ctrl-C keeps doing so.
    if threading.current_thread() is not threading.main_thread() or previous is signal.SIG_IGN:
        yield interrupted
        return
    signal.signal(signal.SIGINT, defer)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
