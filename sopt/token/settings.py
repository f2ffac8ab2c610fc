"""The settings of ``train="token"``, and the published values behind their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from .. import checks
from ..errors import InputError

ESTIMATORS = ("rge", "spsa")
OPTIMIZERS = ("adam", "sgd")
PRESETS = ("paper", "script")
LONGEST_TOKEN = 200  # bytes; a file's name has 255
RESERVED = ("learned_embeds", "learned_embeds_2")  # files of diffusers beside a token's own

# arXiv 2503.14868, section 4 and appendix, by family of models. SDXL's learning rate and upper
# timestep are not published: those of the other families stand in. "script" is what the authors'
# launch script runs (ignoww/ZOODiP, March 2025), for SD1.5 only: its last timestep is 899.
_PAPER_SD15: dict[str, Any] = {
    "zo_lr": 5e-3,
    "eps": 1e-3,
    "num_perturbations": 2,
    "tau": 128,
    "nu": 1e-3,
    "steps": 30_000,
    "min_timestep": 500,
    "max_timestep": 900,
}
_PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "sd15": _PAPER_SD15,
        "sd21": _PAPER_SD15 | {"zo_lr": 1e-2, "eps": 1e-2},
        "sdxl": _PAPER_SD15 | {"zo_lr": 1e-2, "eps": 1e-2, "min_timestep": 700, "steps": 20_000},
    },
    "script": {
        "sd15": _PAPER_SD15 | {"zo_lr": 1e-2, "max_timestep": 899, "scale_by_dimension": True}
    },
}
# The learning rate of the paper's baseline, textual inversion by backprop.
_BACKPROP_LR = 5e-3
# Of the whole recipe rather than of an estimator: implied by the method "textual-inversion" only.
_OF_THE_RECIPE = ("steps", "min_timestep", "max_timestep")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What ``train="token"`` adds to the settings of a run."""

    token: str | None = field(
        default=None,
        metadata=_help(
            "with train=token: the new word, which the tokenizer must not know, such as '<dog>'; "
            "prompt and captions have it where the subject is"
        ),
    )
    initializer: str | None = field(
        default=None,
        metadata=_help("with train=token: a word of one token whose embedding is the start: dog"),
    )
    num_vectors: int = field(
        default=1, metadata=_help("with train=token: embeddings that the new word stands for")
    )
    preset: str = field(
        default="paper",
        metadata=_help(
            "with train=token: whose values the settings have that are not given: paper or script "
            "(of ZOODiP)"
        ),
    )
    estimator: str = field(
        default="spsa",
        metadata=_help(
            "gradient of the zeroth-order steps: spsa (two-sided, 2 n forwards), or with "
            "train=token rge (one-sided, n + 1 forwards)"
        ),
    )
    zo_optimizer: str = field(
        default="sgd",
        metadata=_help("optimizer of the zeroth-order steps: sgd, or with train=token adam"),
    )
    zo_adam_eps: float = field(
        default=1e-3, metadata=_help("with zo_optimizer=adam: what its denominator has added")
    )
    subspace: bool = field(
        default=False,
        metadata=_help(
            "with train=token: take directions out of the zeroth-order gradient in which the token "
            "hardly moved lately"
        ),
    )
    tau: int = field(
        default=128,
        metadata=_help(
            "with subspace: tokens in its buffer, at least 2 and fewer than the embedding's size"
        ),
    )
    nu: float = field(
        default=1e-3,
        metadata=_help("with subspace: share of the variance that is taken out, in (0, 1)"),
    )
    scale_by_dimension: bool = field(
        default=False,
        metadata=_help(
            "with train=token: divide the zeroth-order gradient by sqrt((d + n - 1) / n), d its "
            "dimensions left and n the perturbations, as the script of ZOODiP does"
        ),
    )
    perturbation_batch: int = field(
        default=1,
        metadata=_help(
            "with train=token: perturbed embeddings in one forward: faster, in that many times the "
            "memory"
        ),
    )


_TOKEN_ONLY = {setting.name: setting.default for setting in fields(TokenSettings)}
_LORA_ONLY = ("rank", "prior_images", "prior_prompt", "prior_weight")


def token_defaults(given: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The defaults of settings with ``train="token"``, for a family of models."""
    if given.get("preset") == "script" and family != "sd15":
        raise InputError(
            f"preset='script' does not go with a model of {family}: it has values for SD1.5 alone"
        )
    published = dict(_PUBLISHED[given.get("preset", TokenSettings.preset)][family])
    if given.get("method") != "textual-inversion":
        for name in _OF_THE_RECIPE:
            del published[name]
    ours = {"estimator": "rge", "zo_optimizer": "adam", "subspace": True, "lr": _BACKPROP_LR}
    return ours | published


def check_token_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings, each right by itself, that do not go together."""
    if settings.get("train", "lora") != "token":
        for name, default in _TOKEN_ONLY.items():
            if settings.get(name, default) != default:
                raise InputError(f"{name}={settings[name]!r} does not go without train='token'")
        return
    for name in ("token", "initializer"):
        if settings.get(name) is None:
            (text,) = (s.metadata["help"] for s in fields(TokenSettings) if s.name == name)
            raise InputError(f"{name} is missing: {text}")
    if settings["token"] == settings["initializer"]:
        raise InputError(f"initializer={settings['initializer']!r} must be another word than token")
    for name in _LORA_ONLY:
        if settings.get(name, _NEUTRAL.get(name)) != _NEUTRAL.get(name):
            raise InputError(f"{name} does not go with train='token': it has no effect on a token")


_NEUTRAL = {"rank": 4, "prior_weight": 1.0}  # their defaults, which config.yaml holds


def check_timesteps(low: int, high: int, num_timesteps: int) -> None:
    """Raise InputError unless [low, high] lies within a scheduler's timesteps."""
    if not low <= high < num_timesteps:
        raise InputError(
            f"min_timestep={low} and max_timestep={high} must be in order and below the "
            f"scheduler's {num_timesteps} timesteps"
        )


def check_tau(tau: int, widths: Mapping[str, int]) -> None:
    """Raise InputError unless fewer tokens are kept than an embedding has elements."""
    for encoder, width in widths.items():
        if tau >= width:
            raise InputError(
                f"tau={tau} must be below the size of an embedding, {width} in {encoder}: "
                "with as many tokens every direction would count as one the token moved in"
            )


def _token(value: Any) -> str | None:
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or value.split() != [value]
        or not value.isprintable()
        or "/" in value
        or len(value.encode()) > LONGEST_TOKEN
        or value in RESERVED
    ):
        raise InputError(
            "token must be a word without spaces and slashes, since a file is named by it, of at "
            f"most {LONGEST_TOKEN} bytes and not {' or '.join(RESERVED)}, got {value!r}"
        )
    return value


def _initializer(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"initializer must be a word, got {value!r}")
    return value.strip()


def _nu(value: Any) -> float:
    share = checks.number("nu", value)
    if not 0 < share < 1:
        raise InputError(f"nu must be in (0, 1), got {value!r}")
    return share


RULES: dict[str, Callable[[Any], Any]] = {
    "token": _token,
    "initializer": _initializer,
    "num_vectors": lambda value: checks.integer("num_vectors", value, 1, 2**6),
    "preset": partial(checks.choice, "preset", known=PRESETS),
    "estimator": partial(checks.choice, "estimator", known=ESTIMATORS),
    "zo_optimizer": partial(checks.choice, "zo_optimizer", known=OPTIMIZERS),
    "zo_adam_eps": partial(checks.positive, "zo_adam_eps"),
    "subspace": partial(checks.boolean, "subspace"),
    "tau": lambda value: checks.integer("tau", value, 2, 2**16),
    "nu": _nu,
    "scale_by_dimension": partial(checks.boolean, "scale_by_dimension"),
    "perturbation_batch": lambda value: checks.integer("perturbation_batch", value, 1, 2**16),
}
