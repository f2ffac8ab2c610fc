"""The loss, the zeroth-order step and the backprop step against plain arithmetic."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch.nn.functional import linear

from sopt.models import inject_lora, open_model
from sopt.models.storage import Int8Storage
from sopt.steps import loss as loss_module
from sopt.steps.backprop import backprop_step
from sopt.steps.loss import Sample, diffusion_loss
from sopt.steps.zeroth_order import zeroth_order_step
from sopt_kernels import add_noise_, noise

SEEDS = [11, 2**63 + 5, 13]
EPS = 0.125  # a power of two: losses of linear functions are divided by it without rounding
FLOAT32 = 2.0**-24  # relative rounding error of one operation


def random_adapter():
    """Two parameters as a LoRA has them, non-zero, on the grid of multiples of 1/16."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"unet.a.lora_A.weight": (4, 6), "unet.a.lora_B.weight": (5, 4)}
    return {
        name: (torch.randn(shape, generator=generator) * 16).round().div(16).requires_grad_()
        for name, shape in shapes.items()
    }


def flat(adapter):
    return torch.cat([parameter.detach().flatten() for parameter in adapter.values()])


def copies(adapter):
    return {name: parameter.detach().clone() for name, parameter in adapter.items()}


def same_bits(a, b):
    return all(torch.equal(a[name].view(torch.int32), b[name].view(torch.int32)) for name in a)


def direction(adapter, seed, kind="gaussian"):
    return torch.cat([noise(p.shape, seed, name, kind).flatten() for name, p in adapter.items()])


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_update_is_the_mean_of_slopes_times_directions(kind):
    adapter = random_adapter()
    before, lr = flat(adapter), 0.5
    centre = torch.linspace(-1, 1, before.numel())

    def loss():  # quadratic: its two-sided difference is its exact derivative
        return (flat(adapter) - centre).square().sum()

    update = zeroth_order_step(adapter, loss, SEEDS, lr=lr, eps=EPS, noise=kind)
    gradient = 2 * (before.double() - centre.double())
    expected = before.double()
    # A loss is a sum of 44 squares, each loss is at most L: error of a difference of two losses
    # below 2 * 46 roundings of L, divided by 2 eps.
    bound = 46 * FLOAT32 * 2 * loss().item() / EPS
    for seed, coefficient in zip(SEEDS, update.coefficients, strict=True):
        z = direction(adapter, seed, kind).double()
        slope = torch.dot(gradient, z).item()
        assert abs(coefficient - -lr / len(SEEDS) * slope) <= lr / len(SEEDS) * bound
        expected += coefficient * z
    assert update.seeds == SEEDS
    rounding = FLOAT32 * (before.abs().max() + len(SEEDS) * 10)
    assert (flat(adapter).double() - expected).abs().max() <= rounding


def test_logged_coefficients_replay_the_step_to_the_bit():
    adapter = random_adapter()
    replayed = copies(adapter)
    update = zeroth_order_step(adapter, lambda: flat(adapter).sin().sum(), SEEDS, lr=0.1, eps=1e-2)
    streams = list(replayed)
    add_noise_(list(replayed.values()), update.seeds, update.coefficients, streams=streams)
    assert same_bits(adapter, replayed)
    assert all(torch.tensor(c).item() == c for c in update.coefficients)  # float32 values


def test_both_signs_are_taken_from_the_untouched_weights():
    adapter = random_adapter()
    before, seen = flat(adapter), []

    def loss():
        seen.append(flat(adapter))
        return seen[-1].sum()

    zeroth_order_step(adapter, loss, SEEDS, lr=0.1, eps=EPS)
    for n, seed in enumerate(SEEDS):
        z = direction(adapter, seed)
        for sign, weights in ((1, seen[2 * n]), (-1, seen[2 * n + 1])):
            expected = (before.double() + sign * EPS * z.double()).float()  # fma: one rounding
            assert torch.equal(weights, expected)
    assert len(seen) == 2 * len(SEEDS)


def test_a_negative_rate_ascends_and_zero_changes_nothing():
    results = {}
    for lr in (0.25, -0.25, 0.0):
        adapter = random_adapter()
        update = zeroth_order_step(
            adapter, lambda a=adapter: flat(a).square().sum(), SEEDS, lr=lr, eps=EPS
        )
        results[lr] = update.coefficients, flat(adapter).square().sum().item()
    start = flat(random_adapter())
    assert results[-0.25][0] == [-c for c in results[0.25][0]]
    assert results[0.25][1] != results[-0.25][1]
    assert results[0.0][1] == start.square().sum().item()
    adapter = random_adapter()
    zeroth_order_step(adapter, lambda: flat(adapter).sum(), SEEDS, lr=0.0, eps=EPS)
    assert same_bits(adapter, random_adapter())


def test_small_steps_descend():
    adapter = random_adapter()
    start = flat(adapter).square().sum().item()
    for seed in range(40):
        zeroth_order_step(adapter, lambda: flat(adapter).square().sum(), [seed], lr=0.005, eps=EPS)
    # Along one direction z the quadratic falls unless lr > 1 / |z|^2, here about 1 / 44.
    assert flat(adapter).square().sum().item() < start


@pytest.mark.parametrize("failing", range(2 * len(SEEDS)))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(failing, bad):
    adapter, calls = random_adapter(), []

    def loss():
        calls.append(1)
        return torch.tensor(bad if len(calls) == failing + 1 else 1.0)

    assert zeroth_order_step(adapter, loss, SEEDS, lr=0.1, eps=EPS) is None
    assert same_bits(adapter, random_adapter())


def test_two_infinite_losses_or_an_overflowing_slope_are_skipped():
    adapter = random_adapter()
    for value in (math.inf, 3e38):
        signs = iter([1, -1] * len(SEEDS))
        update = zeroth_order_step(
            adapter, lambda v=value, s=signs: torch.tensor(v * next(s)), SEEDS, lr=0.1, eps=1e-3
        )
        assert update is None
    assert same_bits(adapter, random_adapter())


@pytest.mark.parametrize("failing", range(2 * len(SEEDS)))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_when_a_loss_raises(failing, error):
    adapter, calls = random_adapter(), []

    def loss():
        calls.append(1)
        if len(calls) == failing + 1:
            raise error
        return torch.tensor(1.0)

    with pytest.raises(error):
        zeroth_order_step(adapter, loss, SEEDS, lr=0.1, eps=EPS)
    assert same_bits(adapter, random_adapter())


def test_autocast_around_the_step_is_autocast_within_the_loss():
    """It keeps its casts of weights that require grad, whatever is written to them."""
    contexts = nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)
    x, results = noise((3, 6), 1, "x"), []
    for around in (False, True):
        adapter = random_adapter()
        a, b = adapter.values()

        def loss(a=a, b=b, around=around):
            with contexts[not around]():
                return linear(linear(x, a), b).float().square().mean()

        with contexts[around]():
            loss()
            update = zeroth_order_step(adapter, loss, SEEDS, lr=0.5, eps=EPS)
            results.append((update, loss(), copies(adapter)))
    assert all(results[0][0].coefficients)
    assert results[0][:2] == results[1][:2]
    assert same_bits(results[0][2], results[1][2])


def test_no_gradient_is_made():
    adapter = random_adapter()

    def loss():
        assert not torch.is_grad_enabled()
        value = sum((parameter**2).sum() for parameter in adapter.values())
        assert value.grad_fn is None
        return value

    zeroth_order_step(adapter, loss, SEEDS, lr=0.1, eps=EPS)
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in adapter.values())


def test_backprop_is_one_step_of_the_optimizer():
    adapter, reference = random_adapter(), random_adapter()

    def loss(parameters):
        return sum((parameter**3).sum() for parameter in parameters.values())

    optimizer = torch.optim.AdamW(adapter.values(), lr=0.1)
    expected = torch.optim.AdamW(reference.values(), lr=0.1)
    for _ in range(3):
        value = backprop_step(adapter, lambda: loss(adapter), optimizer)
        reference_loss = loss(reference)
        assert value == reference_loss.item()
        expected.zero_grad()
        reference_loss.backward()
        expected.step()
    assert same_bits(adapter, reference)
    assert all(parameter.grad is None for parameter in adapter.values())


@pytest.mark.parametrize("fault", ["both", "loss", "gradient"])
def test_backprop_skips_what_is_not_finite(fault):
    adapter = random_adapter()
    optimizer = torch.optim.AdamW(adapter.values(), lr=0.1)
    backprop_step(adapter, lambda: sum(p.sum() for p in adapter.values()), optimizer)
    weights = copies(adapter)
    state = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in adapter.values()]
    first = next(iter(adapter.values()))

    def loss():
        if fault == "both":
            return (first * math.inf).sum()
        if fault == "loss":
            return first.sum() + math.inf
        return (first - first.detach()).abs().sum().sqrt()  # 0, with the gradient 1 / 0 * sign(0)

    assert backprop_step(adapter, loss, optimizer) is None
    assert same_bits(adapter, weights)
    for parameter, before in zip(adapter.values(), state, strict=True):
        assert parameter.grad is None
        assert all(torch.equal(optimizer.state[parameter][key], before[key]) for key in before)


@pytest.mark.parametrize(
    "storage",
    [torch.float32, torch.bfloat16, Int8Storage(torch.bfloat16), Int8Storage(torch.float32)],
)
def test_the_loss_computes_in_the_networks_dtype(storage):
    unet = open_model("tiny").load("unet", storage)
    assert loss_module._dtype(unet) == unet.dtype
    unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))
    assert loss_module._dtype(unet) == unet.dtype


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_loss_is_the_mean_square_error_of_the_right_target(prediction_type, timestep):
    scheduler = DDPMScheduler(prediction_type=prediction_type)  # linear betas 1e-4 .. 0.02
    generator = torch.Generator().manual_seed(0)
    x, e, prompt = (torch.randn(1, 4, 6, 6, generator=generator) for _ in range(3))

    def unet(noisy, timesteps, encoder_hidden_states, added_cond_kwargs, return_dict):
        assert timesteps.tolist() == [timestep]
        return (0.5 * noisy + encoder_hidden_states,)

    unet.dtype = torch.float32
    loss = diffusion_loss(unet, scheduler, Sample(x, e, timestep, prompt))
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timestep]
    a, b = kept.sqrt(), (1 - kept).sqrt()
    x, e, prompt = x.double(), e.double(), prompt.double()
    target = {"epsilon": e, "v_prediction": a * e - b * x, "sample": x}[prediction_type]
    expected = (0.5 * (a * x + b * e) + prompt - target).square().mean()
    assert loss.dtype == torch.float32
    # alphas_cumprod is a float32 product of up to 1000 factors: up to 1000 roundings, relative,
    # which 1 - alphas_cumprod magnifies by 1 / 1e-4 at most at t = 0, where there is one factor.
    assert abs(loss.item() - expected) <= 4000 * FLOAT32 * expected


def test_a_real_unet_gives_both_branches_one_loss_and_the_right_slope(micro_model):
    unet = micro_model.load("unet")
    adapter = inject_lora(unet, rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(0.1 * noise(parameter.shape, 5, name))
    sample = Sample(
        noise((1, 4, 8, 8), 1, "latents"), noise((1, 4, 8, 8), 2, "noise"), 900,
        noise((1, 16, 16), 3, "prompt"),
    )  # fmt: skip
    scheduler = micro_model.noise_scheduler()

    def loss():
        return diffusion_loss(unet, scheduler, sample)

    value = loss()
    value.backward()
    with torch.no_grad():
        assert loss() == loss()  # no dropout, no hidden randomness
    slope = sum(
        torch.dot(p.grad.flatten(), noise(p.shape, SEEDS[0], name).flatten()).item()
        for name, p in adapter.items()
    )
    for parameter in adapter.values():
        parameter.grad = None
    eps = 1e-2
    update = zeroth_order_step(adapter, loss, SEEDS[:1], lr=-1.0, eps=eps)
    # Truncation, eps^2 / 6 times the third derivative: 0.4 % of this slope, measured in float64.
    # Rounding: the two losses, near 1.25, were within 1 ulp of their float64 values; 8 allowed.
    tolerance = 0.005 * abs(slope) + 8 * 2 * FLOAT32 * 1.25 / (2 * eps)
    assert abs(update.coefficients[0] - slope) <= tolerance < 0.02 * abs(slope)
