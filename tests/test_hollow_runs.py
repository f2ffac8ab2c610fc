"""Hollowed and streamed runs end to end on a micro pipeline."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from pipelines import family_pipeline
from safetensors import safe_open
from safetensors.torch import load_file
from test_streaming import inputs_of, open_reduced, randomize, reduced_models_go  # noqa: F401  a fixture

import sopt
from sopt import InputError
from sopt.budget import Budget
from sopt.cache import build_cache
from sopt.codes.files import save_int8_model
from sopt.config import TrainConfig
from sopt.data import load_pictures
from sopt.hollow.cuts import cut_of
from sopt.hollow.inference import two_paths
from sopt.hollow.precompute import Entry
from sopt.memory import LiveStorage, MemoryRecorder
from sopt.models import inject_lora, open_model
from sopt.models.storage import Int8Storage
from sopt.models.weights import TensorFiles
from sopt.planning import _blanks, advice
from sopt.resolution import resolve
from sopt.steps.loss import unet_inputs
from sopt.streaming import Reader, UnitNetwork, open_network, units_of
from sopt.streaming.network import Inputs
from sopt.training import sides

CPU = torch.device("cpu")
ACTIVATIONS = "activations.safetensors"


@pytest.fixture
def settings(settings):
    # With seed 6 the steps are bp, zo, bp, zo.
    return settings | {"steps": 4, "num_perturbations": 2, "seed": 6, "samples": False}


@pytest.fixture
def hollowed(settings):
    return settings | {"hollow": "a11"}


def losses(run):
    return [entry["loss"] for entry in run.history]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"hollow": "a10", "prior_prompt": "a dog"},
        {"weights": "bfloat16"},
        {"weights": "int8"},
        {"weights": "int8", "hollow": "a11"},
    ],
    ids=["whole", "hollow-prior", "bfloat16", "int8", "int8-hollow"],
)
def test_a_streamed_run_has_the_losses_and_the_bytes_of_a_resident_one(settings, tmp_path, more):
    settings |= more
    if "prior_prompt" in more:
        settings["prior_images"] = settings["images"]
    resident = sopt.train(**settings | {"vae_tiles": True})
    streamed = sopt.train(**settings | {"output": str(tmp_path / "s"), "offload": "stream"})
    assert {entry["branch"] for entry in resident.history} == {"bp", "zo"}
    assert losses(streamed) == losses(resident)
    assert streamed.adapter.read_bytes() == resident.adapter.read_bytes()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("more", [{}, {"hollow": "a10"}], ids=["whole", "hollow"])
def test_an_int8_file_is_streamed_as_it_is(settings, micro_model, tmp_path, more):
    """A model of int8 weights, and the float one that it was made of: the same run."""
    save_int8_model(tmp_path / "int8", micro_model, {})
    settings |= {"weights": "int8", "vae_tiles": True, **more}
    whole = sopt.train(**settings)
    settings |= {"model": str(tmp_path / "int8"), "offload": "stream"}
    streamed = sopt.train(**settings | {"output": str(tmp_path / "s")})
    assert losses(streamed) == losses(whole)
    assert streamed.adapter.read_bytes() == whole.adapter.read_bytes()
    drawn = [
        sopt.generate(
            settings["model"], streamed.adapter, prompt="a dog", steps=1, offload=offload,
            low_memory=True,
        )[0].tobytes()
        for offload in ("none", "stream")
    ]  # fmt: skip
    assert drawn[0] == drawn[1]


def test_a_streamed_run_takes_less_memory_and_a_plan_says_how_much(settings):
    small = {k: v for k, v in settings.items() if k not in ("images", "prompt", "output")}
    peaks = {}
    for name, more in {
        "resident": {},
        "hollow": {"hollow": "a10"},
        "streamed": {"offload": "stream"},
        "both": {"hollow": "a10", "offload": "stream"},
        "int8": {"weights": "int8", "offload": "stream"},
    }.items():
        (planned,) = sopt.plan(method="selective", **small | more | {"checkpointing": True})
        with LiveStorage() as live:  # what other tests left
            before = live.bytes
        run = sopt.train(**settings | more | {"output": f"{settings['output']}-{name}"})
        for phase, peak in planned.phases.items():
            assert abs(before + peak - run.memory[phase]) <= 48 * 2**10, (name, phase)
        assert ("precompute" in planned.phases) == ("hollow" in more)
        assert (planned.hollow, planned.offload) == (more.get("hollow"), run.config.offload)
        peaks[name] = run.memory["train-bp"], run.memory["train-zo"]
    for branch in (0, 1):
        assert peaks["both"][branch] < peaks["streamed"][branch] < peaks["resident"][branch]
        assert peaks["int8"][branch] < peaks["streamed"][branch]
        assert peaks["hollow"][branch] < peaks["resident"][branch]


@pytest.mark.usefixtures("quick")
def test_a_zeroth_order_step_visits_each_unit_once_for_all_perturbations(settings, monkeypatch):
    visits = []
    begin = Reader._begin

    def counted(reader, part):
        if reader._loaded[reader._buffer_of[part]] != part:
            visits.append(part)
        return begin(reader, part)

    monkeypatch.setattr(Reader, "_begin", counted)
    del settings["schedule"]
    settings |= {"method": "zeroth-order", "offload": "stream", "num_perturbations": 4}
    model = open_model(settings["model"])
    units = len(units_of(model))
    layers = model.configs["text_encoder"]["num_hidden_layers"]
    sopt.train(**settings | {"steps": 3})
    # Each step reads each unit once, and so does the fingerprint; the last units of a forward may
    # begin the next one.
    assert abs(len(visits) - layers - units - 3 * units) <= 2


@pytest.mark.usefixtures("quick")
def test_stage_2_reads_no_weight_of_the_hole(hollowed, monkeypatch):
    read = []
    real = TensorFiles.read

    def recorded(files, name, out, row=None):
        read.append(name)
        return real(files, name, out, row)

    sopt.train(**hollowed | {"steps": 1})
    monkeypatch.setattr(TensorFiles, "read", recorded)
    model = open_model(hollowed["model"])
    open_network(model, torch.float32, CPU, hole=cut_of("a11", model).hole)
    assert read
    assert not [name for name in read if name.startswith("mid_block.")]


@pytest.mark.parametrize("name", ("sd21", "sdxl"))
def test_two_paths_are_the_forward_of_stage_2_to_the_bit(name):
    model = open_reduced(name)
    cut = cut_of("a8", model)
    given = Inputs(*inputs_of(model).values())
    whole = UnitNetwork(model.load("unet"))
    with torch.no_grad():
        (state,) = whole.run([given], range(cut.hole.stop), kept=cut.hole)
        rest = open_network(model, torch.float32, CPU, hole=cut.hole)
        randomize(inject_lora(rest.unet, 2, 0))
        trained = dict(rest.unet.named_parameters())
        (stage_2,) = rest.run([replace(given, central=state.hidden)], rest.order)
        adapter = inject_lora(whole.unet, 2, 0)  # also in the hole, where it stays zero
        for key, parameter in adapter.items():
            path = key.removeprefix("unet.").replace(".weight", ".default.weight")
            parameter.data.copy_(trained[path]) if path in trained else parameter.data.zero_()
        (found,) = two_paths(whole, cut, [given])
        one_path = whole.run([given], whole.order)[0].hidden
    assert torch.equal(found, stage_2.hidden)
    assert not torch.allclose(one_path, found, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("error:While injecting")
def test_the_adapter_says_that_it_is_hollowed_and_pictures_follow_two_paths(hollowed, tmp_path):
    hollowed |= {"lr": 0.05, "method": "hollowed"}
    del hollowed["schedule"]
    run = sopt.train(**hollowed)
    for file in (run.adapter, run.output / "run_kohya.safetensors"):
        with safe_open(str(file), "pt") as opened:
            said = json.loads(opened.metadata()["sopt_hollow"])
        assert said["cut"] == "a11"
        assert "sopt.hollow.apply" in said["inference"]
    options = {"prompt": "a sks dog", "steps": 2, "guidance": 5.0, "model": hollowed["model"]}
    (own,) = sopt.generate(adapter=run, **options)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(hollowed["model"])
    pipe.set_progress_bar_config(disable=True)
    sopt.hollow.apply(pipe, run.output)
    theirs = pipe(
        "a sks dog",
        num_inference_steps=2,
        guidance_scale=5.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert np.array_equal(own, theirs)
    (approximate,) = sopt.generate(adapter=run, two_paths=False, **options)
    assert not np.array_equal(own, approximate)
    (streamed,) = sopt.generate(adapter=run, offload="stream", low_memory=True, **options)
    # The halves of guidance one after the other differ in their last bits.
    assert np.abs(np.asarray(own, int) - np.asarray(streamed, int)).max() <= 2
    with pytest.raises(InputError, match="of another model"):
        sopt.hollow.apply(family_pipeline("sd21"), run)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.mark.usefixtures("quick")
def test_an_ordinary_adapter_is_not_applied_by_two_paths(settings):
    run = sopt.train(**settings | {"steps": 1})
    with pytest.raises(InputError, match="was not trained hollowed; load it with"):
        sopt.hollow.apply(None, run)


@pytest.mark.usefixtures("quick")
def test_a_pool_of_samples_is_used_again(hollowed):
    run = sopt.train(**hollowed | {"steps": 12, "hollow_samples": 3, "hollow_dtype": "float16"})
    entries = load_file(run.output / ACTIVATIONS)
    samples = {int(name.split(".")[0]) for name in entries if name != "checksums"}
    assert samples <= {1, 2, 3}
    assert len({entry["timestep"] for entry in run.history}) == len(samples)
    assert {t.dtype for n, t in entries.items() if n != "checksums"} == {torch.float16}


TOKEN = {"train": "token", "token": "<dog>", "initializer": "a", "prompt": "a <dog>"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"hollow": 0}, r"must be in \(0, 1\), got 0"),
        ({"hollow": 1.0}, r"must be in \(0, 1\), got 1.0"),
        ({"hollow": "a12"}, "unknown hollow 'a12', .*: did you mean"),
        ({"hollow": "a5"}, "hollow='a5' is no cut of this model"),
        ({"hollow_samples": 5}, "hollow_samples=5 does not go without hollow"),
        ({"offload": "disk"}, "unknown offload 'disk'"),
        ({"offload": "stream", "checkpointing": False}, "checkpointing=False does not go with"),
        ({"hollow": "a11", "hollow_dtype": "int8"}, "unknown hollow_dtype 'int8'"),
        (TOKEN | {"hollow": 0.2}, "hollow=0.2 does not go with train='token'"),
        (TOKEN | {"method": "hollowed", "schedule": 0.0}, "hollow='a8' does not go with train='t"),
        (TOKEN | {"offload": "stream"}, "offload='stream' does not go with train='token'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(settings, wrong, message):
    with pytest.raises(InputError, match=message):
        sopt.train(**settings | wrong)
    assert not Path(settings["output"]).exists()


def test_streaming_is_proposed_where_it_goes_with_the_settings(settings):
    model, budget = open_model(settings["model"]), Budget(1)  # nothing fits: all is proposed
    for more, streams in (({"weights": "int8"}, True), ({}, True), (TOKEN | {"tau": 8}, False)):
        config = resolve(TrainConfig.create(**settings | more), model)
        proposed = advice(config, model, _blanks(config), budget)
        assert ("offload=stream" in proposed) == streams, more
        assert ("weights=int8" in proposed) == ("weights" not in more), more


def test_what_is_left_has_the_int8_weights_of_the_whole_network(settings):
    model, storage = open_model(settings["model"]), Int8Storage(torch.bfloat16)
    whole = model.load("unet", storage).state_dict()
    left = open_network(model, storage, CPU, hole=cut_of("a11", model).hole).unet.state_dict()
    assert {name for name in whole if not name.startswith("mid_block.")} == set(left)
    assert sum(tensor.dtype == torch.int8 for tensor in left.values()) > 50
    for name, tensor in left.items():
        assert tensor.dtype == whole[name].dtype, name
        assert torch.equal(tensor, whole[name]), name


def test_a_hollow_goes_with_int8_weights(hollowed):
    known = {"hollow": "a11", "method": "backprop-low", "checkpointing": True}
    peaks = [
        sopt.plan(hollowed["model"], weights=weights, **known)[0].phases["train-bp"]
        for weights in ("int8", "bfloat16")
    ]
    assert peaks[0] < peaks[1]
    exact = sopt.train(**hollowed | {"output": f"{hollowed['output']}-exact"})
    hollowed |= {"weights": "int8", "samples": True}
    run = sopt.train(**hollowed)
    assert {entry["branch"] for entry in run.history} == {"bp", "zo"}
    for loss, expected in zip(losses(run), losses(exact), strict=True):
        assert loss == pytest.approx(expected, rel=0.05)  # two roundings to 8 bits in each layer
    assert losses(run) != losses(exact)
    before, after = ((run.output / "samples" / f"{name}.png") for name in ("before", "after"))
    assert before.read_bytes() != after.read_bytes()
    assert sopt.train(**hollowed).history == run.history


@pytest.mark.usefixtures("quick")
def test_stage_1_knows_the_timesteps_that_steps_draw_from(hollowed):
    run = sopt.train(**hollowed | {"min_timestep": 500, "max_timestep": 520})
    assert all(500 <= entry["timestep"] <= 520 for entry in run.history)
    model = open_model(hollowed["model"])
    stored = load_file(run.output / ACTIVATIONS)
    config = resolve(run.config, model)
    pictures = load_pictures(config.images, config.prompt)
    cut, entry = cut_of("a11", model), Entry(1, config.low_resolution)
    assert entry.name in stored
    with MemoryRecorder(CPU, found=False) as memory:
        dtype = getattr(torch, config.weights)
        cache = build_cache(model, pictures, sides(config), dtype, memory, tiled=True)
    network = open_network(model, dtype, CPU)
    sample = cache.draw(config.seed, 1, run.history[0]["timestep"], entry.side)
    inputs = Inputs(*unet_inputs(model.noise_scheduler(), sample, dtype).values())
    with torch.no_grad():
        (state,) = network.run([inputs], range(cut.hole.stop), kept=cut.hole)
    assert torch.allclose(stored[entry.name].float(), state.hidden.float(), rtol=2e-2, atol=1e-2)
