"""The seed log: its content, replay byte for byte, time travel, damage, other models' logs."""

from __future__ import annotations

import logging

import pytest
import torch
from small_models import EPS, batch, bits, loss_of, model_of, same
from torch import nn
from torch.nn.functional import linear, mse_loss

import sopt
from sopt.errors import InputError
from sopt.optim import ZOSGD, SeedLog, ZOAdam

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def train(model, optimizer, steps, schedule=True):
    """Weights before the first step and after each; the learning rate changes on the way."""
    states = [bits(model)]
    for step in range(steps):
        if schedule:
            optimizer.param_groups[0]["lr"] *= 0.9
        optimizer.step(lambda s=step: loss_of(model, s))
        states.append(bits(model))
    return states


OPTIMIZERS = {
    "plain": lambda p, log: ZOSGD(p, 0.01, EPS, log=log),
    "three": lambda p, log: ZOSGD(p, 0.01, EPS, 3, "rademacher", seed=2**64 - 1, log=log),
    "stochastic": lambda p, log: ZOSGD(p, 0.01, EPS, 2, rounding="stochastic", log=log),
    "decay": lambda p, log: ZOSGD(p, 0.01, EPS, weight_decay=0.1, clip=1.0, log=log),
    "one-sided": lambda p, log: ZOSGD(p, 0.01, EPS, 2, estimator="one-sided", log=log),
    "momentum": lambda p, log: ZOSGD(p, 0.01, EPS, momentum=0.9, weight_decay=0.1, log=log),
    "adam": lambda p, log: ZOAdam(p, 0.01, EPS, 2, betas=(0.8, 0.9), weight_decay=0.1, log=log),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replay_gives_the_trained_weights_to_the_bit_at_every_step(name, dtype, tmp_path):
    model, log = model_of(dtype), tmp_path / "run.zolog"
    states = train(model, OPTIMIZERS[name](model.named_parameters(), log), 6)
    assert not same(states[0], states[-1])
    assert same(bits(sopt.replay(model_of(dtype), log)), states[-1])
    for step, expected in enumerate(states):
        assert same(bits(sopt.replay(model_of(dtype), log, step=step)), expected)


def test_replay_of_a_dictionary_of_tensors_leaves_other_names_alone(tmp_path):
    model, log = model_of(), tmp_path / "run.zolog"
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, ZOSGD(model.named_parameters(), 0.01, EPS, log=log), 3)
    base = {**first, "other": torch.ones(3)}
    assert sopt.replay(base, log) is base
    assert all(torch.equal(base[name], p) for name, p in model.named_parameters())
    assert torch.equal(base["other"], torch.ones(3))


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_replay_of_int8_codes_and_floats_together(noise, tmp_path):
    log, scales = tmp_path / "run.zolog", torch.linspace(0.01, 0.02, 6)
    first = torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    bias = torch.randn(6)
    x, y = torch.randn(16, 8), torch.randn(16, 6)

    def run(codes, bias, **options):
        named = [("codes", codes), ("bias", bias)]
        optimizer = ZOSGD(named, 0.05, 0.02, 2, noise, scales={"codes": scales}, **options)
        for _ in range(30):
            optimizer.step(lambda: mse_loss(linear(x, codes * scales[:, None], bias), y))

    codes, trained = first.clone(), nn.Parameter(bias.clone())
    run(codes, trained, log=log)
    assert not torch.equal(codes, first.clamp(-119, 119))
    base = {"codes": first.clone(), "bias": bias.clone()}
    sopt.replay(base, log, scales={"codes": scales})
    assert torch.equal(base["codes"], codes)
    assert torch.equal(base["bias"], trained)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_codes_of_a_quantized_network_come_back_learn_and_replay(activations, tmp_path):
    def network():
        torch.manual_seed(1)
        made = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        )
        assert sopt.quantize(made, activations).layers == 2
        buffers = dict(made.named_buffers())
        scales = {
            name.replace("scales", "codes"): x for name, x in buffers.items() if "scal" in name
        }
        return made, {name: buffers[name] for name in scales}, scales

    model, codes, scales = network()
    log, x, y = tmp_path / "run.zolog", torch.randn(16, 2, 4, 4), torch.randn(16, 3)
    optimizer = ZOSGD(codes.items(), 0.0, 0.02, 2, "rademacher", scales=scales, log=log)
    first = {name: c.clamp(-119, 119) for name, c in codes.items()}  # head-room of 8
    seen = []

    def closure():
        seen.append({name: c.clone() for name, c in codes.items()})
        return mse_loss(model(x), y)

    optimizer.step(closure)
    assert all(torch.equal(codes[name], first[name]) for name in codes)  # every byte
    for up, down in zip(seen[::2], seen[1::2], strict=True):
        for name, start in first.items():
            assert (up[name] != start).any()
            assert torch.equal(up[name].int() - start, start - down[name].int())
    optimizer.param_groups[0]["lr"] = 0.02
    losses = [optimizer.step(closure).item() for _ in range(200)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    again, replayed, scales = network()
    sopt.replay(again, log, scales=scales)
    assert all(torch.equal(replayed[name], codes[name]) for name in codes)
    assert torch.equal(again(x), model(x))


def test_groups_switched_on_and_off_replay(tmp_path):
    def groups(model):
        named = list(model.named_parameters())
        return [{"params": named[:2]}, {"params": named[2:], "eps": 4 * EPS}]

    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = ZOSGD(groups(model), 0.01, EPS, 2, log=log)
    for step in range(9):
        optimizer.param_groups[0]["enabled"] = step % 3 != 0
        optimizer.param_groups[1]["enabled"] = step % 3 != 1
        optimizer.step(lambda s=step: loss_of(model, s))
    assert same(bits(sopt.replay(model_of(), log)), bits(model))


def test_a_log_takes_twelve_bytes_a_perturbation(tmp_path):
    for count in (1, 5):
        model, log = model_of(), tmp_path / f"{count}.zolog"
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, count, log=log)
        train(model, optimizer, 1)
        first = log.stat().st_size
        train(model, optimizer, 20)
        assert log.stat().st_size - first == 12 * 20 * count
        assert first < 600


def test_a_skipped_step_is_in_the_log_and_changes_nothing(tmp_path):
    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, 2, weight_decay=0.1, log=log)
    for step in range(6):
        factor = float("nan") if step in (0, 3) else 1.0
        optimizer.step(lambda s=step, f=factor: loss_of(model, s) * f)
    assert SeedLog(log).step == 6
    assert [len(u.indices) for u in SeedLog(log).updates()] == [0, 2, 2, 0, 2, 2]
    assert same(bits(sopt.replay(model_of(), log)), bits(model))


@pytest.mark.parametrize("damage", ["cut", "flip", "zeros", "lost row"])
def test_a_torn_tail_is_left_out_and_told(damage, tmp_path, caplog):
    model, log = model_of(), tmp_path / "run.zolog"
    states = train(model, ZOSGD(model.named_parameters(), 0.01, EPS, 2, log=log), 5, schedule=False)
    whole = log.read_bytes()  # the last step is the last 24 bytes
    if damage == "cut":
        log.write_bytes(whole[:-5])
    elif damage == "flip":
        log.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    elif damage == "zeros":
        log.write_bytes(whole[:-24] + bytes(24))
    else:
        log.write_bytes(whole[:-24] + whole[-12:])
    with caplog.at_level(logging.WARNING):
        assert same(bits(sopt.replay(model_of(), log)), states[4])
    assert "step 4" in caplog.text
    with pytest.raises(InputError, match="in \\[0, 4\\]"):
        sopt.replay(model_of(), log, step=5)
    # A run that goes on cuts the torn step off and does it again.
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, 2, log=log)
    assert optimizer.resume() == 4
    optimizer.step(lambda: loss_of(model, 4))
    assert log.read_bytes() == whole
    assert same(bits(model), states[5])


def test_a_run_goes_on_from_its_log_alone(tmp_path):
    unbroken = train((m := model_of()), ZOSGD(m.named_parameters(), 0.01, EPS), 8, schedule=False)
    log = tmp_path / "run.zolog"
    for steps in (range(3), range(3, 8)):
        model = model_of()
        optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, log=log)
        assert optimizer.resume() == steps.start
        for step in steps:
            optimizer.step(lambda m=model, s=step: loss_of(m, s))
    assert same(bits(model), unbroken[-1])


def test_a_saved_state_cuts_the_log_back_to_its_step(tmp_path):
    model, log = model_of(), tmp_path / "run.zolog"
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, log=log)
    train(model, optimizer, 3, schedule=False)
    state = optimizer.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    for step in (3, 4):
        optimizer.step(lambda s=step: loss_of(model, s))
    whole, end = log.read_bytes(), bits(model)
    model = model_of(seed=5)
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS, log=log)
    model.load_state_dict(state[1])
    optimizer.load_state_dict(state[0])
    for step in (3, 4):
        optimizer.step(lambda s=step: loss_of(model, s))
    assert log.read_bytes() == whole
    assert same(bits(model), end)


def test_a_log_is_neither_overwritten_nor_used_where_it_does_not_belong(tmp_path):
    log = tmp_path / "run.zolog"
    model = model_of()
    train(model, ZOSGD(model.named_parameters(), 0.01, EPS, log=log), 2)
    whole = log.read_bytes()

    def optimizer(model, **options):
        return ZOSGD(model.named_parameters(), 0.01, EPS, log=log, **options)

    with pytest.raises(InputError, match="holds 2 steps already"):
        optimizer(again := model_of()).step(lambda: loss_of(again))
    with pytest.raises(InputError, match="first weights"):
        optimizer(model_of(seed=1)).resume()
    with pytest.raises(InputError, match="first weights"):
        sopt.replay(model, log)  # trained already
    with pytest.raises(InputError, match="seed"):
        optimizer(model_of(), seed=1).resume()
    with pytest.raises(InputError, match="noise"):
        optimizer(model_of(), noise="rademacher").resume()
    with pytest.raises(InputError, match="optimizer"):
        ZOAdam(model_of().named_parameters(), 0.01, EPS, log=log).resume()
    with pytest.raises(InputError, match="names, shapes or dtypes"):
        sopt.replay(model_of(torch.bfloat16), log)
    with pytest.raises(InputError, match=r"must have '0\.bias'"):
        sopt.replay(nn.Sequential(nn.Tanh(), nn.Linear(8, 16)), log)
    wider = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 1))
    with pytest.raises(InputError, match="names, shapes or dtypes"):
        sopt.replay(wider, log)
    with pytest.raises(InputError, match="there is no file"):
        sopt.replay(model_of(), tmp_path / "none.zolog")
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    with pytest.raises(InputError, match="is not a seed log"):
        sopt.replay(model_of(), other)
    other.write_bytes(whole[:40] + b"?" + whole[41:])
    with pytest.raises(InputError, match=r"header of .* is damaged"):
        sopt.replay(model_of(), other)
    assert log.read_bytes() == whole


def test_in_place_floats_have_no_log(tmp_path):
    with pytest.raises(InputError, match="inplace"):
        ZOSGD(model_of().named_parameters(), 0.01, EPS, restore="inplace", log=tmp_path / "x")


def test_a_lora_is_a_file_of_a_few_kilobytes(tmp_path):
    """256 tensors with long names, as of a U-Net; 20 steps."""
    named = [
        (f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight",
         nn.Parameter(torch.randn(4, 64)))
        for i in range(128) for part in "AB"
    ]  # fmt: skip
    x, _ = batch()
    optimizer = ZOSGD(named, 1e-3, EPS, log=tmp_path / "lora.zolog")
    for _ in range(20):
        optimizer.step(lambda: sum(p.sum() for _, p in named) * x.sum())
    assert (tmp_path / "lora.zolog").stat().st_size < 4096
