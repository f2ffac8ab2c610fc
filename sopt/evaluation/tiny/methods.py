"""The methods that are compared: their settings, and the six trials of each in the search.

Steps of all are in proportion: 7.5 steps of a token to one of a LoRA, which is 3000 to 400. A step
of textual inversion by backprop is a forward and a backward pass, which takes the time of two, and
one of ZOODiP is three forwards: equal steps are equal forwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ...errors import InputError, nearest

TOKEN = "<subject>"
TOKEN_STEPS = 7.5  # to one of a LoRA
RATIO = 0.75  # at 0.5 the bundled model's backprop sees latents of 8 x 8
CUT = "a10"  # leaves out 41 % of the bundled model; the paper's 39 % is a8 of another one
TRIALS = 6
LR, ZO_LR = 2.5e-4, 0.01  # of LoRAs, without a search: what it chose for most of the table's

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """Settings of :func:`sopt.train`, and what the search may choose in place of some."""

    settings: Settings | None  # None: the model as it is
    trials: tuple[Settings, ...] = ()
    words: str = "sks {}"  # for the subject, with its class in the braces
    common: Settings = field(
        default_factory=lambda: {
            "weights": "float32",
            "num_perturbations": 2,  # the paper of the selective method gives no number
            "samples": False,
            "checkpointing": False,  # as in the papers' tables, and quicker
            "checkpoint_every": 2**31,
        }
    )

    @property
    def token(self) -> bool:
        """Whether it trains a word rather than a LoRA."""
        return self.words == TOKEN

    def training(self, steps: int, chosen: Settings) -> dict[str, Any]:
        """All settings but pictures, prompt, output and seed, for LoRAs of ``steps`` steps."""
        assert self.settings is not None
        own = round(steps * TOKEN_STEPS) if self.token else steps
        return {**self.common, "steps": own, **self.settings, **chosen}


def _rates(name: str, *values: float) -> tuple[Settings, ...]:
    return tuple({name: value} for value in values)


# Around the rates at which the loss is lowest after 400 steps, and zeroth-order steps do not yet
# harm it (docs/tiny.md).
_BACKPROP = _rates("lr", 6e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3)
# With two perturbations the default, 0.2, diverges.
_ZEROTH_ORDER = _rates("zo_lr", 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1)
_BOTH = tuple(
    {"lr": lr, "zo_lr": zo_lr} for lr, zo_lr in product((1.25e-4, 2.5e-4, 5e-4), (0.01, 0.05))
)

# Averages allow twice the rate and more (docs/tiny.md).
_AVERAGED = tuple(
    {"lr": lr, "average": average} for lr, average in product((2.5e-4, 5e-4, 1e-3), (0.5, 0.75))
)


def _backprop(method: str, **settings: Any) -> Method:
    return Method({"method": method, "lr": LR, **settings}, _BACKPROP)


def _selective(ratio: float = RATIO, **settings: Any) -> Method:
    own = {"method": "selective", "low_res_ratio": ratio, "lr": LR, "zo_lr": ZO_LR}
    return Method({**own, **settings}, _BOTH)


METHODS = {
    "none": Method(None),
    "class-word": Method(None, words="{}"),  # where tokens begin
    "backprop-high": _backprop("backprop-high"),
    "backprop-low": _backprop("backprop-low", low_res_ratio=RATIO),
    "zeroth-order": Method({"method": "zeroth-order", "zo_lr": ZO_LR}, _ZEROTH_ORDER),
    "random": _selective(schedule="random"),
    "reversed": _selective(schedule="reversed"),
    "tap": _selective(schedule="tap"),
    "dtap-0.5": _selective(0.5),
    "dtap-0.625": _selective(0.625),
    "dtap-0.75": _selective(0.75),
    "dtap-average": replace(_selective(average=0.5), trials=_AVERAGED),
    "hollowed-a11": _backprop("hollowed", hollow="a11"),
    "hollowed-a10": _backprop("hollowed", hollow="a10"),
    "hollowed-a9": _backprop("hollowed", hollow="a9"),
    "token-backprop": Method(
        {"method": "backprop-high", "train": "token", "token": TOKEN, "lr": 5e-3},
        _rates("lr", 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 4e-2),
        TOKEN,
    ),
    "token-zoodip": Method(
        {
            "method": "textual-inversion",
            "token": TOKEN,
            "eps": 1e-3,
            "zo_lr": 8e-3,
            "perturbation_batch": 3,
        },
        _rates("zo_lr", 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        TOKEN,
    ),
    "dtap-int8": _selective(weights="int8"),
    "dtap-hollowed": _selective(hollow=CUT),
    "dtap-hollowed-int8": _selective(hollow=CUT, weights="int8"),
}
# Not methods but drawings, scored as a method's pictures are: of the subject as the prompt wants
# it, and of other subjects of its class, elsewhere.
CEILING, FLOOR = "drawings", "others"
NAMES = (CEILING, FLOOR, *METHODS)


def training_settings(name: str, steps: int, chosen: Settings) -> dict[str, Any]:
    """The settings that a method gives its runs: nothing where nothing is trained.

    A result is of these: after a change of a method's own settings its runs are done again. What
    is not among them has the default of :func:`sopt.train`, which a line's commit says.
    """
    method = METHODS.get(name)
    if method is None or method.settings is None:
        return {}
    return method.training(steps, chosen)


def check_methods(names: Sequence[str]) -> None:
    """Raise InputError for a name that is no method's."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"unknown method {name!r}: {nearest(name, NAMES)}")
