"""``plan``: the peak memory of a run before it is run, and the settings that fit a budget."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .budget import Budget
from .codes.files import rehearse_difference
from .codes.settings import INT8_TRAINED
from .codes.tensors import room_of
from .config import METHODS, TrainConfig
from .data import Picture
from .devices import weight_storage
from .drawing import Stages, Wanted
from .errors import InputError
from .hollow.cuts import cut_of, list_cuts
from .hollow.precompute import MOST
from .memory import MemoryRecorder, anonymous_resident_bytes
from .models import Model, inject_lora, open_model
from .models.storage import INT8, float_dtype
from .resolution import resolve
from .simulation import simulated, simulated_tensors
from .streaming import list_units, open_network
from .training import Training, make_training

GUIDANCE = 7.5  # any above 1 has two halves


@dataclass(frozen=True)
class Prediction:
    """The peak bytes of tensors in each phase of a run with these settings."""

    model: str
    method: str
    train: str
    weights: str
    hollow: str | None
    offload: str
    checkpointing: bool
    low_res_ratio: float
    phases: dict[str, int]
    fits: bool
    config: TrainConfig = field(repr=False)

    @property
    def peak_bytes(self) -> int:
        return max(self.phases.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = {k: v for k, v in vars(self).items() if k != "config"}
        return values | {"peak_bytes": self.peak_bytes}


def plan(model: Any = "tiny", memory_budget: Any = None, **settings: Any) -> list[Prediction]:
    """Predict the peak memory of runs by running their own code on tensors without storage.

    No weights are read, and the memory is not needed. What is simulated is a CPU's code.

    Args:
        model: As for :func:`sopt.train`. What a loaded pipeline holds itself is not counted.
        memory_budget: "2GiB" of tensors, or "process:2GiB" of the whole process; all fit if None.
        **settings: Of :class:`~sopt.config.TrainConfig`. What is not set varies: the method, and
            checkpointing.

    Returns:
        One prediction per combination, those that fit first, the fastest of them first: without
        checkpointing before with it, and methods in the order backprop-low, backprop-high,
        selective, zeroth-order.

    Raises:
        InputError: A setting or the model will not do.

    Example:
        >>> best = plan("tiny", "64MiB", method="selective")[0]
        >>> best.fits, max(best.phases, key=best.phases.get)
        (True, 'sample')
    """
    budget = None if memory_budget is None else Budget.parse(memory_budget)
    given = {"images": "-", "prompt": "a sks dog", "output": "-", "model": model}
    if settings.get("train") == "token" or settings.get("method") == "textual-inversion":
        given |= {"prompt": "a <subject>", "token": "<subject>", "initializer": "a"}
    given |= settings
    configs = _of_each_method(given)
    opened = open_model(model)
    candidates = [c for config in configs for c in variants(resolve(config, opened))]
    kept = sorted({bool(candidate.checkpointing) for candidate in candidates})
    rows = list(_predict(opened, candidates, budget, _blanks(configs[0]), kept))
    return sorted(rows, key=lambda row: (not row.fits, row.checkpointing))


def _of_each_method(settings: dict[str, Any]) -> list[TrainConfig]:
    """The settings with the method given, or with every method that goes with them."""
    if "method" in settings:
        return [TrainConfig.create(**settings)]
    configs = []
    for method in _FASTEST_FIRST:
        try:
            configs.append(TrainConfig.create(**settings | {"method": method}))
        except InputError:
            if method == _FASTEST_FIRST[-1] and not configs:
                raise
    return configs


def variants(config: TrainConfig) -> list[TrainConfig]:
    """The settings with what is not set filled in, in every way, the fastest first."""
    if config.checkpointing is not None:
        return [config]
    if config.schedule == 1.0 or config.offload == "stream":  # no backprop, or always with it
        return [replace(config, checkpointing=True)]
    return [replace(config, checkpointing=value) for value in (False, True)]


def choose(
    config: TrainConfig, model: Model, pictures: Sequence[Picture], budget: Budget
) -> Prediction:
    """The fastest variant of ``config`` that fits the budget.

    Raises:
        InputError: None does; the message says what would.
    """
    rows = []
    for row in _predict(model, variants(config), budget, pictures):
        if row.fits:
            return row
        rows.append(row)
    best = min(rows, key=lambda row: row.peak_bytes)
    phase = max(best.phases, key=lambda name: best.phases[name])
    least = budget.least(best.peak_bytes, anonymous_resident_bytes())
    hint = advice(config, model, pictures, budget)
    raise InputError(
        f"memory_budget={config.memory_budget!r} is too small for these settings: the smallest "
        f"that would do is {least}, for the phase {phase}{hint and '; '}{hint}"
    )


def advice(config: TrainConfig, model: Model, pictures: Sequence[Picture], budget: Budget) -> str:
    """Which other settings would make a run fit: one, or else several, or how far they go.

    Returns:
        Such as "weights=int8 would fit"; nothing where all that takes less is set already.
    """
    text, row = "", None
    for changes in _smaller(config):
        try:
            other = TrainConfig.create(**vars(config) | changes)
        except InputError:  # they do not go with the others
            continue
        (row,) = _predict(model, variants(other)[-1:], budget, pictures)
        implied = _STREAMED if "offload" in changes else ()
        text = " and ".join(f"{k}={v}" for k, v in changes.items() if k not in implied)
        if row.fits:
            return f"{text} would fit"
    if row is None:
        return ""
    return f"{text} would do with {budget.least(row.peak_bytes, anonymous_resident_bytes())}"


def _smaller(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Changes to the settings that take less memory: each alone, then more and more together."""
    found = [c for c in _SMALLER if getattr(config, name := next(iter(c))) not in (None, c[name])]
    if config.weights == INT8:
        found = [changes for changes in found if "weights" not in changes]
    yield from found
    for count in range(2, len(found) + 1):
        yield reduce(operator.or_, found[:count])


_FASTEST_FIRST = ("backprop-low", "backprop-high", "selective", "zeroth-order")
# A shorthand for a token, and backprop-high with a setting more.
assert {*_FASTEST_FIRST, "textual-inversion", "hollowed"} == set(METHODS)

_STREAMED = ("checkpointing", "vae_tiles")  # true with offload=stream, if not given
# What takes less memory, what changes the run least first.
_SMALLER: tuple[dict[str, Any], ...] = (
    {"weights": "bfloat16"},
    {"checkpointing": True},
    {"low_res_ratio": 0.5},
    {"perturbation_batch": 1},
    {"offload": "stream", **dict.fromkeys(_STREAMED, True)},
    {"weights": INT8},
)


def _predict(
    model: Model,
    configs: Sequence[TrainConfig],
    budget: Budget | None,
    pictures: Sequence[Picture],
    checkpointing: Sequence[bool] = (),
) -> Iterator[Prediction]:
    """Each prediction; what two settings have in common is simulated once. ``checkpointing`` has
    the values that will all be asked for, if it is known beforehand."""
    simulation = _Simulation(model, pictures, checkpointing)
    at_start = anonymous_resident_bytes()
    for config in tqdm(configs, desc="simulating", disable=len(configs) < 2, leave=False):
        phases = simulation.phases(config)
        peak = max(phases.values())
        yield Prediction(
            model=model.name,
            method=config.method,
            train=config.train,
            weights=str(config.weights),
            hollow=None if config.hollow is None else str(config.hollow),
            offload=config.offload,
            checkpointing=bool(config.checkpointing),
            low_res_ratio=config.low_res_ratio,
            phases=phases,
            fits=budget is None or budget.holds(peak, at_start),
            config=config,
        )


class _Simulation:
    """Peaks of the phases of runs on one model, each distinct one simulated once."""

    def __init__(
        self, model: Model, pictures: Sequence[Picture], checkpointing: Sequence[bool]
    ) -> None:
        self._model = simulated(model)
        self._pictures = pictures
        self._checkpointing = checkpointing
        self._known: dict[Any, dict[str, int]] = {}

    def phases(self, config: TrainConfig) -> dict[str, int]:
        assert config.resolution is not None
        found: dict[str, int] = {}
        key: tuple[Any, ...]
        common = (
            *(config.weights, config.hollow, config.hollow_dtype),
            *(config.offload, config.vae_tiles),
            *(config.train, config.rank, config.num_vectors, config.tau, config.subspace),
        )
        one = config
        if config.train != "token" and config.offload == "none":
            one = replace(config, num_perturbations=1)  # the others repeat the first
        if config.schedule != 0.0:
            zo = replace(one, schedule=1.0, checkpointing=False, steps=MOST)
            together = (config.estimator, config.perturbation_batch, one.num_perturbations)
            found |= self._once(("zo", zo.resolution, common, together), zo, "train-zo")
            alone = found.pop("train-zo-alone")
            if config.schedule == 1.0:
                found["train-zo"] = alone
        if config.schedule != 1.0:
            wanted = bool(config.checkpointing)
            bp = replace(one, schedule=0.0, steps=MOST)
            key = ("bp", config.low_resolution, common)
            if (*key, wanted) not in self._known:
                kept = self._checkpointing or (wanted,)
                for value, peaks in zip(kept, self._backprop(bp, kept), strict=True):
                    self._known[*key, value] = peaks
            self._raise(found, self._known[*key, wanted])
        if config.samples:
            key = ("sample", config.resolution, common)
            self._raise(found, self._once(key, config, "sample"))
        return found

    @staticmethod
    def _raise(found: dict[str, int], more: dict[str, int]) -> None:
        for phase, peak in more.items():
            found[phase] = max(peak, found.get(phase, 0))

    def _once(self, key: Any, config: TrainConfig, phase: str) -> dict[str, int]:
        if key not in self._known:
            self._known[key] = self._run(config, phase)
        return self._known[key]

    def _run(self, config: TrainConfig, phase: str) -> dict[str, int]:
        """The peaks of the phases up to ``phase``; zeroth-order steps also without backprop's."""
        with simulated_tensors(), MemoryRecorder(torch.device("cpu"), found=False) as memory:
            if phase == "sample":
                self._sample(config, memory)
                return {"sample": memory.peaks["sample"]}
            training = self._make_training(config, memory)
            with memory.phase(phase):
                training.zeroth_order(1, 0)
            states = training.optimizer.state.values()  # alive all the while
            idle = sum(x.nbytes for state in states for x in state.values())
            peaks = memory.peaks | {"train-zo-alone": memory.peaks[phase] - idle}
            if config.train in INT8_TRAINED:
                with memory.phase("save"):  # of the training too, what has not gone by then
                    rehearse_difference(self._model, training.trained(), room_of(config))
                peaks["save"] = memory.peaks["save"]
            return peaks

    def _backprop(self, config: TrainConfig, checkpointing: Sequence[bool]) -> list[dict[str, int]]:
        """The peaks of the phases up to backprop steps, with checkpointing or without."""
        found = []
        with simulated_tensors(), MemoryRecorder(torch.device("cpu"), found=False) as memory:
            training = self._make_training(config, memory)
            before = dict(memory.peaks)
            for wanted in checkpointing:
                training.checkpoint_activations(wanted)
                name = f"checkpointing {wanted}"
                with memory.phase(name):
                    training.backprop(1, 0)
                found.append(before | {"train-bp": memory.peaks[name]})
        return found

    def _make_training(self, config: TrainConfig, memory: MemoryRecorder) -> Training:
        training = make_training(config, self._model, self._pictures, memory)
        training.make_optimizer_state()
        return training

    def _sample(self, config: TrainConfig, memory: MemoryRecorder) -> None:
        assert config.resolution is not None
        dtype = weight_storage(str(config.weights), str(config.device))
        with memory.phase("load"):
            cut = None if config.hollow is None else cut_of(config.hollow, self._model)
            hole = range(0) if cut is None else cut.hole
            stream, cpu = config.lean, torch.device("cpu")
            adapter: dict[str, Any] = {}
            if config.train == "lora":
                unet = open_network(self._model, dtype, cpu, hole=hole, stream=stream).unet
                adapter = inject_lora(unet, config.rank, config.seed)
                del unet
            # As it is in memory while it is loaded: in its file's dtype and in the network's.
            loaded = {name: weight.to(float_dtype(dtype)) for name, weight in adapter.items()}
        with memory.phase("sample"):
            stages = Stages(self._model, dtype, cpu, low_memory=True, stream=stream, cut=cut)
            texts = stages.encode([config.prompt], guided=True)
            latents = stages.denoise(texts, [[Wanted(0, 0)]], config.resolution, 1, GUIDANCE)
            for _ in stages.decode(latents):
                pass
        del adapter, loaded


def advice_of_plan(rows: Sequence[Prediction], memory_budget: Any) -> str:
    """:func:`advice` for the smallest of predictions of which none fits the budget."""
    config = min(rows, key=lambda row: row.peak_bytes).config
    model, budget = open_model(config.model), Budget.parse(memory_budget)
    return advice(config, model, _blanks(config), budget)


def _blanks(config: TrainConfig) -> list[Picture]:
    """Stand-ins for the pictures of a run."""
    image = Image.new("RGB", (8, 8))
    pictures = [Picture("blank", image, config.prompt)]
    if config.prior_images is not None:
        caption = config.prior_prompt or "a dog"
        pictures.append(Picture("prior", image, caption, regularization=True))
    return pictures


def table(rows: Sequence[Prediction]) -> str:
    """The predictions as text: sizes in MiB."""
    phases = list(dict.fromkeys(phase for row in rows for phase in row.phases))
    header = [
        "method",
        "weights",
        "hollow",
        "offload",
        "checkpointing",
        "low side",
        *phases,
        "peak",
        "fits",
    ]
    lines = [header]
    for row in rows:
        low = "-" if row.config.schedule == 1.0 else str(row.config.low_resolution)
        sizes = [f"{row.phases[p] / 2**20:.0f}" if p in row.phases else "-" for p in phases]
        kept = "on" if row.checkpointing else "off"
        settings = [
            row.method,
            row.weights,
            row.hollow or "-",
            row.offload,
            "-" if low == "-" else kept,
            low,
        ]
        peak = f"{row.peak_bytes / 2**20:.0f}"
        lines.append([*settings, *sizes, peak, "yes" if row.fits else "no"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cuts_text(model: Any) -> str:
    """What ``hollow`` can be for a model, with the share of the parameters that it leaves out."""
    unet = open_model(model).skeleton("unet")
    cuts = list_cuts(unet, list_units(unet))
    return ", ".join(f"{cut.name} {100 * cut.fraction:.1f} %" for cut in cuts)
