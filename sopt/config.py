"""One typed, validated set of settings behind ``sopt.train``, the command line and ``config.yaml``.

Every setting is a field of :class:`TrainConfig`, with its help text beside it; no other module
repeats a name, a default or a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any

import yaml

from . import checks
from .averaging import RULES as AVERAGE_RULES
from .averaging import AverageSettings, check_average
from .budget import Budget
from .codes.settings import INT8_TRAINED, CodesSettings, check_codes_settings, codes_defaults
from .codes.settings import RULES as CODES_RULES
from .errors import InputError, nearest
from .lean_settings import FLOATS, LeanSettings, check_lean_settings
from .lean_settings import RULES as LEAN_RULES
from .settings_file import plain, read_yaml
from .token.settings import RULES as TOKEN_RULES
from .token.settings import TokenSettings, check_token_settings, token_defaults

# The methods that are the selective trainer with a constant schedule, a resolution, or a token.
_IMPLIED: dict[str, dict[str, Any]] = {
    "selective": {},
    "backprop-high": {"schedule": 0.0, "low_res_ratio": 1.0},
    "backprop-low": {"schedule": 0.0},
    "zeroth-order": {"schedule": 1.0},
    "textual-inversion": {"schedule": 1.0, "train": "token"},
    "hollowed": {"schedule": 0.0, "low_res_ratio": 1.0},
}
# What a method means where nothing else is said.
_SUGGESTED: dict[str, dict[str, Any]] = {"hollowed": {"hollow": "a8"}}

METHODS = tuple(_IMPLIED)
SCHEDULES = ("dtap", "tap", "random", "reversed")
NOISES = ("gaussian", "rademacher")
WEIGHTS = (*FLOATS, "int8")
AUTO = "auto"  # as a value of eps
_CHOICES = {
    "method": METHODS,
    "train": ("lora", "token", *INT8_TRAINED),
    "noise": NOISES,
    "resume": ("auto", "never"),
}
_RULES = AVERAGE_RULES | LEAN_RULES | TOKEN_RULES | CODES_RULES

# Settings that say where and when the files are written; no bit of the adapter depends on them.
_WITHOUT_EFFECT_ON_BITS = (
    "output",
    "checkpoint_every",
    "resume",
    "checkpointing",
    "memory_budget",
    "offload",
    "samples",
)


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class TrainConfig(AverageSettings, LeanSettings, TokenSettings, CodesSettings):
    """The settings of a run; make one with :meth:`create`, which checks them.

    ``lr``, ``zo_lr``, ``eps`` and ``num_perturbations`` are not published for the method
    (arXiv 2507.10029): these values are ours. ``lr`` and ``zo_lr`` come from a coarse search on
    ``tiny``, one run a value: at ``lr`` 5e-4 a subject is learned more slowly, at 3e-3 the loss at
    high timesteps rises; ``zo_lr`` 0.1 and 0.2 lower that loss, 0.4 does not, 1 raises it and 10
    destroys the adapter. ``eps``: at 1e-2 the slopes of ``tiny`` in bfloat16 are off by 0.14 of
    themselves, on int8 weights by 0.26, at 1e-3 by 1.3 and 2.6 (``bench.precision_gate``).
    ``num_perturbations`` was not searched. Rank 4, the schedule's constants, the ratios and 1000
    steps are the paper's. With ``train="token"`` these and other defaults are ZOODiP's:
    :mod:`sopt.token.settings`; those of ``train="codes"`` and ``"scales"`` are ours:
    :mod:`sopt.codes.settings`.

    Example:
        >>> config = TrainConfig.create(images="dog", prompt="a sks dog", output="runs/dog")
        >>> config.method, config.rank, config.schedule
        ('selective', 4, 'dtap')
    """

    images: Any = field(metadata=_help("pictures of the subject: a folder, files, or PIL images"))
    prompt: str = field(
        metadata=_help("text that stands for the subject, with a rare word: 'a sks dog'")
    )
    output: str = field(
        metadata=_help("run folder; made if missing, continued if it holds the same run")
    )
    model: Any = field(
        default="tiny",
        metadata=_help(
            "'tiny' (bundled), a diffusers folder, a single .safetensors file, a hub id, a loaded "
            "pipeline, or for benchmarks 'random:sd15' (sd21-base, sd21, sdxl, ssd1b)"
        ),
    )
    method: str = field(default="selective", metadata=_help(f"one of {', '.join(METHODS)}"))
    train: str = field(
        default="lora",
        metadata=_help(
            "what is trained: lora (of the U-Net), token (textual inversion: the embedding of a "
            "new word), codes or scales (the U-Net's int8 weights themselves)"
        ),
    )
    steps: int = field(default=1000, metadata=_help("training steps, at least 1"))
    seed: int = field(
        default=0, metadata=_help("seed of all the run's random draws, in [0, 2**64)")
    )
    resolution: int | None = field(
        default=None,
        metadata=_help(
            "side of the training pictures in pixels, a multiple of the VAE's factor and 8; "
            "the model's own if not given"
        ),
    )
    rank: int = field(default=4, metadata=_help("rank of the LoRA adapter, at least 1"))
    weights: str | None = field(
        default=None,
        metadata=_help(
            f"how the frozen weights are stored: {', '.join(WEIGHTS)}; bfloat16, and float32 where "
            "the processor has no bfloat16 instructions, if not given"
        ),
    )
    checkpointing: bool | None = field(
        default=None,
        metadata=_help(
            "true recomputes activations in backprop instead of keeping them: slower, in less "
            "memory; if not given, true unless memory_budget leaves room"
        ),
    )
    memory_budget: str | None = field(
        default=None,
        metadata=_help(
            "most memory that the run may take: '2GiB' of tensors, or 'process:2GiB' of the whole "
            "process; no limit if not given"
        ),
    )
    schedule: str | float | Callable[[int, int], float] = field(
        default="dtap",
        metadata=_help(
            "chance that a step is zeroth-order: dtap, tap, random (0.25), reversed (1 - dtap), a "
            "number in [0, 1], or in Python a callable (step, timestep) -> probability"
        ),
    )
    low_res_ratio: float = field(
        default=0.5,
        metadata=_help(
            "side of the pictures of backprop steps as a share of the resolution, in (0, 1]"
        ),
    )
    lr: float = field(
        default=1e-3, metadata=_help("learning rate of the backprop steps (AdamW), above 0")
    )
    zo_lr: float = field(
        default=0.2,
        metadata=_help(
            "learning rate of the zeroth-order steps (SGD), any finite number; "
            "0 skips the update and a negative one ascends, both for control experiments"
        ),
    )
    eps: float | str = field(
        default=1e-2,
        metadata=_help(
            "size of the zeroth-order perturbation, above 0; auto measures before the first step "
            "how large it must be to stand out of rounding"
        ),
    )
    num_perturbations: int = field(
        default=4, metadata=_help("random directions per zeroth-order step, at least 1")
    )
    min_timestep: int = field(
        default=0, metadata=_help("first of the timesteps that steps draw from, evenly")
    )
    max_timestep: int | None = field(
        default=None, metadata=_help("last of them; the scheduler's own last if not given")
    )
    noise: str = field(
        default="gaussian", metadata=_help(f"noise of the perturbations: {' or '.join(NOISES)}")
    )
    min_snr: float | None = field(
        default=None,
        metadata=_help(
            "gamma of the min-SNR weights of the loss, above 0 (its authors use 5); all timesteps "
            "count alike if not given"
        ),
    )
    prior_images: Any = field(
        default=None,
        metadata=_help(
            "pictures of the subject's class for prior preservation: a folder, files, or PIL images"
        ),
    )
    prior_prompt: str | None = field(
        default=None,
        metadata=_help("text for prior_images without captions of their own: 'a dog'"),
    )
    prior_weight: float = field(
        default=1.0, metadata=_help("factor on the loss of the prior pictures, above 0")
    )
    checkpoint_every: int = field(
        default=50, metadata=_help("steps between two checkpoints, at least 1")
    )
    samples: bool = field(
        default=True,
        metadata=_help("draw a picture without and with the adapter at the end"),
    )
    resume: str = field(
        default="auto",
        metadata=_help("auto continues an interrupted run in the output folder, never refuses one"),
    )
    device: str | None = field(
        default=None,
        metadata=_help("where to train: cpu, cuda, cuda:1; the GPU if there is one, if not given"),
    )

    @classmethod
    def create(cls, *, family: str = "sd15", **settings: Any) -> TrainConfig:
        """Checked settings; those not given get their default, or what ``method`` implies.

        With ``train="token"`` several defaults are those of a preset, which depends on the family
        of models: sd15, sd21 or sdxl.

        Pass what the user set and nothing else: a schedule given beside a method that has its own
        is refused rather than ignored.

        Raises:
            InputError: An unknown name or value (the nearest known one is suggested), a missing
                setting, a value outside its range, or two settings that exclude each other.
        """
        known = {setting.name: setting for setting in fields(cls)}
        for name in settings:
            if name not in known:
                raise InputError(f"unknown setting {name!r}: {nearest(name, known)}")
        for name, setting in known.items():
            if name not in settings and setting.default is MISSING:
                raise InputError(f"{name} is missing: {setting.metadata['help']}")
        usual = "zeroth-order" if settings.get("train") in INT8_TRAINED else "selective"
        settings = {"method": usual} | settings
        method = checks.choice("method", settings["method"], METHODS)
        checked = {name: _checked(name, value) for name, value in settings.items()}
        for name, implied in _IMPLIED[method].items():
            if checked.setdefault(name, implied) != implied:
                raise InputError(
                    f"{name}={settings[name]!r} does not go with method={method!r}, "
                    f"which means {name}={implied if isinstance(implied, str) else f'{implied:g}'}"
                )
        for name, suggested in _SUGGESTED.get(method, {}).items():
            checked[name] = suggested if checked.get(name) is None else checked[name]
        check_lean_settings(checked)
        if checked.get("train", "lora") == "token":
            if method == "textual-inversion":
                checked["weights"] = checked.get("weights") or "int8"
            checked = token_defaults(checked, family) | checked
        if checked.get("train") in INT8_TRAINED:
            checked["weights"] = checked.get("weights") or "int8"
            checked = codes_defaults(checked["train"]) | checked
        check_token_settings(checked)
        check_codes_settings(checked)
        check_average(checked)
        if checked.get("prior_prompt") is not None and checked.get("prior_images") is None:
            raise InputError(
                f"prior_prompt={checked['prior_prompt']!r} does not go without prior_images"
            )
        return cls(**checked)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """The settings in a YAML file, such as a run's ``config.yaml``, then ``overrides``.

        Raises:
            InputError: As :meth:`create`; or the file is missing or is not a YAML mapping.
        """
        return cls.create(**(read_yaml(Path(path)) | overrides))

    @property
    def low_resolution(self) -> int:
        """Side of the pictures of backprop steps in pixels, once ``resolution`` is known."""
        assert self.resolution is not None
        return round(self.resolution * self.low_res_ratio)

    @property
    def pool(self) -> int | None:
        """Samples that the steps share; None where each has its own."""
        shared = self.hollow_samples is not None and self.hollow_samples < self.steps
        return self.hollow_samples if shared else None

    @property
    def timesteps(self) -> range:
        """Those that steps draw from, once ``max_timestep`` is known."""
        assert self.max_timestep is not None
        return range(self.min_timestep, self.max_timestep + 1)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; pictures, pipelines and callables as descriptions."""
        return {each.name: plain(getattr(self, each.name)) for each in settings()}

    def to_yaml(self) -> str:
        """The settings as YAML text, those of every run first."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def bits(self) -> dict[str, Any]:
        """The settings that the adapter's bits depend on, as plain values."""
        return {k: v for k, v in self.to_dict().items() if k not in _WITHOUT_EFFECT_ON_BITS}


def settings() -> list[Field]:
    """All settings, those of every run first; as fields, those of the parent classes are."""
    known = {each.name: each for each in fields(TrainConfig)}
    return [known[name] for kind in TrainConfig.__mro__ for name in get_annotations(kind)]


def _checked(name: str, value: Any) -> Any:
    """``value`` in the type of the setting ``name``, or an InputError naming the rule."""
    if name in _RULES:
        return _RULES[name](value)
    match name:
        case "prior_images" | "prior_prompt" | "min_snr" if value is None:
            return None
        case "prompt" | "prior_prompt":
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{name} must be a text that is not empty, got {value!r}")
            return value
        case "output":
            if not isinstance(value, (str, Path)) or not str(value):
                raise InputError(f"output must be the path of a folder, got {value!r}")
            return str(value)
        case "model":
            return str(value) if isinstance(value, Path) else value
        case "images" | "prior_images":
            if isinstance(value, (list, tuple)) and not value:
                raise InputError(f"{name} must name at least one picture, got an empty list")
            return value
        case "method" | "train" | "noise" | "resume":
            return checks.choice(name, value, _CHOICES[name])
        case "steps" | "rank" | "num_perturbations" | "checkpoint_every":
            return checks.integer(name, value, 1, 2**32)
        case "seed":
            return checks.integer(name, value, 0, 2**64)
        case "min_timestep":
            return checks.integer(name, value, 0, 2**32)
        case "max_timestep":
            return None if value is None else checks.integer(name, value, 0, 2**32)
        case "resolution":
            return None if value is None else checks.integer(name, value, 1, 2**16)
        case "low_res_ratio":
            ratio = checks.number(name, value)
            if not 0 < ratio <= 1:
                raise InputError(f"low_res_ratio must be in (0, 1], got {value!r}")
            return ratio
        case "eps" if isinstance(value, str) and value.isalpha():
            return checks.choice(name, value, [AUTO])
        case "lr" | "eps" | "min_snr" | "prior_weight":
            return checks.positive(name, value)
        case "zo_lr":
            return checks.number(name, value)
        case "schedule":
            return _schedule(value)
        case "weights":
            return None if value is None else checks.choice(name, value, WEIGHTS)
        case "samples":
            return checks.boolean(name, value)
        case "checkpointing":
            return None if value is None else checks.boolean(name, value)
        case "memory_budget":
            if value is not None:
                Budget.parse(value)
            return None if value is None else str(value)
        case "device":
            if value is not None and not isinstance(value, str):
                raise InputError(f"device must be a name such as 'cpu' or 'cuda', got {value!r}")
            return value
    raise AssertionError(f"the setting {name} has no rule")


def _schedule(value: Any) -> Any:
    if callable(value) or value in SCHEDULES:
        return value
    try:
        share = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"unknown schedule {value!r}, which may be a name, a number in [0, 1] or a callable: "
            + nearest(value, SCHEDULES)
        ) from None
    if not 0 <= share <= 1:
        raise InputError(f"a schedule that is a number must be in [0, 1], got {value!r}")
    return share
