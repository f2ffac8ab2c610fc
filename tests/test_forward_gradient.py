"""Estimates of a gradient by forward passes, against exact derivatives."""

import math

import pytest
import torch

from sopt.steps.forward_gradient import forward_gradient
from sopt_kernels import noise

SEEDS = [11, 2**63 + 5, 13]
EPS = 0.125  # a power of two: dividing by it does not round
FLOAT32 = 2.0**-24
ESTIMATORS = ["rge", "spsa"]


def parameters():
    """On the grid of multiples of 1/16."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"text_encoder{suffix}.token.<dog>": (torch.randn(2, width, generator=generator) * 16)
        .round()
        .div(16)
        .requires_grad_()
        for suffix, width in (("", 6), ("_2", 5))
    }


def flat(tensors):
    return torch.cat([x.detach().flatten(1) for x in tensors.values()], dim=1)


CENTRE = torch.linspace(-1, 1, 22)


def quadratic(candidates):
    return (flat(candidates) - CENTRE).square().sum(1)


def directions(params, kind):
    return [
        torch.cat([noise(p.shape, seed, name, kind).flatten() for name, p in params.items()])
        for seed in SEEDS
    ]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_estimate_is_the_mean_of_directional_derivatives(estimator, kind, batch):
    params = parameters()
    estimate = forward_gradient(
        params, quadratic, SEEDS, eps=EPS, estimator=estimator, noise=kind, batch=batch
    )
    theta = flat({k: v[None] for k, v in params.items()})[0].double()
    slope = 2 * (theta - CENTRE.double())
    base = (theta - CENTRE.double()).square().sum().item()
    expected = torch.zeros(22, dtype=torch.float64)
    for z, coefficient in zip(directions(params, kind), estimate.coefficients, strict=True):
        z = z.double()
        derivative = torch.dot(slope, z).item()
        if estimator == "rge":  # a quadratic's one-sided difference has its curvature: 2
            derivative += EPS * z.square().sum().item()
        # Each loss, a sum of 22 squares and at most `largest`, is off by 24 roundings.
        largest = base + EPS * abs(derivative) + 2 * EPS**2 * z.square().sum().item()
        steps = EPS if estimator == "rge" else 2 * EPS
        tolerance = (2 * 24 * largest / steps + 3 * abs(derivative)) * FLOAT32
        assert abs(len(SEEDS) * coefficient - derivative) <= tolerance
        expected += coefficient * z
    found = torch.cat([g.flatten() for g in estimate.gradient.values()]).double()
    size = sum(abs(c) for c in estimate.coefficients) * 6  # no |z| here is above 6
    assert (found - expected).abs().max() <= len(SEEDS) * FLOAT32 * size
    assert estimate.seeds == SEEDS


@pytest.mark.parametrize("estimator, forwards", [("rge", 4), ("spsa", 6)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_forwards_of_a_step_and_their_batches(estimator, forwards, batch):
    seen = []

    def losses(candidates):
        seen.append(flat(candidates))
        return quadratic(candidates)

    params = parameters()
    before = {name: p.detach().clone() for name, p in params.items()}
    estimate = forward_gradient(params, losses, SEEDS, eps=EPS, estimator=estimator, batch=batch)
    assert [len(part) for part in seen] == [
        min(batch, forwards - start) for start in range(0, forwards, batch)
    ]
    candidates = torch.cat(seen)
    theta = flat({k: v[None] for k, v in params.items()})[0].double()
    signs = [(SEEDS[0], 0), *((s, 1) for s in SEEDS)] if estimator == "rge" else [
        (s, sign) for s in SEEDS for sign in (1, -1)
    ]  # fmt: skip
    zs = dict(zip(SEEDS, directions(params, "gaussian"), strict=True))
    for candidate, (seed, sign) in zip(candidates, signs, strict=True):
        # fma: one rounding
        assert torch.equal(candidate, (theta + sign * EPS * zs[seed].double()).float())
    values = quadratic({"x": candidates})
    assert estimate.loss == (values[0] if estimator == "rge" else values.mean()).item()
    for name, p in params.items():
        assert torch.equal(p.detach(), before[name])
        assert p.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("failing", range(4))
def test_a_loss_that_is_not_finite_gives_no_estimate(bad, failing):
    def losses(candidates):
        values = quadratic(candidates)
        values[failing] = bad
        return values

    assert forward_gradient(parameters(), losses, SEEDS, eps=EPS, batch=4) is None
