"""Can the selective method be made better? ``python -m bench.tiny_variants {search,verdict}``.

``search``: each variant of DTAP with rates of backprop and of zeroth-order steps, on the two
subjects of the benchmark's search, by the loss on drawings that no step sees. ``verdict``: chosen
variants at their best rates and DTAP at its best rates on other subjects, by the judge's scores,
paired by subject and seed. Both write into ``bench/results/tiny_variants.json``; what is there
stays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.generated import RESULTS
from bench.tiny_steps import Steps, ZerothOrder
from sopt.evaluation.tiny.benchmark import IMAGES_PER_PROMPT, SAMPLING_STEPS, STEPS
from sopt.evaluation.tiny.running import Protocol, draw_prompts
from sopt.evaluation.tiny.scores import TUNING, make_task, overall, score
from sopt.files import write_json
from sopt.steps.draws import Draw
from sopt.steps.zeroth_order import zeroth_order_step

FILE = RESULTS / "tiny_variants.json"
BASE = "dtap-0.75"
LRS = (1e-3, 2e-3, 4e-3)
RATES = (0.01, 0.03, 0.1)
SIGN_RATES = (3e-4, 1e-3, 3e-3)
PROTOCOL = Protocol(STEPS, IMAGES_PER_PROMPT, SAMPLING_STEPS)


def only_b(steps: Steps, step: int, timestep: int) -> Any:
    """Perturb and move the B of each pair alone: half of the directions, and A stays a basis."""
    config = steps.training._config
    chosen = {name: x for name, x in steps.adapter.items() if "lora_B" in name}
    loss = steps.training._loss(step, timestep, config.resolution)
    seeds = steps.training._directions(step)
    return zeroth_order_step(chosen, loss, seeds, lr=config.zo_lr, eps=config.eps)


@torch.no_grad()
def along_adam(steps: Steps, step: int, timestep: int) -> Any:
    """The direction of the last backprop update, forwards or backwards: whichever lowers the
    full-size loss. Two forwards; the rate is the size of an element's move."""
    config, state = steps.training._config, steps.training.optimizer.state
    directions = [
        state[weight]["exp_avg"] / (state[weight]["exp_avg_sq"].sqrt() + 1e-8)
        for weight in steps.adapter.values()
        if weight in state
    ]
    if not directions:
        return
    weights = [weight for weight in steps.adapter.values() if weight in state]
    count = sum(x.numel() for x in directions)
    size = (sum(x.square().sum() for x in directions) / count).sqrt()
    loss = steps.training._loss(step, timestep, config.resolution)
    kept, losses = [weight.clone() for weight in weights], []
    for sign in (1, -1):
        for weight, start, along in zip(weights, kept, directions, strict=True):
            weight.copy_(start + sign * config.eps / size * along)
        losses.append(loss())
    move = -config.zo_lr * (losses[0] - losses[1]).sign() / size
    for weight, start, along in zip(weights, kept, directions, strict=True):
        weight.copy_(start + move * along)


@dataclass(frozen=True)
class Variant:
    rates: tuple[float, ...] = RATES
    settings: Mapping[str, Any] = field(default_factory=dict)
    zeroth_order: ZerothOrder | None = None
    average: float = 0.0  # over the steps from this share of them on


VARIANTS = {
    "dtap": Variant(),
    "skipped": Variant((0.0,)),
    "rademacher": Variant(settings={"noise": "rademacher"}),
    "B only": Variant(zeroth_order=only_b),
    "min-SNR": Variant(settings={"min_snr": 5.0}),
    "along Adam": Variant(SIGN_RATES, zeroth_order=along_adam),
    "average": Variant(average=0.5),
    "average of 75 %": Variant(average=0.25),
    "along Adam and average": Variant(SIGN_RATES, zeroth_order=along_adam, average=0.5),
}


class Average:
    """The mean of the adapter over the steps from one on."""

    def __init__(self, steps: Steps, first: int) -> None:
        self._steps, self._left, self._count = steps, first - 1, 0
        self.sums = {name: torch.zeros_like(weight) for name, weight in steps.adapter.items()}

    @torch.no_grad()
    def add(self, _: Draw) -> None:
        if self._left > 0:
            self._left -= 1
            return
        self._count += 1
        for name, weight in self._steps.adapter.items():
            self.sums[name] += weight

    def mean(self) -> dict[str, Tensor]:
        return {name: total / self._count for name, total in self.sums.items()}


def train(name: str, subject: int, seed: int, lr: float, rate: float) -> Steps:
    variant = VARIANTS[name]
    rates = {"lr": lr, "zo_lr": rate}
    steps = Steps(make_task(subject), seed, BASE, steps=STEPS, **rates, **variant.settings)
    after: Callable[[Draw], None] | None = None
    if variant.average:
        average = Average(steps, round(variant.average * STEPS))
        after = average.add
    steps.run(range(1, STEPS + 1), variant.zeroth_order, after=after)
    if variant.average:
        steps.put(average.mean())
    return steps


def search(
    rows: dict[str, Any], names: list[str], lrs: list[float], rates: list[float] | None
) -> None:
    for name, subject, lr in product(names, (TUNING, TUNING + 1), lrs):
        for rate in rates or VARIANTS[name].rates:
            key = f"{name},{lr:g},{rate:g},{subject}"
            if key not in rows:
                started = time.process_time()
                rows[key] = train(name, subject, 0, lr, rate).loss()
                rows[key]["core_seconds"] = time.process_time() - started
                show(key, rows[key])


def best(rows: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The rates with the lowest mean loss over the subjects of the search."""
    found: dict[tuple[float, float], list[float]] = {}
    for key, row in rows.items():
        each, lr, rate, _ = key.split(",")
        if each == name:
            found.setdefault((float(lr), float(rate)), []).append(row["all"])
    both = {rates: sum(losses) for rates, losses in found.items() if len(losses) == 2}
    if not both:
        raise SystemExit(f"{name}: search first")
    return min(both, key=both.__getitem__)


def verdict(rows: dict[str, Any], found: dict[str, Any], names: list[str], keys: Any) -> None:
    for (subject, seed), name in product(keys, ["dtap", *names]):
        lr, rate = best(rows, name)
        key = f"{name},{subject},{seed}"
        if key in found:
            continue
        started = time.process_time()
        steps = train(name, subject, seed, lr, rate)
        task = make_task(subject)
        with tempfile.TemporaryDirectory() as folder:
            file = steps.save(Path(folder) / "lora.safetensors")
            words = f"sks {task.subject.kind}"
            scores = score(task, draw_prompts(task, words, file, seed, PROTOCOL))
        found[key] = {
            "lr": lr,
            "rate": rate,
            "loss": steps.loss(),
            "training": scores["training"]["subject"],
            **{each: overall(scores, each) for each in ("subject", "prompt", "structure")},
            "core_seconds": time.process_time() - started,
        }
        show(key, found[key])


def show(key: str, row: Mapping[str, Any]) -> None:
    write_json(FILE, RESULT)
    print(key, dict(row), flush=True)


RESULT: dict[str, Any] = {"search": {}, "verdict": {}}  # what the file has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["search", "verdict"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--lrs", type=float, nargs="+", default=list(LRS))
    parser.add_argument("--rates", type=float, nargs="+", help="those of each variant if not given")
    parser.add_argument("--subjects", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    if FILE.exists():
        RESULT.update(json.loads(FILE.read_text()))
    if arguments.what == "search":
        search(RESULT["search"], arguments.variants, arguments.lrs, arguments.rates)
    else:
        others = [name for name in arguments.variants if name != "dtap"]
        keys = list(product(arguments.subjects, arguments.seeds))
        verdict(RESULT["search"], RESULT["verdict"], others, keys)


if __name__ == "__main__":
    main()
