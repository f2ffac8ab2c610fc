"""``sopt.train`` end to end on a micro pipeline: files, branches, methods, memory of each phase."""

import functools
import gc
import itertools
import json
import logging
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pipelines import save_micro_pipeline
from safetensors.torch import load_file

import sopt
from sopt.models import inject_lora
from sopt.steps.seeds import Tag, integer, seed64, uniform
from sopt_kernels import add_noise_, noise

PHASES = {"load", "cache", "train-bp", "train-zo", "save", "sample"}


def adapter_of(run):
    """The tensors of the diffusers file by canonical name."""
    names = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
    tensors = {}
    for name, tensor in load_file(run.adapter).items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    return dict(sorted(tensors.items()))


def initial_adapter(model, rank=4, seed=0):
    return {n: p.detach() for n, p in inject_lora(model.load("unet"), rank, seed).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def two_sampling_steps(monkeypatch):
    monkeypatch.setattr("sopt.trainer.generate", functools.partial(sopt.generate, steps=2))


@pytest.fixture
def losses(monkeypatch):
    """Every loss that a run evaluates: (gradient wanted, sample)."""
    from sopt.steps.loss import diffusion_loss

    seen = []

    def recorded(unet, scheduler, sample, **options):
        seen.append((torch.is_grad_enabled(), sample))
        return diffusion_loss(unet, scheduler, sample, **options)

    monkeypatch.setattr("sopt.training.diffusion_loss", recorded)
    return seen


def test_a_run_writes_all_its_files(settings, micro_model, two_sampling_steps):
    run = sopt.train(**settings)
    folder = Path(settings["output"])
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.yaml",
        "history.jsonl",
        "memory.json",
        "record.json",
        "report.html",
        "pytorch_lora_weights.safetensors",
        "run_kohya.safetensors",
        "samples/before.png",
        "samples/after.png",
        "checkpoint/state.safetensors",
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["resolution"] == 32
    assert config["device"] in ("cpu", "cuda")
    assert config["steps"] == 6
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert run.history == [json.loads(line) for line in lines]
    assert [entry["step"] for entry in run.history] == [1, 2, 3, 4, 5, 6]
    common = {"step", "branch", "timestep", "p_zo", "loss", "seconds"}
    for entry in run.history:
        assert set(entry) == common | (
            {"seeds", "coefficients"} if entry["branch"] == "zo" else set()
        )
    memory = json.loads((folder / "memory.json").read_text())
    assert set(memory) == PHASES | {"process_anonymous"}
    assert all(memory[phase] > 0 for phase in PHASES)
    assert run.memory == memory
    assert run.adapter == folder / "pytorch_lora_weights.safetensors"
    assert same_shapes(adapter_of(run), initial_adapter(micro_model))
    assert not same_bits(adapter_of(run), initial_adapter(micro_model))
    before, after = (Image.open(folder / "samples" / f"{name}.png") for name in ("before", "after"))
    assert before.size == after.size == (32, 32)


def same_shapes(a, b):
    return {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(settings, quick, tmp_path):
    first = sopt.train(**settings)
    again = sopt.train(**settings | {"output": str(tmp_path / "again" / "run")})
    other = sopt.train(**settings | {"output": str(tmp_path / "other"), "seed": 1})
    assert first.adapter.read_bytes() == again.adapter.read_bytes() != other.adapter.read_bytes()
    kohya = [run.output / f"{run.output.name}_kohya.safetensors" for run in (first, again)]
    assert kohya[0].read_bytes() == kohya[1].read_bytes()


def test_torch_numpy_and_python_generators_are_not_advanced(settings, two_sampling_steps):
    def numbers():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002  the global generator is meant
            random.getstate(),
        )

    before = numbers()
    sopt.train(**settings)
    assert numbers() == before


def test_branches_timesteps_and_pictures_come_from_the_seeds(settings, quick, losses):
    run = sopt.train(**settings | {"schedule": lambda step, timestep: timestep / 1000, "steps": 12})
    assert {entry["branch"] for entry in run.history} == {"bp", "zo"}
    for entry in run.history:
        step, t = entry["step"], entry["timestep"]
        assert t == integer(seed64(0, step, 0, Tag.TIMESTEP), 0, 1000)
        assert entry["p_zo"] == t / 1000
        # ZO where the draw is below p: the algorithm as the paper's equations have it.
        zo = uniform(seed64(0, step, 0, Tag.BRANCH)) < t / 1000
        assert entry["branch"] == ("zo" if zo else "bp")


def test_more_zeroth_order_steps_where_p_is_high(settings, quick):
    run = sopt.train(**settings | {"schedule": 0.9, "steps": 20, "num_perturbations": 1})
    # Binomial with mean 18 of 20; 12 or fewer has probability 4e-4, and 20 x 0.1 would give 2.
    assert sum(entry["branch"] == "zo" for entry in run.history) > 12


def test_backprop_sees_low_and_zeroth_order_full_resolution(settings, quick, losses):
    run = sopt.train(**settings)
    per_branch = {"bp": 1, "zo": 2 * run.config.num_perturbations}
    position = 0
    for entry in run.history:
        count = per_branch[entry["branch"]]
        calls = losses[position : position + count]
        position += count
        side = 4 if entry["branch"] == "bp" else 8  # latent elements: 16 and 32 pixels over 4
        for gradient, sample in calls:
            assert gradient == (entry["branch"] == "bp")
            assert sample.latents.shape == sample.noise.shape == (1, 4, side, side)
            assert sample.timestep == entry["timestep"]
            # The very same tensors in all forwards of a step.
            assert sample.latents is calls[0][1].latents
            assert sample.noise is calls[0][1].noise
            assert sample.prompt is calls[0][1].prompt
    assert position == len(losses)


def test_latents_and_noise_are_those_of_the_seeds(settings, quick, losses, micro_model, pictures):
    from sopt.data import load_pictures, to_pixels

    sopt.train(**settings | {"method": "backprop-high", "schedule": 0, "steps": 3})
    vae = micro_model.load("vae")
    for step, (_, sample) in enumerate(losses, start=1):
        picture = load_pictures(pictures, "x")[integer(seed64(0, step, 0, Tag.IMAGE), 0, 3)]
        with torch.no_grad():
            posterior = vae.encode(to_pixels(picture.image, 32)).latent_dist
        z = noise((1, 4, 8, 8), seed64(0, step, 0, Tag.VAE_LATENT), "vae_latent")
        expected = (posterior.mean + posterior.std * z) * vae.config.scaling_factor
        assert torch.equal(sample.latents, expected)
        seed = seed64(0, step, 0, Tag.DIFFUSION_NOISE)
        assert torch.equal(sample.noise, noise((1, 4, 8, 8), seed, "diffusion_noise"))


def test_zeroth_order_run_is_replayed_from_its_history_to_the_bit(settings, quick, micro_model):
    run = sopt.train(
        **{k: v for k, v in settings.items() if k != "schedule"}, method="zeroth-order"
    )
    adapter = initial_adapter(micro_model)
    for entry in run.history:
        assert entry["branch"] == "zo"
        assert entry["seeds"] == [seed64(0, entry["step"], n, Tag.DIRECTION) for n in range(4)]
        add_noise_(
            list(adapter.values()), entry["seeds"], entry["coefficients"], streams=list(adapter)
        )
    assert same_bits(adapter, adapter_of(run))


@pytest.mark.parametrize(
    "method, selective",
    [
        ("backprop-high", {"schedule": 0, "low_res_ratio": 1}),
        ("backprop-low", {"schedule": 0}),
        ("zeroth-order", {"schedule": 1}),
    ],
)
def test_methods_are_the_selective_trainer(settings, quick, tmp_path, method, selective):
    del settings["schedule"]
    a = sopt.train(**settings | {"method": method, "steps": 3})
    b = sopt.train(**settings | selective | {"output": str(tmp_path / "b"), "steps": 3})
    assert a.adapter.read_bytes() == b.adapter.read_bytes()


def test_zeroth_order_steps_leave_the_optimizer_alone(settings, quick, tmp_path, monkeypatch):
    settings["zo_lr"] = 0.0
    with_steps = sopt.train(**settings)
    checkpoint = "checkpoint/state.safetensors"
    monkeypatch.setattr("sopt.training.zeroth_order_step_together", lambda *a, **k: None)
    without = sopt.train(**settings | {"output": str(tmp_path / "without")})
    assert {entry["branch"] for entry in with_steps.history} == {"bp", "zo"}
    assert same_bits(
        load_file(with_steps.output / checkpoint), load_file(without.output / checkpoint)
    )


def test_the_sign_of_the_zeroth_order_rate_turns_the_update_round(settings, quick, tmp_path):
    settings |= {"schedule": 1, "steps": 1, "zo_lr": 0.25}
    runs = [sopt.train(**settings)]
    runs += [sopt.train(**settings | {"output": str(tmp_path / "b"), "zo_lr": -0.25})]
    first, second = (run.history[0]["coefficients"] for run in runs)
    assert first == [-c for c in second]
    assert any(first)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_prediction_types_train(settings, quick, tmp_path, prediction_type):
    folder = save_micro_pipeline(tmp_path / "model", prediction_type=prediction_type)
    run = sopt.train(**settings | {"model": str(folder)})
    assert all(np.isfinite(entry["loss"]) for entry in run.history)


def test_the_encoders_have_left_memory_when_training_begins(settings, quick, monkeypatch):
    from sopt.models import Model
    from sopt.steps.loss import diffusion_loss

    weights, alive = [], []
    load = Model.load

    def watched(model, component, *arguments, **options):
        module = load(model, component, *arguments, **options)
        if component != "unet":
            tensors = itertools.chain(module.parameters(), module.buffers())
            weights.extend(weakref.ref(tensor.untyped_storage()) for tensor in tensors)
        return module

    monkeypatch.setattr(Model, "load", watched)

    def counted(*arguments, **options):
        alive.append(sum(weight() is not None for weight in weights))
        return diffusion_loss(*arguments, **options)

    monkeypatch.setattr("sopt.training.diffusion_loss", counted)
    gc.disable()  # not by chance: nothing of theirs is in a reference cycle
    try:
        sopt.train(**settings | {"steps": 1})
    finally:
        gc.enable()
    assert len(weights) > 50
    assert alive[0] == 0


def test_no_gradient_is_alive_in_a_zeroth_order_step(settings, quick, monkeypatch):
    from sopt.training import zeroth_order_step_together

    checked = []

    def checking(adapter, losses_of, *arguments, **options):
        checked.append(all(parameter.grad is None for parameter in adapter.values()))
        return zeroth_order_step_together(adapter, losses_of, *arguments, **options)

    monkeypatch.setattr("sopt.training.zeroth_order_step_together", checking)
    run = sopt.train(**settings)
    branches = "".join(entry["branch"][0] for entry in run.history)
    assert "bz" in branches  # a zeroth-order step after a backprop step
    assert all(checked)
    assert checked


def test_losses_that_are_not_finite_are_skipped_and_counted(
    settings, quick, monkeypatch, micro_model, caplog
):
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("sopt.training.diffusion_loss", lambda *a, **k: nan)
    run = sopt.train(**settings)
    assert same_bits(adapter_of(run), initial_adapter(micro_model))
    for entry in run.history:
        assert entry["skipped"] is True
        assert entry["loss"] is None
        assert entry.get("coefficients", []) == []
    counts = [sum(e["branch"] == b for e in run.history) for b in ("bp", "zo")]
    assert "of 6 steps, {} backprop and {} zeroth-order ones".format(*counts) in caplog.text


def test_a_long_prompt_is_cut_with_a_warning(settings, quick, caplog):
    sopt.train(**settings | {"prompt": "a very long prompt " * 9, "steps": 1})
    assert "is cut after the 16 tokens" in caplog.text


def test_low_resolution_is_not_checked_where_it_is_not_used(settings, quick):
    del settings["schedule"]
    sopt.train(**settings | {"method": "zeroth-order", "low_res_ratio": 0.7, "steps": 1})


def test_sides_that_the_levels_do_not_divide_train(settings, quick, losses):
    # 28 pixels are 7 latents, and 4 at the second level; 40 are 10 and 5.
    sopt.train(**settings | {"resolution": 40, "low_res_ratio": 28 / 40})
    assert {sample.latents.shape[-1] for _, sample in losses} == {7, 10}


def test_pictures_that_had_to_be_enlarged_are_told(settings, caplog):
    large, small = (Image.new("RGB", size) for size in ((64, 70), (90, 20)))
    settings |= {"images": [large, small, large], "steps": 1, "samples": False, "resolution": 64}
    with caplog.at_level(logging.WARNING):
        sopt.train(**settings)
    (told,) = (each.getMessage() for each in caplog.records if "enlarged" in each.msg)
    assert told.startswith(
        "enlarged to 64 pixels, and the model learns their blur: 1 of 3 pictures"
    )
    assert told.endswith("the smallest is image-2 with 20")
