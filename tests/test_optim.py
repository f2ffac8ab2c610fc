"""ZOSGD and ZOAdam against plain arithmetic in float64, and the ways to go on to the same bits."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
import torch
from small_models import EPS, bits, loss_of, model_of, same
from torch import nn

from sopt.errors import InputError
from sopt.optim import ZOSGD, ZOAdam
from sopt.steps.seeds import Tag, seed64
from sopt_kernels import noise

FLOAT32 = 2.0**-24  # relative rounding error of one operation


def directions(names_and_shapes, seed, step, n, kind="gaussian"):
    direction = seed64(seed, step, n, Tag.DIRECTION)
    return {name: noise(s, direction, name, kind).double() for name, s in names_and_shapes.items()}


def test_trajectory_of_a_quadratic_is_that_of_mezo_in_float64():
    """MeZO by hand in float64, losses of its own, against ZOSGD in float32."""
    size, steps, lr, decay, eps = 48, 200, 2.0**-7, 0.5, 0.5  # no truncation, as L is quadratic
    start, centre = noise(size, 1, "start"), noise(size, 2, "centre")
    weight = nn.Parameter(start.clone())
    optimizer = ZOSGD([("w", weight)], lr=lr, eps=eps, seed=5, weight_decay=decay)
    theta, error = start.double(), 0.0

    def loss64(point):
        return (point - centre.double()).square().sum() / 2

    for step in range(1, steps + 1):
        loss = optimizer.step(lambda: (weight - centre).square().sum() / 2)
        z = directions({"w": (size,)}, 5, step, 0)["w"]
        plus, minus = loss64(theta + eps * z), loss64(theta - eps * z)
        slope = (plus - minus) / (2 * eps)
        # One step multiplies an error of the weights by (1 - lr decay) - lr z z', of norm below 1
        # while lr |z|^2 < 2. It adds: the losses' rounding, at most size + 4 operations on up to
        # L each and the rounding of their arguments, |w - c| sqrt(size) ulps of w; their
        # difference over 2 eps, times lr |z|; and the roundings of the update itself.
        assert lr * z.dot(z) < 2
        most = max(plus, minus).item() + error * theta.norm().item()
        arguments = FLOAT32 * (theta.norm() + eps * z.norm()).item() * math.sqrt(2 * most)
        of_loss = (size + 4) * FLOAT32 * most + arguments
        of_update = 4 * FLOAT32 * (theta.norm() + lr * slope.abs() * z.norm()).item()
        assert abs(loss.item() - (plus + minus).item() / 2) <= (
            of_loss + error * math.sqrt(2 * most) + error**2
        )
        error += lr * z.norm().item() * of_loss / eps + of_update
        theta = (1 - lr * decay) * theta - lr * slope * z
        assert (weight.double() - theta).norm() <= error
    assert error < 1e-3 * (theta - start.double()).norm()
    assert loss64(theta) < loss64(start.double()) / 2


@pytest.mark.parametrize("restore", ["copy", "blocks"])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("estimator", ["two-sided", "one-sided"])
def test_same_losses_give_the_weights_of_the_formula(restore, kind, estimator):
    """The losses that ZOSGD saw, its seeds, N directions: the update in float64."""
    model, seen, lr, decay, clip, count = model_of(), [], 0.01, 0.1, 3.0, 3
    optimizer = ZOSGD(
        model.named_parameters(), lr, EPS, count, kind, seed=9, restore=restore, clip=clip,
        weight_decay=decay, estimator=estimator, module=model if restore == "blocks" else None,
    )  # fmt: skip
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    shapes = {name: p.shape for name, p in expected.items()}
    clipped = 0
    for step in range(1, 11):
        seen.clear()

        def closure(step=step):
            seen.append(loss_of(model, step))
            return seen[-1]

        returned = optimizer.step(closure)
        losses = [x.item() for x in seen]
        if estimator == "two-sided":
            slopes = [(a - b) / (2 * EPS) for a, b in zip(losses[::2], losses[1::2], strict=True)]
            assert len(losses) == 2 * count
            assert abs(returned.item() - sum(losses) / len(losses)) <= 8 * FLOAT32 * max(losses)
        else:
            slopes = [(loss - losses[0]) / EPS for loss in losses[1:]]
            assert len(losses) == count + 1
        clipped += sum(abs(slope) > clip for slope in slopes)
        slopes = [max(-clip, min(clip, slope)) for slope in slopes]
        for name in expected:
            expected[name] *= 1 - lr * decay
        for n, slope in enumerate(slopes):
            for name, z in directions(shapes, 9, step, n, kind).items():
                expected[name] -= lr / count * slope * z
    assert 0 < clipped < 30
    for name, p in model.named_parameters():
        # Per step: decay, N fused multiply-adds, each of a coefficient with 4 roundings. |z| < 6.
        per_step = FLOAT32 * ((count + 2) * expected[name].abs().max() + 4 * lr * clip * 6)
        assert (p.double() - expected[name]).abs().max() <= 10 * per_step


def test_momentum_is_a_decaying_sum_of_estimates():
    model, lr, mu = model_of(), 0.01, 0.75
    optimizer = ZOSGD(model.named_parameters(), lr, EPS, 2, seed=1, momentum=mu)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    shapes = {name: p.shape for name, p in expected.items()}
    most = 0.0
    for step in range(1, 9):
        seen = []
        optimizer.step(lambda s=step, seen=seen: seen.append(loss_of(model, s)) or seen[-1])
        for name in buffers:
            buffers[name] *= mu
        for n in range(2):
            slope = (seen[2 * n] - seen[2 * n + 1]).item() / (2 * EPS)
            most = max(most, abs(slope))
            for name, z in directions(shapes, 1, step, n).items():
                buffers[name] += slope / 2 * z
        for name in buffers:
            expected[name] -= lr * buffers[name]
    for name, p in model.named_parameters():
        # The buffer stays below 6 most / (1 - mu) and has 4 roundings a step; 8 steps.
        bound = 8 * FLOAT32 * (2 * p.abs().max() + 8 * lr * 6 * most / (1 - mu))
        assert (p.double() - expected[name]).abs().max() <= bound


def test_adam_is_torch_adam_on_the_estimate():
    model, reference = model_of(), model_of().double()
    optimizer = ZOAdam(model.named_parameters(), 0.01, EPS, 2, seed=1, weight_decay=0.1)
    adam = torch.optim.AdamW(reference.parameters(), 0.01, weight_decay=0.1)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for step in range(1, 9):
        seen = []
        optimizer.step(lambda s=step, seen=seen: seen.append(loss_of(model, s)) or seen[-1])
        for name, p in reference.named_parameters():
            p.grad = torch.zeros_like(p)
            for n in range(2):
                slope = (seen[2 * n] - seen[2 * n + 1]).item() / (2 * EPS)
                p.grad += slope / 2 * directions(shapes, 1, step, n)[name]
        adam.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        # Each step moves a weight by at most lr / sqrt(1 - beta2) in theory and about lr here, with
        # some 30 roundings in all of it; its direction is near +-1 unless m nearly cancels, where
        # roundings of m, relative to sqrt(v), count in full.
        assert (p.double() - q).abs().max() <= 8 * FLOAT32 * (p.abs().max() + 30 * 0.01 * 32)


def test_groups_have_their_own_settings_and_a_disabled_one_stays():
    """eps differs between groups: each group's estimate is that of its own gradient."""
    a, b, c = (nn.Parameter(noise(5, 1, name)) for name in "abc")
    start = [x.detach().double() for x in (a, b, c)]
    groups = [
        {"params": [("a", a)], "lr": 0.25},
        {"params": [("b", b)], "eps": 4 * EPS},
        {"params": [("c", c)], "enabled": False},
    ]
    optimizer = ZOSGD(groups, lr=0.125, eps=EPS, seed=3, noise="rademacher")
    losses = []

    def closure():
        assert torch.equal(c.double(), start[2])
        losses.append(a.sum() + 2 * b.sum() + 3 * c.sum())
        return losses[-1]

    optimizer.step(closure)
    z = directions({"a": (5,), "b": (5,)}, 3, 1, 0, "rademacher")
    difference = (losses[0] - losses[1]).double()
    assert difference.abs() > 0
    expected_a = start[0] - 0.25 * difference / (2 * EPS) * z["a"]
    expected_b = start[1] - 0.125 * difference / (8 * EPS) * z["b"]
    assert torch.equal(a.detach(), expected_a.float())  # powers of two: one rounding, the fma's
    assert torch.equal(b.detach(), expected_b.float())
    assert torch.equal(c.double(), start[2])


def test_accumulation_is_the_mean_over_micro_batches_at_the_same_seeds():
    apart, together = model_of(), model_of()
    one = ZOSGD(apart.named_parameters(), 0.01, EPS, 2)
    other = ZOSGD(together.named_parameters(), 0.01, EPS, 2)
    one.accumulate(lambda: loss_of(apart, 1))
    assert same(bits(apart), bits(together))
    one.accumulate(lambda: loss_of(apart, 2))
    one.step()
    other.step(lambda: ((loss_of(together, 1).double() + loss_of(together, 2)) / 2).float())
    assert same(bits(apart), bits(together))
    assert one.steps == other.steps == 1


@pytest.mark.parametrize("make", [
    lambda p: ZOSGD(p, 0.01, EPS, 2, momentum=0.9),
    lambda p: ZOSGD(p, 0.01, EPS, rounding="stochastic", weight_decay=0.1),
    lambda p: ZOAdam(p, 0.01, EPS),
], ids=["momentum", "stochastic", "adam"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("accumulating", [False, True])
def test_a_saved_optimizer_continues_to_the_same_bits(make, dtype, accumulating):
    def run(model, optimizer, scheduler, steps):
        for step in steps:
            optimizer.step(lambda s=step: loss_of(model, s))
            scheduler.step()

    def begin(model):
        optimizer = make(model.named_parameters())
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.75)

    unbroken = begin(model_of(dtype))
    run(*unbroken, range(4))
    if accumulating:
        unbroken[1].accumulate(lambda: loss_of(unbroken[0], 77))
    file = io.BytesIO()
    torch.save([x.state_dict() for x in unbroken], file)
    run(*unbroken, range(4, 8))
    file.seek(0)
    states = torch.load(file, weights_only=True)
    continued = begin(model_of(dtype, seed=1))
    for x, state in zip(continued, states, strict=True):
        x.load_state_dict(state)
    assert continued[1].steps == 4
    run(*continued, range(4, 8))
    assert same(bits(unbroken[0]), bits(continued[0]))


def test_waiting_losses_go_to_no_device_with_a_saved_state():
    """map_location is of tensors; "meta" is a device without memory."""
    models = [model_of(), model_of()]
    saved, loaded = (ZOSGD(m.named_parameters(), 0.01, EPS, 2) for m in models)
    saved.accumulate(lambda: loss_of(models[0], 1))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, map_location="meta", weights_only=True))
    for model, optimizer in zip(models, (saved, loaded), strict=True):
        optimizer.step(lambda m=model: loss_of(m, 2))
    assert same(bits(models[0]), bits(models[1]))


def test_wrappers_change_no_direction():
    """module., _orig_mod. and peft's prefix are not part of a parameter's name."""
    results = []
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "base_model.model."):
        model = model_of()
        named = [(prefix + name, p) for name, p in model.named_parameters()]
        optimizer = ZOSGD(named, 0.01, EPS)
        optimizer.step(lambda m=model: loss_of(m))
        results.append(bits(model))
    assert all(same(results[0], x) for x in results)


def test_importing_it_imports_no_model_library():
    code = "import sys, sopt.optim; print([m for m in ('diffusers', 'transformers', 'peft') "
    code += "if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_it_is_a_torch_optimizer():
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.zero_grad()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    loss = optimizer.step(lambda: loss_of(model))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    assert loss.shape == ()
    assert not loss.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="two"):
        optimizer.add_param_group({"params": list(model.named_parameters())})
