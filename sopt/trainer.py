"""``train``: personalize a text-to-image model by selective optimization.

Phases, each with no more in memory than it needs: load and cache (text encoder, then VAE), train
(U-Net and adapter), save, sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .cache import build_cache
from .checkpoint import Checkpoint, History, fingerprint, optimizer_state
from .config import TrainConfig
from .data import Picture, describe_pictures, load_pictures
from .devices import resolve_device
from .errors import InputError
from .export import save_diffusers_lora, save_kohya_lora
from .files import check_writable, write_bytes, write_json, write_text
from .memory import MemoryRecorder
from .models import LORA_TARGETS, Model, inject_lora, open_model
from .run_folder import Run, RunFolder, picture_fingerprint
from .sampling import generate, png_bytes
from .schedules import make_schedule
from .steps.backprop import backprop_step
from .steps.loss import diffusion_loss
from .steps.seeds import Tag, integer, seed64, uniform
from .steps.zeroth_order import zeroth_order_step

logger = logging.getLogger(__name__)


def train(**settings: Any) -> Run:
    """Train a LoRA adapter on pictures of a subject and write it to a run folder.

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
        round; this is the reading of its equations and text.

    Example:
        >>> run = train(images="photos/dog", prompt="a sks dog", output="runs/dog")
        >>> run.adapter, run.memory["train-bp"], run.history[-1]["loss"]
    """
    config = TrainConfig.create(**settings)
    pictures = _load_pictures(config)
    model = open_model(config.model)
    config = _resolve(config, model)
    subjects, priors = (
        [picture for picture in pictures if picture.regularization == regularization]
        for regularization in (False, True)
    )
    identity = config.bits() | {
        "images": picture_fingerprint(subjects),
        "prior_images": picture_fingerprint(priors),
    }
    if callable(config.schedule):
        identity["schedule_values"] = _schedule_fingerprint(config, model.num_train_timesteps)
    with contextlib.closing(RunFolder(config.output)) as folder:
        previous = folder.previous(identity, config.resume)
        if previous is not None and folder.finished(previous, config.steps):
            previous.check_weights(fingerprint(model.load_unet()))
        else:
            del previous  # else its tensors would be in memory all along
            check_writable(config.output)
            logger.info("%s", describe_pictures(pictures))
            _run(config, model, pictures, folder, identity)
        return folder.run(config)


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


def _run(
    config: TrainConfig,
    model: Model,
    pictures: list[Picture],
    folder: RunFolder,
    identity: dict[str, Any],
) -> None:
    with MemoryRecorder(torch.device(str(config.device))) as memory:
        adapter = _optimize(config, model, pictures, folder, identity, memory)
        with memory.phase("save"):
            _save_adapter(config, model, adapter, folder)
        with memory.phase("sample"):
            _draw_samples(config, folder)
        write_json(folder.memory, memory.summary())


def _optimize(
    config: TrainConfig,
    model: Model,
    pictures: list[Picture],
    folder: RunFolder,
    identity: dict[str, Any],
    memory: MemoryRecorder,
) -> dict[str, Tensor]:
    """Cache and train; returns the adapter on the CPU, with all else gone from memory."""
    cache = build_cache(model, pictures, _sides(config), memory)
    with memory.phase("load"):
        unet = model.load_unet().to(memory.device)
        weights = fingerprint(unet)
        adapter = inject_lora(unet, config.rank, config.seed)
    unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(adapter.values(), lr=config.lr)
    schedule = make_schedule(config.schedule, config.steps, model.num_train_timesteps)
    loss = partial(
        diffusion_loss,
        unet,
        model.noise_scheduler(),
        min_snr=config.min_snr,
        prior_weight=config.prior_weight,
    )
    skipped = {"bp": 0, "zo": 0}
    start = 0
    folder.lock()  # the first trace of the run: what could be wrong was checked
    previous = folder.previous(identity, config.resume)  # again: nobody writes any more
    if previous is not None:
        previous.restore(adapter, optimizer, weights)
        start, skipped = previous.step, dict(previous.skipped)
        memory.peaks |= {k: max(v, memory.peaks.get(k, 0)) for k, v in previous.peaks.items()}
        del previous
    write_text(folder.config, config.to_yaml())

    def bp_low(i: int, t: int) -> dict[str, Any]:
        sample = cache.draw(config.seed, i, t, config.low_resolution)
        return {"loss": backprop_step(adapter, partial(loss, sample), optimizer)}

    def zo_high(i: int, t: int) -> dict[str, Any]:
        assert config.resolution is not None
        sample = cache.draw(config.seed, i, t, config.resolution)
        directions = range(config.num_perturbations)
        update = zeroth_order_step(
            adapter,
            partial(loss, sample),
            [seed64(config.seed, i, n, Tag.DIRECTION) for n in directions],
            lr=config.zo_lr,
            eps=config.eps,
            noise=config.noise,
        )
        return asdict(update) if update else {"loss": None, "seeds": [], "coefficients": []}

    measured: set[str] = set()
    with (
        History(folder.history, start) as history,
        _deferred_interrupt() as interrupted,
        tqdm(range(start + 1, config.steps + 1), initial=start, total=config.steps) as progress,
    ):
        for i in progress:
            started = time.perf_counter()
            t = integer(seed64(config.seed, i, 0, Tag.TIMESTEP), 0, model.num_train_timesteps)
            p_zo = schedule(i, t)
            zo = uniform(seed64(config.seed, i, 0, Tag.BRANCH)) < p_zo  # p is that of ZO-high
            branch = "zo" if zo else "bp"
            # The steps of a branch repeat each other's memory once the optimizer's state exists.
            repeats = bool(optimizer.state) or config.schedule == 1.0
            with memory.phase(f"train-{branch}", measured=branch not in measured):
                outcome = zo_high(i, t) if zo else bp_low(i, t)
            if repeats:
                measured.add(branch)
            if outcome["loss"] is None:
                outcome["skipped"] = True
                skipped[branch] += 1
            seconds = time.perf_counter() - started
            entry = {"step": i, "branch": branch, "timestep": t, "p_zo": p_zo, **outcome}
            history.append({**entry, "seconds": seconds})
            _show(progress, branch, outcome["loss"], memory)
            stop = interrupted.is_set()
            if i % config.checkpoint_every == 0 or i == config.steps or stop:
                history.flush()
                state = optimizer_state(adapter, optimizer)
                checkpoint = Checkpoint(i, identity, skipped, memory.peaks, weights, adapter, state)
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
    return {name: parameter.detach().cpu() for name, parameter in adapter.items()}


def _save_adapter(
    config: TrainConfig, model: Model, adapter: dict[str, Tensor], folder: RunFolder
) -> None:
    assert config.resolution is not None
    save_diffusers_lora(folder.adapter, adapter, config.rank, config.rank, LORA_TARGETS)
    save_kohya_lora(
        folder.kohya,
        adapter,
        config.rank,
        config.rank,
        prompt=config.prompt,
        resolution=config.resolution,
        prediction_type=model.prediction_type,
        cross_attention_dim=model.unet_config["cross_attention_dim"],
    )


def _draw_samples(config: TrainConfig, folder: RunFolder) -> None:
    """The same picture, from the same noise, without and with the adapter."""
    for path, adapter in ((folder.before, None), (folder.after, folder.adapter)):
        (picture,) = generate(
            config.model,
            adapter,
            prompt=config.prompt,
            seed=config.seed,
            resolution=config.resolution,
            device=config.device,
        )
        write_bytes(path, png_bytes(picture))


def _resolve(config: TrainConfig, model: Model) -> TrainConfig:
    """The settings with device and resolution filled in and checked against the model."""
    factor, smallest = model.vae_factor, model.smallest_resolution
    resolution = model.native_resolution if config.resolution is None else config.resolution
    multiple = model.side_multiple
    if resolution % multiple or resolution < smallest:
        raise InputError(
            f"resolution must be a multiple of {multiple} (of the VAE's factor, and of 8 in "
            f"diffusers) and at least {smallest}, got {resolution}"
        )
    config = replace(config, device=resolve_device(config.device), resolution=resolution)
    low = config.low_resolution
    if config.schedule != 1.0 and (low % factor or low < smallest):
        fitting = sorted({max(smallest, low // factor * factor), (low // factor + 1) * factor})
        fitting = [side for side in fitting if smallest <= side <= resolution]
        raise InputError(
            f"low_res_ratio={config.low_res_ratio:g} makes pictures of {low} pixels, but a side "
            f"must be a multiple of the VAE's factor {factor} and at least {smallest}: "
            + " or ".join(f"{side / resolution:g} (side {side})" for side in fitting)
            + " would fit"
        )
    return config


def _schedule_fingerprint(config: TrainConfig, num_timesteps: int) -> str:
    """What a schedule of the user's says to every step of the run, checked before long work."""
    schedule = make_schedule(config.schedule, config.steps, num_timesteps)
    digest = hashlib.blake2b(digest_size=16)
    for i in range(1, config.steps + 1):
        t = integer(seed64(config.seed, i, 0, Tag.TIMESTEP), 0, num_timesteps)
        p_zo = schedule(i, t)
        if not isinstance(p_zo, (int, float)) or not 0 <= p_zo <= 1:
            raise InputError(f"schedule({i}, {t}) must be a number in [0, 1], got {p_zo!r}")
        digest.update(f"{float(p_zo)!r}\n".encode())
    return digest.hexdigest()


def _sides(config: TrainConfig) -> list[int]:
    """The sides of pictures, in pixels, that the schedule can ask for."""
    assert config.resolution is not None
    low = [config.low_resolution] if config.schedule != 1.0 else []
    high = [config.resolution] if config.schedule != 0.0 else []
    return sorted({*low, *high})


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
