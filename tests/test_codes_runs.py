"""Whole runs that train int8 codes or scales: killed and continued, planned, drawn, reported."""

from __future__ import annotations

import pytest
import torch
from killer import kill_at_loss
from pipelines import act_at_loss, crash

import sopt
from sopt import InputError
from sopt.codes.files import DIFFERENCE, MODEL_FOLDER
from sopt.codes.tensors import layer_of
from sopt.files import load_tensors

KINDS = {
    "codes": {"eps": 5e-3, "zo_lr": 0.05, "headroom": 4},
    "scales": {"eps": 1e-4, "zo_lr": 1e-6, "zo_clip": 5.0},
}


@pytest.fixture(params=KINDS)
def settings(request, settings):
    for name in ("schedule", "weights"):
        del settings[name]
    train = {"train": request.param, "method": "zeroth-order", "num_perturbations": 2}
    return settings | train | KINDS[request.param] | {"steps": 5}


def results(run):
    files = [DIFFERENCE, *(f"{MODEL_FOLDER}/{f}" for f in ("model_index.json", "unet/config.json"))]
    (weights,) = (run.output / MODEL_FOLDER / "unet").glob("*.int8.safetensors")
    return [(run.output / name).read_bytes() for name in files] + [weights.read_bytes()]


def timeless(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", [3, 11, 18])
def test_a_crashed_run_continues_to_the_same_bits(settings, tmp_path, monkeypatch, at):
    whole = sopt.train(**settings | {"output": str(tmp_path / "whole")})
    with monkeypatch.context() as patch:
        act_at_loss(patch, at, crash)
        with pytest.raises(RuntimeError, match="crash"):
            sopt.train(**settings)
    calls = act_at_loss(monkeypatch, 0, crash)
    run = sopt.train(**settings)
    assert len(calls) == 4 * (5 - (at - 1) // 4 // 2 * 2)  # from the checkpoint on
    assert results(run) == results(whole)
    assert timeless(run.history) == timeless(whole.history)
    tensors, _ = load_tensors(run.adapter)
    assert tensors
    assert sopt.train(**settings).adapter == run.adapter  # finished: returned as it is


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_killed_run_continues_to_the_same_bytes(settings, tmp_path):
    settings |= {"samples": False}
    kill_at_loss(settings, "sopt.training.diffusion_loss", 15)
    run = sopt.train(**settings)
    whole = sopt.train(**settings | {"output": str(tmp_path / "whole")})
    assert results(run) == results(whole)
    assert timeless(run.history) == timeless(whole.history)


@pytest.mark.usefixtures("quick")
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(settings, monkeypatch):
    monkeypatch.setattr("sopt.training.diffusion_loss", lambda *_, **__: torch.tensor(torch.nan))
    run = sopt.train(**settings | {"samples": False})
    assert all(entry["skipped"] for entry in run.history)
    still = sopt.train(
        **settings | {"samples": False, "zo_lr": 0.0, "output": settings["output"] + "2"}
    )
    assert results(run) == results(still)


def test_pictures_plan_report_and_the_next_run(settings, micro_folder, pictures):
    run = sopt.train(**settings)
    report = (run.output / "report.html").read_text()
    assert settings["train"] in report
    options = {"prompt": "a sks dog", "steps": 2, "weights": "int8"}
    (one,) = sopt.generate(str(micro_folder), run, **options)
    (same,) = sopt.generate(str(micro_folder), run.output, **options)
    (whole,) = sopt.generate(str(run.output / MODEL_FOLDER), **options)
    (plain,) = sopt.generate(str(micro_folder), **options)
    assert one.tobytes() == same.tobytes() == whole.tobytes() != plain.tobytes()

    known = {k: settings[k] for k in ("train", "method", "num_perturbations")}
    (row,) = sopt.plan(str(micro_folder), **known, samples=True)
    assert row.weights == "int8"
    # 5 %, and the few KiB that a real run has beside its tensors of some hundred.
    for phase in ("cache", "train-zo"):
        assert abs(row.phases[phase] - run.memory[phase]) <= 0.05 * run.memory[phase] + 2**14, phase
    assert run.memory["save"] <= run.memory["train-zo"]  # no second set of codes
    # As much as if all codes of the layer changed: 4 times those of the largest, and some rows.
    assert 0 <= row.phases["save"] - run.memory["save"] <= 2**16

    with pytest.raises(InputError, match="is too small for these settings: the smallest"):
        sopt.train(**settings | {"output": settings["output"] + "b", "memory_budget": "100kB"})

    model = str(run.output / MODEL_FOLDER)
    again = sopt.train(**settings | {"model": model, "output": settings["output"] + "2"})
    assert again.config.weights == "int8"
    with pytest.raises(InputError, match="is of another model"):
        sopt.generate(str(micro_folder), again, **options)
    lora = {"train": "lora", "method": "backprop-low", "model": model, "samples": False}
    bare = {k: v for k, v in settings.items() if k not in ("zo_clip", "headroom", "eps", "zo_lr")}
    tuned = sopt.train(**bare | lora | {"output": settings["output"] + "3", "steps": 1})
    assert tuned.history[0]["loss"] is not None


@pytest.mark.parametrize(
    "option, message",
    [
        ({"adapter_scale": 0.5}, "adapter_scale=0.5 does not go with the adapter"),
        ({"offload": "stream", "weights": None}, "offload='stream' does not go with the adapter"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_a_difference_does_not_go_with(settings, micro_folder, option, message):
    run = sopt.train(**settings | {"steps": 1})
    with pytest.raises(InputError, match=message):
        sopt.generate(str(micro_folder), run, prompt="a dog", **option)


@pytest.mark.usefixtures("quick")
def test_only_the_layers_that_are_named_train(settings):
    run = sopt.train(**settings | {"layers": "attn2.to_v, attn2.to_out", "samples": False})
    tensors, _ = load_tensors(run.adapter)
    layers = {layer_of(name) for name in tensors}
    assert layers
    assert all("attn2.to_v" in layer or "attn2.to_out" in layer for layer in layers)
    with pytest.raises(InputError, match="layers='to_w' names no linear layer or convolution"):
        sopt.train(**settings | {"layers": "to_w", "output": settings["output"] + "2"})


@pytest.mark.usefixtures("quick")
def test_another_base_is_not_continued(settings, micro_folder, monkeypatch):
    run = sopt.train(**settings | {"steps": 2})
    (run.output / "memory.json").unlink()
    monkeypatch.setattr("sopt.codes.training.fingerprint", lambda unet: "another")
    with pytest.raises(InputError, match="its UNet is not that of the run"):
        sopt.train(**settings | {"steps": 2})
