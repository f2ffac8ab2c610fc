"""Plans: the figures of a simulation are those of a run, and a budget is kept."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import sopt
from sopt import InputError, cli
from sopt.budget import Budget
from sopt.memory import LiveStorage, MemoryRecorder, OverBudget
from sopt.models import open_model
from sopt.simulation import simulated, simulated_tensors

KIB = 2**10


@pytest.fixture
def small(settings):
    """Settings without the place of the run."""
    return {k: v for k, v in settings.items() if k not in ("images", "prompt", "output")}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2GiB", Budget(2 * 2**30)),
        ("1.5 GiB", Budget(3 * 2**29)),
        ("1500MB", Budget(1_500_000_000)),
        ("4096", Budget(4096)),
        ("process:2gib", Budget(2 * 2**30, of_process=True)),
    ],
)
def test_budgets_are_sizes_with_units(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "2 GiBs", "-1GiB", "0MiB", "memory:2GiB", "nan"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match="memory_budget must be"):
        Budget.parse(text)


@pytest.mark.parametrize("schedule, checkpointing", [(0.5, True), (0.0, False)])
def test_the_peaks_of_a_run_are_those_of_its_plan(settings, small, schedule, checkpointing):
    chosen = {"schedule": schedule, "checkpointing": checkpointing, "steps": 8, "average": 0.5}
    (planned,) = sopt.plan(method="selective", **small | chosen)
    run = sopt.train(**settings | chosen)
    for phase, peak in planned.phases.items():
        # The run has what the simulation leaves out: three pictures instead of one, token ids,
        # three samplers with three lists of 1000 float32 each. On a model of 300 KiB they count.
        assert abs(peak - run.memory[phase]) <= 48 * KIB, phase
    assert set(run.memory) - set(planned.phases) == {"save", "process_anonymous"}


def test_a_simulation_reads_no_weights_and_has_no_storage(micro_model):
    fake = simulated(replace(micro_model, weights=None))
    with simulated_tensors():
        unet = fake.load("unet", torch.bfloat16)
        assert unet.dtype == torch.bfloat16
        result = unet.conv_in(torch.ones(1, 4, 8, 8, dtype=torch.bfloat16))
        assert bool(torch.isfinite(result).all())
    assert result.shape == (1, 8, 8, 8)
    assert all(isinstance(tensor, FakeTensor) for tensor in (result, *unet.parameters()))


@pytest.fixture
def told(monkeypatch):
    """Simulations that take no time: bytes by checkpointing, 16-bit weights halve them."""

    def phases(simulation, config):
        size = 1000 if config.checkpointing else 3000
        size += 500 * (config.schedule != 1.0)
        size //= {"float32": 1, "bfloat16": 2, "int8": 4}[config.weights]
        return {"load": 100, "train": size // (2 if config.offload == "stream" else 1)}

    monkeypatch.setattr("sopt.planning._Simulation.phases", phases)


def test_rows_that_fit_come_first_and_the_fastest_of_them(small, told):
    free = {k: v for k, v in small.items() if k != "schedule"}
    rows = sopt.plan(**free)
    assert all(row.fits for row in rows)
    assert [row.checkpointing for row in rows] == sorted(row.checkpointing for row in rows)
    assert {row.method for row in rows} == {
        "backprop-low", "backprop-high", "selective", "zeroth-order"
    }  # fmt: skip
    limited = sopt.plan(memory_budget="2000", **free)
    assert [row.fits for row in limited] == sorted((row.fits for row in limited), reverse=True)
    assert all(row.fits == (row.peak_bytes <= 2000) for row in limited)
    assert {row.fits for row in limited} == {True, False}
    assert {row.method for row in sopt.plan(schedule="tap", **free)} == {"selective"}


def test_a_budget_decides_about_checkpointing(settings, small):
    small |= {"low_res_ratio": 1.0, "method": "selective", "samples": False}
    rows = sopt.plan(**small)
    kept, recomputed = (
        next(row.phases["train-bp"] for row in rows if row.checkpointing is value)
        for value in (False, True)
    )
    assert recomputed < kept  # else this test would prove nothing
    peaks = {row.checkpointing: row.peak_bytes for row in rows}
    assert peaks[True] < peaks[False]
    budget = (peaks[True] + peaks[False]) // 2 + 8 * KIB
    run = sopt.train(
        **settings | {"low_res_ratio": 1.0, "memory_budget": str(budget), "samples": False}
    )
    assert run.config.checkpointing
    assert max(v for v in run.memory.values() if isinstance(v, int)) <= budget
    roomy = settings | {
        "output": settings["output"] + "2",
        "memory_budget": "1GiB",
        "samples": False,
    }
    assert not sopt.train(**roomy).config.checkpointing


def test_a_budget_that_nothing_fits_says_what_would(settings, told):
    with pytest.raises(InputError, match=r"the smallest that would do is 1MiB, for the phase tr"):
        sopt.train(**settings | {"memory_budget": "100"})


@pytest.mark.parametrize(
    "chosen, hint",
    [
        ({"checkpointing": False, "memory_budget": "1600"}, "checkpointing=True would fit"),
        ({"memory_budget": "900"}, "weights=bfloat16 would fit$"),
        ({"memory_budget": "500"}, "weights=int8 would fit$"),
        ({"memory_budget": "300"}, "weights=int8 and offload=stream would fit$"),
        ({"memory_budget": "100"}, "weights=int8 and offload=stream would do with 1MiB$"),
    ],
)
def test_the_setting_that_would_fit_is_named(settings, told, chosen, hint):
    with pytest.raises(InputError, match=hint):
        sopt.train(**settings | chosen)


def test_a_plan_of_which_nothing_fits_says_what_would(settings, told, capsys):
    command = ["plan", "--model", settings["model"], "--method", "selective"]
    command += ["--weights", "float32", "--memory-budget"]
    for budget, fits in (("300", False), ("9000", True)):
        assert cli.main([*command, budget]) == 0
        text = capsys.readouterr().out
        assert ("None fits; weights=int8 and offload=stream would fit\n" in text) != fits


def test_more_than_the_limit_stops_at_once():
    with LiveStorage(found=False, limit=4000):
        torch.ones(1000)
        with pytest.raises(OverBudget):
            torch.ones(1001)
    recorder = MemoryRecorder(torch.device("cpu"), Budget(1), found=False)

    def phase():
        with recorder, recorder.phase("x"):
            torch.ones(1000)

    with pytest.raises(InputError, match="out of memory in the phase x: the budget is"):
        phase()


def test_a_device_without_memory_is_told():
    with MemoryRecorder(torch.device("cpu"), found=False) as recorder:
        expected = "out of memory in the phase x: cpu has no more"
        with pytest.raises(InputError, match=expected), recorder.phase("x"):
            torch.empty(2**52)
        with pytest.raises(RuntimeError, match="shapes"), recorder.phase("y"):
            torch.ones(2, 3) @ torch.ones(2, 3)


def test_models_of_every_family_can_be_planned():
    model = open_model("random:sdxl")
    with simulated_tensors():
        encoder = simulated(model).load("text_encoder_2", torch.bfloat16)
        hidden = encoder(torch.zeros(1, 77, dtype=torch.int64), output_hidden_states=True)
    assert hidden[0].shape == (1, 1280)
    assert hidden.hidden_states[-2].shape == (1, 77, 1280)
