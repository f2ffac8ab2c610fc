"""The mean over the last steps: against those steps' adapters, through stops, with bad settings."""

import numpy as np
import pytest
import torch
from pipelines import act_at_loss, crash

import sopt
from sopt import InputError
from sopt.averaging import TailAverage
from sopt.files import load_tensors

EPS = 2.0**-24  # of float32: half a unit


@pytest.fixture
def settings(settings):
    # With seed 6 the steps are bp, zo, bp, zo, ...
    return settings | {"num_perturbations": 1, "seed": 6}


def test_it_is_the_mean_of_the_last_steps():
    weights = torch.randn(20, 100)
    average = TailAverage({"w": weights[0]}, steps=20, share=0.3)
    for step, weight in enumerate(weights, start=1):
        average.add(step, {"w": weight})
    # Each of the six updates rounds a difference of two, its product and the sum.
    bound = 6 * 4 * EPS * weights.abs().max().item()
    expected = weights[-6:].double().mean(0)
    np.testing.assert_allclose(average.means["w"], expected, rtol=0, atol=bound)


@pytest.mark.parametrize("share", [1e-9, 0.05])
def test_the_least_share_is_the_last_step(share):
    average = TailAverage({"w": torch.zeros(1)}, steps=10, share=share)
    for step in range(1, 11):
        average.add(step, {"w": torch.tensor([float(step)])})
    assert average.means["w"].item() == 10


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("train", ["lora", "token"])
def test_a_run_gives_the_mean_of_its_steps(settings, tmp_path, train):
    if train == "token":
        words = {"token": "<x>", "initializer": "d", "prompt": "a <x>"}
        settings |= {"train": "token", "subspace": False, **words}
    settings["samples"] = False

    def trained(**changes):
        output = tmp_path / "-".join(map(str, changes.values()))
        return load_tensors(sopt.train(**settings | changes | {"output": output}).adapter)[0]

    after = [trained(steps=steps) for steps in (4, 5, 6)]
    mean = trained(steps=6, average=0.5)
    assert mean.keys() == after[0].keys()
    for name, found in mean.items():
        each = torch.stack([adapter[name] for adapter in after])
        bound = 3 * 4 * EPS * each.abs().max().item()
        np.testing.assert_allclose(found, each.double().mean(0), rtol=0, atol=bound)
        assert not torch.equal(found, after[-1][name])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("loss", [3, 6])
def test_a_crashed_run_continues_to_the_same_mean(settings, tmp_path, monkeypatch, loss):
    settings |= {"steps": 4, "average": 0.75, "checkpoint_every": 1}
    unbroken = sopt.train(**settings | {"output": str(tmp_path / "unbroken" / "run")})
    act_at_loss(monkeypatch, loss, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    act_at_loss(monkeypatch, 0, None)
    assert sopt.train(**settings).adapter.read_bytes() == unbroken.adapter.read_bytes()
    (unbroken.output / unbroken.adapter.name).unlink()  # made again from the checkpoint alone
    again = sopt.train(**settings | {"output": str(unbroken.output)})
    assert again.adapter.read_bytes() == sopt.train(**settings).adapter.read_bytes()


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"average": 1.5}, r"average must be in \[0, 1\], got 1.5"),
        ({"average": "half"}, "average must be a finite number"),
        (
            {"average": 0.5, "train": "codes", "method": "zeroth-order"},
            "average=0.5 does not go with train='codes'",
        ),
    ],
)
def test_settings_that_will_not_do(settings, bad, message):
    settings = {k: v for k, v in settings.items() if k not in ("weights", "schedule")}
    with pytest.raises(InputError, match=message):
        sopt.train(**settings | bad)
