"""The estimate of rounding noise against noise that is known, and ``eps="auto"`` in runs."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch

import sopt
from sopt.checkpoint import Checkpoint
from sopt.errors import InputError
from sopt.steps.noise_floor import ALLOWED, LADDER, choose_eps, measure_noise

N = 4096
DELTA = 1e-3  # the deviation of a loss's rounding


def exact():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, generator=generator, dtype=torch.float64)


def noisy_slopes(eps):
    """Of standard normal slopes, by central differences of losses with an error each."""
    generator = torch.Generator()
    error = torch.randn(
        N, 2, generator=generator.manual_seed(round(1e6 * eps)), dtype=torch.float64
    )
    error *= DELTA
    return exact() + (error[:, 0] - error[:, 1]) / (2 * eps)


@pytest.mark.parametrize("eps", [1e-3, 3e-3, 1e-2])
def test_noise_and_signal_are_found_apart(eps):
    floor = measure_noise(noisy_slopes, eps)
    # A mean of N squares of normal numbers is off by sqrt(2 / N) = 2.2 %, twice that of the
    # noise in the signal where both are as large; roots halve it; four deviations.
    assert floor.noise == pytest.approx(DELTA / (math.sqrt(2) * eps), rel=0.05)
    assert floor.signal == pytest.approx(1.0, rel=0.1)


def test_nothing_but_noise_has_no_signal():
    floor = measure_noise(lambda eps: noisy_slopes(eps) - exact(), 1e-3)
    assert floor.ratio > 3


def test_the_smallest_size_that_stands_out_is_chosen():
    """Noise is 0.71, 0.24 and 0.07 of the signal on the rungs."""
    chosen, measured = choose_eps(noisy_slopes)
    assert chosen.eps == LADDER[1] == measured[-1].eps
    assert measured[0].ratio > ALLOWED >= chosen.ratio
    chosen, measured = choose_eps(lambda eps: noisy_slopes(eps) - exact())
    assert len(measured) == len(LADDER)
    assert chosen.ratio == min(floor.ratio for floor in measured)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": "a <x>", "train": "token", "token": "<x>", "initializer": "a", "tau": 3},
    ],
    ids=["lora", "token"],
)
def test_a_run_says_what_it_chose_and_keeps_it(settings, more, caplog, monkeypatch):
    settings |= more | {"eps": "auto", "samples": False}
    chosen = {"calls": 0}

    def choose(slopes):
        chosen["calls"] += 1
        found = slopes(1e-3)
        assert torch.isfinite(found).all()
        assert found.abs().min() > 0
        assert len(found) % 4 == 0  # perturbations of a step, at 4 timesteps
        return choose_eps(slopes, (3e-3,))

    monkeypatch.setattr("sopt.training.choose_eps", choose)
    with caplog.at_level(logging.INFO):
        run = sopt.train(**settings)
    assert "eps='auto': 0.003; rounding noise over slopes is" in caplog.text
    steps = [json.loads(line) for line in (run.output / "history.jsonl").open()]
    assert {"eps" in step for step in steps} == {True, False}
    assert {step["eps"] for step in steps if step["branch"] == "zo"} == {3e-3}
    fixed = sopt.train(**settings | {"eps": 3e-3, "output": settings["output"] + "2"})
    assert fixed.adapter.read_bytes() == run.adapter.read_bytes()  # float32 is exact enough
    state = Checkpoint.load(run.output / "checkpoint" / "state.safetensors")
    assert state.steps["eps"].item() == 3e-3
    again = sopt.train(**settings | {"output": settings["output"] + "3"})
    assert again.adapter.read_bytes() == run.adapter.read_bytes()
    assert chosen["calls"] == 2


def test_a_run_that_goes_on_does_not_measure_again(settings, monkeypatch):
    settings |= {"eps": "auto", "samples": False, "checkpoint_every": 2}
    whole = sopt.train(**settings)

    class Stop(Exception):
        pass

    def fail(*arguments):
        raise Stop

    settings |= {"output": settings["output"] + "2"}
    with monkeypatch.context() as patch:
        patch.setattr("sopt.trainer.save_adapter", fail)
        with pytest.raises(Stop):
            sopt.train(**settings)
    monkeypatch.setattr("sopt.training.choose_eps", fail)
    assert sopt.train(**settings).adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_hollow_has_no_samples_to_measure_on(settings):
    with pytest.raises(InputError, match="eps='auto' does not go with hollow"):
        sopt.train(**settings | {"eps": "auto", "hollow": "a10"})


@pytest.mark.parametrize(
    "eps, message",
    [
        ("automatic", "unknown eps 'automatic': did you mean 'auto'"),
        ("0", "eps must be above 0"),
        (0.0, "eps must be above 0"),
        (-1e-3, "eps must be above 0"),
        (math.nan, "eps must be a finite number"),
    ],
)
def test_other_words_and_sizes_are_refused(settings, eps, message):
    with pytest.raises(InputError, match=message):
        sopt.train(**settings | {"eps": eps})
