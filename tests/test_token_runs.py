"""Whole runs that train a token: both kinds of step, killed and continued, planned, drawn."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from killer import kill_at_loss
from pipelines import FAMILY_RESOLUTION, crash, save_family_pipeline

import sopt
from bench import precision_gate
from sopt import InputError
from sopt.config import TrainConfig
from sopt.files import load_tensors
from sopt.token.settings import check_tau
from sopt_kernels import noise

TOKEN = "<x>"
# With seed 6 the steps of a selective run: 1, 3, 1, 3 and 1 losses.
BRANCHES = ["bp", "zo", "bp", "zo", "bp"]


@pytest.fixture
def settings(settings):
    del settings["schedule"]
    return settings | {
        "prompt": f"a {TOKEN}",
        "train": "token",
        "token": TOKEN,
        "initializer": "a",
        "steps": 5,
        "tau": 3,
        "nu": 0.5,
        "seed": 6,
    }


SELECTIVE = {"schedule": 0.5}


def token_bytes(run):
    return run.adapter.read_bytes()


def timeless(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def crash_at(patch, number):
    """Crash at the ``number``-th call of a loss, from 1; 0 counts only."""
    import sopt.token.training as module

    calls = []

    def counted(loss):
        def evaluate(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                crash()
            return loss(*arguments, **options)

        return evaluate

    for name in ("diffusion_loss", "diffusion_losses"):
        patch.setattr(module, name, counted(getattr(module, name)))
    return calls


def test_slopes_on_int8_weights_stand_out_of_rounding(monkeypatch):
    """Those of the bundled model at the default size, against float32 weights."""
    monkeypatch.setattr(precision_gate, "DIRECTIONS", 4)
    monkeypatch.setattr(precision_gate, "WEIGHTS", ("float32", "int8"))
    gate = precision_gate.TokenGate("tiny", None)
    gate.prepare(0, [])
    _, row = precision_gate.run(gate, [gate.eps], False)
    assert gate.eps == 1e-3
    assert row["cosine"] >= 0.9
    assert row["noise over signal"] <= 0.5


def test_rounding_of_16_bit_weights_is_told(settings, caplog):
    with contextlib.suppress(InputError):  # of a processor that does not compute in it
        sopt.train(**settings | {"weights": "bfloat16", "method": "textual-inversion", "steps": 1})
        assert "does not stand out of the rounding of bfloat16 activations" in caplog.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("at", [2, 6, 9])
def test_a_crashed_run_continues_to_the_same_bits(settings, tmp_path, monkeypatch, at):
    settings |= SELECTIVE
    whole = sopt.train(**settings | {"output": str(tmp_path / "whole")})
    assert [entry["branch"] for entry in whole.history] == BRANCHES
    with monkeypatch.context() as patch:
        crash_at(patch, at)
        with pytest.raises(RuntimeError, match="crash"):
            sopt.train(**settings)
    calls = crash_at(monkeypatch, 0)
    run = sopt.train(**settings)
    if at > 6:
        assert len(calls) == 1  # it went on rather than began again
    assert token_bytes(run) == token_bytes(whole)
    assert timeless(run.history) == timeless(whole.history)
    assert sopt.train(**settings).adapter == run.adapter  # finished: returned as it is


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_killed_run_continues_to_the_same_bytes(settings, tmp_path):
    settings |= {"method": "textual-inversion", "samples": False}
    kill_at_loss(settings, "sopt.token.training.diffusion_losses", 8)
    run = sopt.train(**settings)
    whole = sopt.train(**settings | {"output": str(tmp_path / "whole")})
    assert token_bytes(run) == token_bytes(whole)
    assert timeless(run.history) == timeless(whole.history)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["backprop-high", "backprop-low", "zeroth-order", "selective"])
def test_every_method_trains_a_token(settings, method):
    if method == "backprop-low":
        settings["low_res_ratio"] = 0.5
    run = sopt.train(**settings | {"method": method, "num_vectors": 2})
    tensors, _ = load_tensors(run.output / f"{TOKEN}.safetensors")
    assert run.adapter == run.output / f"{TOKEN}.safetensors"
    (row,) = tensors.values()
    assert row.shape == (2, 16)
    assert row.dtype == torch.float32
    assert not torch.equal(row[0], row[1])  # they start alike, at other places in the prompt
    assert len(run.history) == 5


@pytest.mark.usefixtures("quick")
def test_a_zeroth_order_step_is_adam_on_the_logged_estimate(settings, micro_model):
    run = sopt.train(
        **settings | {"method": "zeroth-order", "steps": 1, "scale_by_dimension": True}
    )
    (entry,) = run.history
    assert len(entry["seeds"]) == 2
    name = f"text_encoder.token.{TOKEN}"
    gradient = sum(
        c * noise((1, 16), s, name)
        for c, s in zip(entry["coefficients"], entry["seeds"], strict=True)
    )
    gradient = gradient.double() / ((16 + 2 - 1) / 2) ** 0.5
    table = micro_model.load("text_encoder").get_input_embeddings().weight
    tokenizer = micro_model.tokenizer()
    start = table[tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a")[0])].double()
    # Adam's first step: the moments' bias corrections leave g and g^2.
    expected = start - 5e-3 * gradient / (gradient.abs() + 1e-3)
    (row,) = load_tensors(run.adapter)[0].values()
    # A gradient of two float32 terms, then a quotient of it near one: some roundings of 5e-3 and
    # one of the token.
    assert (row.double() - expected).abs().max() <= 2.0**-24 * (start.abs().max() + 16 * 5e-3)


@pytest.mark.usefixtures("quick")
def test_every_switch_changes_the_run_and_batches_do_not(settings):
    # After three tokens one of their two directions is taken out.
    settings |= {"method": "textual-inversion", "steps": 5, "tau": 3, "samples": False}
    base = settings["output"]

    def row(name, **changes):
        run = sopt.train(**settings | {"output": f"{base}-{name}"} | changes)
        return next(iter(load_tensors(run.adapter)[0].values()))

    rows = {
        "paper": row("paper"),
        "script": row("script", preset="script"),
        "no SG": row("sg", subspace=False),
        "no PUTS": row("puts", min_timestep=0, max_timestep=999),
        "spsa": row("spsa", estimator="spsa"),
        "sgd": row("sgd", zo_optimizer="sgd"),
        "rademacher": row("rademacher", noise="rademacher"),
        "n": row("n", num_perturbations=3),
        "mu": row("mu", eps=1e-2),
        "tau": row("tau", tau=4),
    }
    found = list(rows.values())
    for i, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:i]), list(rows)[i]
    together = row("together", perturbation_batch=3)
    # A loss moves by some roundings, of about 1 each: over eps 1e-3 a slope by 1e-4 of its own
    # size or so, and the token by as much of its 5 steps of at most lr 5e-3.
    assert (together - rows["paper"]).abs().max() <= 5 * 5e-3 * 0.05
    assert (together - rows["paper"]).abs().max() < (rows["spsa"] - rows["paper"]).abs().max()


@pytest.mark.usefixtures("quick")
def test_timesteps_stay_within_their_bounds(settings):
    settings |= {"method": "textual-inversion", "steps": 30, "num_perturbations": 1}
    run = sopt.train(**settings | {"min_timestep": 998, "max_timestep": 999})
    assert {entry["timestep"] for entry in run.history} == {998, 999}


@pytest.mark.usefixtures("quick")
def test_a_loss_that_is_not_finite_leaves_the_token_alone(settings, monkeypatch):
    settings |= {"method": "textual-inversion", "samples": False}
    with monkeypatch.context() as patch:
        patch.setattr(
            "sopt.token.training.diffusion_losses",
            lambda unet, scheduler, sample, **_: torch.full((len(sample.prompt),), torch.nan),
        )
        run = sopt.train(**settings)
    assert all(entry["skipped"] for entry in run.history)
    (row,) = load_tensors(run.adapter)[0].values()
    assert row.unique().numel() > 1
    again = sopt.train(**settings | {"output": settings["output"] + "2", "zo_lr": 0.0})
    assert torch.equal(row, next(iter(load_tensors(again.adapter)[0].values())))


@pytest.mark.parametrize("method", ["backprop-high", "zeroth-order"])
def test_plans_know_tokens(settings, method):
    settings |= {"method": method, "steps": 2, "perturbation_batch": 3, "samples": False}
    run = sopt.train(**settings)
    names = ("images", "prompt", "output", "checkpoint_every", "steps", "seed")
    known = {k: v for k, v in settings.items() if k not in names}
    (row,) = sopt.plan(**known | {"prompt": settings["prompt"], "checkpointing": True})
    assert row.train == "token"
    for phase, predicted in row.phases.items():
        # 5 %, and the few KiB that a real run has beside its tensors of some hundred.
        assert abs(predicted - run.memory[phase]) <= 0.05 * run.memory[phase] + 2**14, phase


@pytest.mark.usefixtures("quick")
def test_both_encoders_of_sdxl_learn_and_a_run_folder_is_an_adapter(settings, tmp_path):
    folder = save_family_pipeline(tmp_path / "sdxl", "sdxl")
    settings |= {"model": str(folder), "resolution": FAMILY_RESOLUTION, "steps": 2}
    run = sopt.train(**settings | {"method": "textual-inversion", "min_timestep": 500})
    assert run.config.eps == 1e-2  # the paper's for SDXL
    tensors, _ = load_tensors(run.adapter)
    assert set(tensors) == {"clip_l", "clip_g"}
    for key, file in [("clip_l", "learned_embeds"), ("clip_g", "learned_embeds_2")]:
        single, _ = load_tensors(run.output / f"{file}.safetensors")
        assert torch.equal(single[TOKEN], tensors[key])
        # The word "a" is where both started: every element has moved.
        assert tensors[key].shape[0] == 1
    options = {"prompt": f"a {TOKEN}", "steps": 1, "resolution": FAMILY_RESOLUTION}
    (one,) = sopt.generate(str(folder), run.output, **options)
    (other,) = sopt.generate(str(folder), run, **options)
    (plain,) = sopt.generate(str(folder), prompt="a a", steps=1, resolution=FAMILY_RESOLUTION)
    assert one.tobytes() == other.tobytes() != plain.tobytes()


NEEDED = {"images": "dog", "prompt": "a <x>", "output": "run", "train": "token"}
WORDS = {"token": "<x>", "initializer": "dog"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "token is missing: .*the new word"),
        ({"token": "<x>"}, "initializer is missing: .*a word of one token"),
        (WORDS | {"token": "a b"}, "token must be a word without spaces and slashes"),
        (WORDS | {"token": "a/b"}, "token must be a word without spaces and slashes"),
        (WORDS | {"token": "x" * 201}, "of at most 200 bytes"),
        (WORDS | {"token": "a\0b"}, "token must be a word"),
        (WORDS | {"token": "learned_embeds"}, "and not learned_embeds or learned_embeds_2, got"),
        (WORDS | {"token": "dog"}, "initializer='dog' must be another word than token"),
        (WORDS | {"nu": 0}, r"nu must be in \(0, 1\), got 0"),
        (WORDS | {"nu": 1.0}, r"nu must be in \(0, 1\), got 1.0"),
        (WORDS | {"tau": 1}, r"tau must be a whole number in \[2, 65536\), got 1"),
        (WORDS | {"num_vectors": 0}, "num_vectors must be a whole number"),
        (WORDS | {"preset": "papre"}, "unknown preset 'papre': did you mean 'paper'?"),
        (WORDS | {"estimator": "rgf"}, "unknown estimator 'rgf': did you mean 'rge'?"),
        (WORDS | {"rank": 8}, "rank does not go with train='token'"),
        (WORDS | {"prior_images": "x"}, "prior_images does not go with train='token'"),
        ({"train": "lora", "token": "<x>"}, "token='<x>' does not go without train='token'"),
        ({"train": "lora", "estimator": "rge"}, "estimator='rge' does not go without train='tok"),
        ({"train": "lora", "method": "textual-inversion"}, "which means train=token"),
        ({"train": "tokens"}, "unknown train 'tokens': did you mean 'token'?"),
    ],
)  # fmt: skip
def test_settings_that_will_not_do(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.create(**NEEDED | settings)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_timestep": 1000}, "max_timestep=1000 must be .* below the scheduler's 1000 timest"),
        ({"min_timestep": 600, "max_timestep": 599}, "min_timestep=600 and max_timestep=599 must"),
        ({"tau": 16}, "tau=16 must be below the size of an embedding, 16 in text_encoder"),
        ({"prompt": "a dog"}, "must have the token '<x>'"),
        ({"token": "a", "initializer": "b", "prompt": "a"}, "the tokenizer knows 'a' already"),
        ({"initializer": "sks"}, "initializer='sks' must be one token"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_written(settings, changes, message):
    with pytest.raises(InputError, match=message):
        sopt.train(**settings | {"method": "zeroth-order"} | changes)
    assert not Path(settings["output"]).exists()


def test_the_prompt_has_the_word_where_captions_have_it(settings, pictures, tmp_path):
    folder = tmp_path / "captioned"
    shutil.copytree(pictures, folder)
    for picture in sorted(folder.iterdir()):
        picture.with_suffix(".txt").write_text(settings["prompt"])
    changes = {"images": str(folder), "prompt": "a dog", "method": "zeroth-order"}
    with pytest.raises(InputError, match=r"^prompt must have the token '<x>'"):
        sopt.train(**settings | changes)
    assert not Path(settings["output"]).exists()


def test_each_of_two_pictures_of_one_name_has_the_word(settings, pictures, tmp_path):
    files, picture = [], min(pictures.iterdir())
    for folder, caption in (("a", "a dog"), ("b", settings["prompt"])):
        (tmp_path / folder).mkdir()
        file = Path(shutil.copy(picture, tmp_path / folder / "x.png"))
        file.with_suffix(".txt").write_text(caption)
        files.append(str(file))
    with pytest.raises(InputError, match=r"x\.png must have the token '<x>'"):
        sopt.train(**settings | {"images": files, "method": "zeroth-order"})


def test_the_smallest_embedding_counts():
    with pytest.raises(InputError, match="768 in text_encoder"):
        check_tau(1000, {"text_encoder": 768, "text_encoder_2": 1280})
    check_tau(767, {"text_encoder": 768, "text_encoder_2": 1280})


def test_published_settings_and_the_shorthand():
    def made(family="sd15", **changes):
        return TrainConfig.create(family=family, **NEEDED | WORDS | changes)

    def values(config):
        return (
            config.zo_lr, config.eps, config.num_perturbations, config.tau, config.nu,
            config.min_timestep, config.max_timestep, config.steps,
        )  # fmt: skip

    shorthand = {"method": "textual-inversion"}
    assert values(made(**shorthand)) == (5e-3, 1e-3, 2, 128, 1e-3, 500, 900, 30000)
    assert values(made("sd21", **shorthand)) == (1e-2, 1e-2, 2, 128, 1e-3, 500, 900, 30000)
    assert values(made("sdxl", **shorthand)) == (1e-2, 1e-2, 2, 128, 1e-3, 700, 900, 20000)
    with pytest.raises(InputError, match="'script' does not go with a model of sdxl"):
        made("sdxl", preset="script", **shorthand)
    script = made(preset="script", **shorthand)
    assert values(script) == (1e-2, 1e-3, 2, 128, 1e-3, 500, 899, 30000)
    assert script.scale_by_dimension
    paper = made(**shorthand)
    assert not paper.scale_by_dimension
    assert (paper.estimator, paper.zo_optimizer, paper.subspace) == ("rge", "adam", True)
    assert (paper.train, paper.schedule) == ("token", 1.0)
    other = made(method="zeroth-order")
    assert values(other) == (5e-3, 1e-3, 2, 128, 1e-3, 0, None, 1000)
    assert made(method="backprop-high").lr == 5e-3
    given = made(**shorthand, eps=0.5, steps=7, subspace=False)
    assert (given.eps, given.steps, given.subspace) == (0.5, 7, False)
    lora = TrainConfig.create(images="-", prompt="a", output="-")
    assert (lora.estimator, lora.zo_optimizer, lora.subspace) == ("spsa", "sgd", False)
    for config in (paper, script, other):  # what config.yaml holds means the same
        assert TrainConfig.create(**config.to_dict()) == config
