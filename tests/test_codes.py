"""Trained int8 weights: the step, the files, and what is refused."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import sopt
from sopt import InputError
from sopt.checkpoint import Checkpoint
from sopt.codes.files import DIFFERENCE, Difference, save_difference, save_int8_model
from sopt.codes.tensors import (
    CodesFingerprint,
    Room,
    base_weights,
    int8_tensors,
    layer_of,
    make_room,
)
from sopt.config import TrainConfig
from sopt.files import load_tensors, save_tensors
from sopt.memory import LiveStorage
from sopt.models import open_model
from sopt.models.folder import INT8_FILE
from sopt.models.storage import Int8Storage
from sopt.optim import ZOSGD, restore
from sopt.optim.restore import Codes
from sopt.resolution import resolve
from sopt.steps.seeds import Tag, seed64
from sopt.steps.zeroth_order import zeroth_order_step, zeroth_order_step_on_codes
from sopt_kernels import noise, perturb_int8_

FLOAT32 = Int8Storage(torch.float32)
NEEDED = {"images": "dog", "prompt": "a dog", "output": "run"}
EPS, LR, SEED, N = 2e-2, 0.5, 7, 3


def small_codes(headroom=8):
    """Codes and scales of two layers; some codes beyond the head-room."""
    codes = {"a": torch.arange(-128, 128, dtype=torch.int8).view(16, 16)}
    codes["b"] = (noise((6, 3, 3, 5), 1, "b") * 40).clamp(-127, 127).to(torch.int8)
    scales = {"a": torch.linspace(0.01, 0.04, 16), "b": torch.full((6,), 0.02)}
    return codes, scales, Codes(0, codes, "rademacher", "nearest", scales, headroom)


def loss_of(codes, scales):
    """Its gradient with respect to the weights is of order 1."""

    def loss():
        weights = (
            (q.float() * scales[n].view(-1, *[1] * (q.dim() - 1))).flatten()
            for n, q in codes.items()
        )
        return sum((w * noise((w.numel(),), 5, "direction")).sum().sin() for w in weights)

    return loss


def step_of(weights, loss, step, **changes):
    seeds = [seed64(SEED, step, n, Tag.DIRECTION) for n in range(N)]
    own, *roundings = (seed64(SEED, step, n, Tag.ROUNDING) for n in range(N + 1))
    options = {"lr": LR, "eps": EPS, **changes}
    return zeroth_order_step_on_codes(weights, loss, seeds, roundings, own, **options)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_is_that_of_the_optimizer(clip):
    codes, scales, weights = small_codes()
    others, _, _ = small_codes()
    optimizer = ZOSGD(
        others.items(), LR, EPS, N, "rademacher", SEED, clip=clip, scales=scales, headroom=8
    )
    for step in range(1, 6):
        update = step_of(weights, loss_of(codes, scales), step, clip=clip)
        mean = optimizer.step(loss_of(others, scales))
        assert update.loss == pytest.approx(float(mean), rel=2.0**-22)
        assert all(torch.equal(codes[name], others[name]) for name in codes)
    first, _, _ = small_codes()
    assert not torch.equal(codes["a"], first["a"])


def test_losses_are_at_codes_that_moved_and_the_codes_come_back():
    codes, _, weights = small_codes()
    before = {name: q.clone() for name, q in codes.items()}
    seen = []

    def loss():
        seen.append({name: q.int() - before[name] for name, q in codes.items()})
        return torch.zeros(())

    assert step_of(weights, loss, 1).coefficients == [0.0] * N
    assert len(seen) == 2 * N
    for plus, minus in zip(seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(plus[name], -minus[name]) for name in codes)
        assert plus["a"].any()
    assert all(torch.equal(q, before[name]) for name, q in codes.items())

    def failing():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_of(weights, failing, 2)
    assert all(torch.equal(q, before[name]) for name, q in codes.items())


def test_ctrl_c_on_the_way_home_does_not_lose_the_codes(monkeypatch):
    """While a kernel runs Python waits for its end; the codes are then where they were."""
    whole, scales, others = small_codes()
    codes, _, weights = small_codes()
    before, calls = {name: q.clone() for name, q in codes.items()}, []

    def call(*arguments, **options):
        calls.append(perturb_int8_(*arguments, **options))
        if len(calls) == 4 * N:  # each move but the first goes home before, and the last goes home
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(restore, "perturb_int8_", call)
        with pytest.raises(KeyboardInterrupt):
            step_of(weights, loss_of(codes, scales), 1)
    assert all(torch.equal(q, before[name]) for name, q in codes.items())
    step_of(weights, loss_of(codes, scales), 1)
    step_of(others, loss_of(whole, scales), 1)
    assert all(torch.equal(q, whole[name]) for name, q in codes.items())


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("inf"), 1.0]])
def test_a_loss_that_is_not_finite_changes_nothing(values):
    codes, _, weights = small_codes()
    before = codes["a"].clone()
    turn = iter(values * N)
    assert step_of(weights, lambda: torch.tensor(next(turn)), 1, clip=1.0) is None
    assert torch.equal(codes["a"], before)


def test_slopes_are_clipped():
    weight = torch.tensor([3.0])
    options = {"lr": 0.25, "eps": 1.0, "noise": "rademacher"}
    update = zeroth_order_step(
        {"w": weight}, lambda: weight.square().sum(), [1], **options, clip=2.0
    )
    assert [abs(c) for c in update.coefficients] == [0.25 * 2]  # the slope is 6, or -6
    assert float(weight) == 3 - 0.25 * 2


def digest(tensors):
    state = hashlib.blake2b()
    for x in tensors:
        state.update(x.numpy().tobytes())
    return state.hexdigest()


def test_a_thousand_perturbations_of_a_unet_leave_every_bit(micro_model):
    unet = micro_model.load("unet", FLOAT32)
    codes, scales = int8_tensors(unet, "codes"), int8_tensors(unet, "scales")
    weights = Codes(
        0, codes, "gaussian", "nearest", dict(zip(codes, scales.values(), strict=True)), 8
    )
    before = digest(codes.values())
    moved = set()
    for seed in range(1000):
        weights.move(seed, 1e-3, seed + 1)
        if seed < 3:
            moved.add(digest(codes.values()))
        weights.home()
    assert digest(codes.values()) == before
    assert len(moved | {before}) == 4


ROOM = {"codes": Room(8), "scales": Room()}


def int8_of(unet):
    """Copies of codes and scales."""
    both = int8_tensors(unet, "codes") | int8_tensors(unet, "scales")
    return {name: x.clone() for name, x in both.items()}


def trained(model, train):
    """The model's codes and scales, with random changes to one kind, in all layers but one."""
    unet = model.load("unet", FLOAT32)
    make_room(unet, model, ROOM[train])
    for name, x in list(int8_tensors(unet, train).items())[1:]:
        if train == "codes":
            x.add_(((noise(tuple(x.shape), 2, name) * 2).int() % 3 - 1).to(torch.int8))
            x.clamp_(-119, 119)
        else:
            x.mul_(1 + 0.1 * noise(tuple(x.shape), 2, name))
    return int8_of(unet)


@pytest.mark.parametrize("train", ["codes", "scales"])
def test_the_difference_and_the_model_hold_what_was_trained(micro_model, tmp_path, train):
    expected = trained(micro_model, train)
    save_int8_model(tmp_path / "whole", micro_model, expected)
    own = {name: x.clone() for name, x in expected.items()}
    room = ROOM[train]
    save_difference(tmp_path / DIFFERENCE, micro_model, own, room)
    assert own == {}
    stored, metadata = load_tensors(tmp_path / DIFFERENCE)
    assert next(iter(expected)) not in stored  # it did not change
    assert metadata["format"] == "pt"

    unet = micro_model.load("unet", FLOAT32)
    Difference.open(tmp_path / DIFFERENCE).apply(unet, micro_model)
    whole = open_model(tmp_path / "whole")
    assert whole.int8
    loaded = whole.load("unet", FLOAT32)
    for network in (unet, loaded):
        found = int8_of(network)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], x) for name, x in expected.items())
    others = loaded.state_dict()
    assert others.keys() == unet.state_dict().keys()
    assert all(torch.equal(others[name], x) for name, x in unet.state_dict().items())
    for component in ("text_encoder", "vae"):
        one, other = (m.load(component).state_dict() for m in (micro_model, whole))
        assert all(torch.equal(one[name], x) for name, x in other.items())
    assert whole.load("unet", torch.bfloat16).conv_in.codes.dtype == torch.int8  # it stays so
    # And from that model on: what is trained next differs from it.
    save_difference(tmp_path / "next", whole, expected, room)
    assert load_tensors(tmp_path / "next")[0] == {}


def test_the_same_codes_give_the_same_bytes_and_few_changes_few(micro_model, tmp_path):
    unet = micro_model.load("unet", FLOAT32)
    name, x = max(int8_tensors(unet, "codes").items(), key=lambda item: item[1].numel())
    x.view(-1)[5] ^= 1
    for file in ("a", "b"):
        save_difference(tmp_path / file, micro_model, int8_of(unet), Room())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    stored, _ = load_tensors(tmp_path / "a")
    assert stored[f"{name}"].tolist() == [x.view(-1)[5]]
    assert stored[name.replace(".codes", ".changed")].nonzero().tolist() == [[0]]
    assert int(stored[name.replace(".codes", ".changed")][0]) == 1 << 5


def test_a_loaded_pipeline_is_quantized_as_its_files_are(micro_folder, micro_model):
    loaded = open_model(StableDiffusionPipeline.from_pretrained(micro_folder))
    bfloat16 = Int8Storage(torch.bfloat16)
    assert CodesFingerprint.of(loaded.load("unet", bfloat16)) == CodesFingerprint.of(
        micro_model.load("unet", bfloat16)
    )


def test_a_difference_of_another_model_is_refused(micro_model, tmp_path):
    save_difference(tmp_path / DIFFERENCE, micro_model, trained(micro_model, "scales"), Room())
    unet = micro_model.load("unet", FLOAT32)
    with torch.no_grad():
        unet.conv_in.scales[0] *= 1.5
    before = unet.conv_out.codes.clone()
    with pytest.raises(InputError, match=r"is of another model: it is the difference from int8"):
        Difference.open(tmp_path / DIFFERENCE).apply(unet, micro_model)
    assert torch.equal(unet.conv_out.codes, before)


def test_room_is_made_by_larger_scales(micro_model):
    """The largest code of each row is 127 - headroom, and codes are the nearest to the floats."""
    weights = dict(micro_model.load("unet").named_parameters())
    finest = dict(base_weights(micro_model, Room()))
    for layer, (codes, scales) in base_weights(micro_model, Room(8)):
        flat, row = codes.flatten(1), (-1, *[1] * (codes.dim() - 1))
        assert (flat.int().abs().amax(1) == 119).all()
        torch.testing.assert_close(scales, finest[layer].scales * 127 / 119, rtol=2.0**-22, atol=0)
        exact = weights[f"{layer}.weight"].movedim(1, -1)
        error = (codes * scales.view(row) - exact).abs()
        assert (error <= scales.view(row) / 2 * (1 + 2.0**-16)).all()


def test_room_in_an_int8_model_is_made_once(micro_model, tmp_path):
    """There are no floats: codes are rounded again, half a step more; what has room stays."""
    unet = micro_model.load("unet", FLOAT32)
    save_int8_model(tmp_path / "whole", micro_model, int8_of(unet))
    whole = open_model(tmp_path / "whole")
    before = int8_of(unet)
    make_room(unet, whole, Room(8))
    for name, x in int8_tensors(unet, "codes").items():
        scales, old = unet.get_submodule(layer_of(name)).scales, before[name[:-5] + "scales"]
        row = (-1, *[1] * (x.dim() - 1))
        moved = (x * scales.view(row) - before[name] * old.view(row)).abs()
        assert x.int().abs().max() == 119
        assert (moved <= scales.view(row) / 2 * (1 + 2.0**-16)).all()
    save_int8_model(tmp_path / "next", whole, int8_of(unet))
    found = dict(base_weights(open_model(tmp_path / "next"), Room(8)))
    assert all(torch.equal(w.codes, unet.get_submodule(p).codes) for p, w in found.items())
    assert all(torch.equal(w.scales, unet.get_submodule(p).scales) for p, w in found.items())


def test_a_checkpoint_of_codes_comes_back_one_tensor_at_a_time(micro_model, tmp_path):
    codes = int8_tensors(micro_model.load("unet", FLOAT32), "codes")
    saved = {name: x.clone() for name, x in codes.items()}
    Checkpoint(1, {}, {}, {}, "", saved, {}).save(tmp_path / "state")
    for x in codes.values():
        x.zero_()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with LiveStorage(found=False) as live:
        Checkpoint.load(tmp_path / "state").restore(codes, optimizer, "")
    assert all(torch.equal(x, saved[name]) for name, x in codes.items())
    sizes = [x.numel() for x in codes.values()]
    assert live.peak <= sum(sizes) + 2 * max(sizes)  # the model's own, once they are written to


def test_files_of_codes_are_written_one_tensor_at_a_time(micro_model, tmp_path):
    own = trained(micro_model, "codes")
    largest = max(x.numel() for x in own.values())
    for save in (
        lambda: save_int8_model(tmp_path / "whole", micro_model, own),
        lambda: save_difference(tmp_path / DIFFERENCE, micro_model, own, Room(8)),
    ):
        with LiveStorage(found=False) as live:
            save()
        # A layer's codes, mask and changed values beside its float weight and pieces of it, and
        # the packed masks of all
        assert live.peak <= largest * (3 + 3 * 4) + 2**17


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def poison(file):
    tensors, metadata = load_tensors(file)
    tensors["conv_in.scales"][0] = float("nan")
    save_tensors(file, tensors, metadata)


def of_another(file):
    config = file.parent / "config.json"
    wider = json.loads(config.read_text()) | {"block_out_channels": [8, 24]}
    config.write_text(json.dumps(wider))


@pytest.mark.parametrize(
    "fault, message",
    [
        (cut, "cannot load its UNet: .* is cut off"),
        (poison, "cannot load its UNet: .*conv_in.scales has NaN or infinite values"),
        (of_another, "cannot load its UNet: .* is of another model"),
    ],
)
def test_int8_models_that_will_not_do(micro_model, tmp_path, fault, message):
    save_int8_model(tmp_path / "whole", micro_model, trained(micro_model, "codes"))
    fault(tmp_path / "whole" / "unet" / INT8_FILE)
    model = open_model(tmp_path / "whole")
    with pytest.raises(InputError, match=message):
        model.load("unet", FLOAT32)


def test_scales_that_no_code_can_move_by_are_refused(settings, micro_model, tmp_path):
    scales = trained(micro_model, "scales")
    scales["unet.conv_in.scales"][1] = -1e-3
    save_int8_model(tmp_path / "whole", micro_model, scales)
    del settings["schedule"], settings["weights"]
    settings |= {"model": str(tmp_path / "whole"), "method": "zeroth-order", "train": "codes"}
    with pytest.raises(InputError, match=r"unet.conv_in.scales must be above 0 .*, got -0.001"):
        sopt.train(**settings)
    assert not Path(settings["output"]).exists()


def test_a_quantized_pipeline_keeps_its_scales(micro_folder, micro_model):
    pipeline = StableDiffusionPipeline.from_pretrained(micro_folder)
    sopt.quantize(pipeline.unet)
    model = open_model(pipeline)
    bfloat16 = Int8Storage(torch.bfloat16)
    assert model.int8
    expected = micro_model.load("unet", bfloat16).state_dict()
    found = model.load("unet", torch.bfloat16).state_dict()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_an_int8_model_decides_the_weights(micro_model, tmp_path):
    save_int8_model(tmp_path / "whole", micro_model, trained(micro_model, "codes"))
    model = open_model(tmp_path / "whole")

    def resolved(**changes):
        return resolve(TrainConfig.create(**NEEDED | changes), model)

    assert resolved().weights == "int8"
    with pytest.raises(InputError, match=r"weights='float32' does not go with model .* is int8"):
        resolved(weights="float32")
    assert resolved(offload="stream", hollow="a8").weights == "int8"
