"""The table's methods at one learning rate: ``python -m bench.tiny_equal [--subjects 0 1 2]``.

The search of ``sopt benchmark tiny`` gives methods learning rates that are a factor of two or four
apart, which may decide between them. Those with another rate than most run again, at that of most,
into ``bench/results/tiny_equal.jsonl``; lines that are there stay. ``bench.tiny_page`` sets them
beside the table's other methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from bench.generated import RESULTS
from sopt.evaluation.tiny.benchmark import (
    IMAGES_PER_PROMPT,
    SAMPLING_STEPS,
    STEPS,
    SUBJECTS,
    run_missing,
)
from sopt.evaluation.tiny.lines import read_lines
from sopt.evaluation.tiny.methods import LR, METHODS, ZO_LR
from sopt.evaluation.tiny.running import Protocol

FILE = RESULTS / "tiny_equal.jsonl"
PROTOCOL = Protocol(STEPS, IMAGES_PER_PROMPT, SAMPLING_STEPS)
RATES = {"lr": LR, "zo_lr": ZO_LR}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, nargs="+", default=list(range(SUBJECTS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    changed = at_other_rates(read_lines(RESULTS / "tiny.jsonl"))
    keys = product(arguments.seeds, arguments.subjects, changed)
    runs = [((name, subject, seed), changed[name]) for seed, subject, name in keys]
    run_missing(FILE, PROTOCOL, runs)


def at_other_rates(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Settings with ``RATES`` of the table's methods by backprop of a LoRA that have others."""
    chosen = {line["method"]: line["chosen"] for line in lines}
    found = {}
    for name, settings in chosen.items():
        if "lr" in settings and not METHODS[name].token:
            equal = {key: RATES.get(key, value) for key, value in settings.items()}
            if equal != settings:
                found[name] = equal
    return found


if __name__ == "__main__":
    main()
