"""What the papers say, each as a sum of methods' scores that should lie above 0.

They are written down before the table is run. Scores are fractions of the way from the floor to
the ceiling. The subject score is that of the eight prompts, as the papers' fidelity is; of the
training prompt there are few pictures. "About as good" means a gain over no training that is at
least ``SHARE`` of the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .intervals import Interval
from .methods import RATIO

SELECTIVE, HOLLOWED, ZOODIP = "arXiv 2507.10029", "arXiv 2411.01179", "arXiv 2503.14868"
SHARE = 0.75
DTAP = f"dtap-{RATIO}"


@dataclass(frozen=True)
class Observation:
    """It holds where the sum of ``weights`` times the methods' ``column`` is above 0."""

    text: str
    source: str
    column: str
    weights: Mapping[str, float]

    def verdict(self, found: Interval | None) -> str:
        """ "holds" or "does not hold" where the whole interval says so, else "undecided"."""
        if found is None or found.low is None or found.high is None:
            return "undecided"
        if found.low > 0:
            return "holds"
        return "does not hold" if found.high < 0 else "undecided"


def _better(better: str, worse: str) -> dict[str, float]:
    return {better: 1.0, worse: -1.0}


def _about_as_good(one: str, other: str) -> dict[str, float]:
    """one - none - SHARE (other - none)."""
    return {one: 1.0, other: -SHARE, "none": SHARE - 1}


OBSERVATIONS = (
    Observation(
        "Zeroth-order steps alone fail: they gain less than half of what backprop-high gains",
        SELECTIVE,
        "subject",
        {"backprop-high": 0.5, "none": 0.5, "zeroth-order": -1.0},
    ),
    Observation(
        "Low-resolution backprop alone distorts: worse structure than backprop-high",
        SELECTIVE,
        "structure",
        _better("backprop-high", "backprop-low"),
    ),
    Observation(
        "DTAP has better structure than low-resolution backprop alone",
        SELECTIVE,
        "structure",
        _better(DTAP, "backprop-low"),
    ),
    *(
        Observation(f"DTAP is better than {other}", SELECTIVE, "subject", _better(DTAP, other))
        for other in ("random", "reversed", "tap")
    ),
    Observation(
        "DTAP is about as good as backprop-high",
        SELECTIVE,
        "subject",
        _about_as_good(DTAP, "backprop-high"),
    ),
    Observation(
        "Backprop-high overfits: DTAP follows prompts better",
        SELECTIVE,
        "prompt",
        _better(DTAP, "backprop-high"),
    ),
    Observation(
        "A smaller r does not harm the subject: 0.5 is about as good as 0.75",
        SELECTIVE,
        "subject",
        _about_as_good("dtap-0.5", "dtap-0.75"),
    ),
    Observation(
        "A smaller r follows prompts less: 0.5 is worse than 0.75",
        SELECTIVE,
        "prompt",
        _better("dtap-0.75", "dtap-0.5"),
    ),
    Observation(
        "Without about 39 % of the U-Net (here 41 %) training is about as good",
        HOLLOWED,
        "subject",
        _about_as_good("hollowed-a10", "backprop-high"),
    ),
    Observation(
        "Beyond that it is worse: 65 % against 41 %",
        HOLLOWED,
        "subject",
        _better("hollowed-a10", "hollowed-a9"),
    ),
    Observation(
        "Textual inversion by forwards alone is about as good as by backprop",
        ZOODIP,
        "subject",
        _about_as_good("token-zoodip", "token-backprop"),
    ),
    Observation(
        "Selective training on int8 weights is about as good as on float32",
        "this project",
        "subject",
        _about_as_good("dtap-int8", DTAP),
    ),
)
