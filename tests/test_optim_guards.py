"""Bad input of the optimizers: one sentence each, nothing changed; and the reports."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from small_models import EPS, bits, loss_of, model_of, same
from torch import nn

import sopt
from sopt.errors import InputError
from sopt.optim import ZOSGD, ZOAdam, noise_floor, precision_report
from sopt_kernels import noise


@pytest.mark.parametrize("returned, message", [
    (None, "must return a scalar loss, got None"),
    ("0.5", "must return a scalar loss, got '0.5'"),
    (True, "must return a scalar loss, got True"),
    (torch.ones(2), r"must return a scalar loss, got shape \(2,\)"),
    ([1.0], "must return a scalar loss"),
])  # fmt: skip
def test_what_a_closure_returns(returned, message):
    model = model_of()
    start = bits(model)
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)
    with pytest.raises(InputError, match=message):
        optimizer.step(lambda: returned)
    assert same(bits(model), start)
    assert optimizer.steps == 0


def test_a_scalar_of_one_element_and_a_number_will_do():
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)
    assert optimizer.step(lambda: loss_of(model).reshape(1, 1)).shape == ()
    assert optimizer.step(lambda: loss_of(model).item()) > 0


def test_a_closure_that_calls_backward():
    model = model_of()
    start = bits(model)
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)

    def backward():
        loss = loss_of(model)
        loss.backward()
        return loss

    def backward_with_grad():
        with torch.enable_grad():
            return backward()

    with pytest.raises(InputError, match="not call backward"):
        optimizer.step(backward)
    for _ in range(2):
        with pytest.raises(InputError, match="not compute gradients"):
            optimizer.step(backward_with_grad)
        assert [p.grad for p in model.parameters()] == [None] * 4
    assert same(bits(model), start)


def test_a_closure_that_changes_weights():
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)

    def written():
        with torch.no_grad():
            model[0].weight += 1
        return loss_of(model)

    def replaced():
        model[0].weight.data = model[0].weight.data + 1
        return loss_of(model)

    for closure in (written, replaced):
        with pytest.raises(InputError, match="must not change the weights"):
            optimizer.step(closure)


def test_a_closure_with_randomness_is_found_and_its_floor_told():
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)
    with pytest.raises(InputError, match=r"same loss at the same weights.*call model.eval\(\)"):
        noise_floor(optimizer, lambda: loss_of(model))
    values = iter([1.0, 1.25])
    assert noise_floor(optimizer, lambda: next(values), allowed=100) == 0.25 / (2 * EPS)
    for value in (math.nan, math.inf):
        with pytest.raises(
            InputError, match=f"must return finite losses .* got {value} and {value}"
        ):
            noise_floor(optimizer, lambda v=value: v, allowed=math.inf)
    model.eval()
    assert noise_floor(optimizer, lambda: loss_of(model)) == 0


def test_losses_of_low_precision_are_told(caplog):
    model = model_of()
    optimizer = ZOSGD(model.named_parameters(), 0.01, EPS)
    with caplog.at_level(logging.WARNING):
        optimizer.step(lambda: loss_of(model).bfloat16())
    assert "loss is torch.bfloat16" in caplog.text


def test_perturbations_without_effect_are_told(caplog):
    """int8 codes are buffers, which a model that is moved replaces."""
    codes = nn.Module()
    codes.register_buffer("codes", torch.ones(4, 4, dtype=torch.int8))
    scales = {"codes": torch.full((4,), 0.01)}
    optimizer = ZOSGD(codes.named_buffers(), 0.0, 0.02, scales=scales, noise="rademacher")
    for moved, factor, enabled, told in [
        (False, 1.0, True, 0), (True, 1.0, False, 0), (True, math.inf, True, 0),
        (True, 1.0, True, 1), (True, 1.0, True, 0),
    ]:  # fmt: skip
        if moved:
            codes._apply(torch.clone)  # as .to() does
        caplog.clear()
        optimizer.param_groups[0]["enabled"] = enabled
        optimizer.step(lambda x=factor: x * (codes.codes * noise((4, 4), 1, "slope")).sum())
        assert caplog.text.count("equal to the last bit; was the model moved") == told


def test_drift_in_16_bits_is_told(caplog):
    for dtype, told in ((torch.float32, False), (torch.bfloat16, True)):
        caplog.clear()
        ZOSGD(model_of(dtype).named_parameters(), 0.01, EPS, restore="inplace")
        assert ("drifts in 16 bits" in caplog.text) == told


def test_eps_against_the_grid_of_each_dtype():
    named = [
        (str(dtype), nn.Parameter(torch.full((4096,), 0.02, dtype=dtype)))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    lines = {x.dtype: x for x in precision_report(ZOSGD(named, 0.01, 1e-4))}
    # 0.02 is in [2^-6, 2^-5): neighbours are 2^-6 eps(dtype) apart.
    assert lines[torch.bfloat16].eps_in_ulps == pytest.approx(1e-4 / 2.0**-13)
    assert lines[torch.float16].eps_in_ulps == pytest.approx(1e-4 / 2.0**-16)
    assert lines[torch.float32].eps_in_ulps == pytest.approx(1e-4 / 2.0**-29)
    assert [lines[d].coarse for _, d in ((0, x.dtype) for _, x in named)] == [False, True, True]
    # +eps z is below half an ulp of bf16 for |z| < 0.61, of 45.8 % of normal samples; the standard
    # error of 4096 samples is 0.8 %.
    assert lines[torch.bfloat16].unmoved == pytest.approx(0.458, abs=4 * 0.008)
    assert lines[torch.float32].unmoved < 0.001
    assert lines[torch.float32].drift < 2.0**-22
    assert "eps is too small" in str(lines[torch.bfloat16])
    assert "eps is too small" not in str(lines[torch.float32])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_report_has_a_line_of_weights_that_are_not_finite(value):
    broken, whole = (nn.Parameter(torch.full((4,), x)) for x in (value, 1.0))
    named = [("a", broken), ("b", whole)]
    first, second = precision_report(ZOSGD(named, 0.01, EPS))
    assert f"rms {value:.2g}, eps = nan ulp" in str(first)
    assert math.isnan(first.drift)
    assert not first.coarse
    assert [second] == precision_report(ZOSGD(named[1:], 0.01, EPS))


def make(named=None, **options):
    return ZOSGD(named or model_of().named_parameters(), **{"lr": 0.01, "eps": EPS, **options})


@pytest.mark.parametrize("options, message", [
    ({"lr": float("nan")}, "lr must be finite, got nan"),
    ({"lr": float("inf")}, "lr must be finite, got inf"),
    ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
    ({"eps": float("inf")}, "eps must be positive and finite, got inf"),
    ({"weight_decay": float("nan")}, "weight_decay must be finite, got nan"),
    ({"clip": 0.0}, "clip must be positive or None, got 0.0"),
    ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    ({"momentum": 0.9, "rounding": "stochastic"}, "momentum must be 0 for stochastic rounding"),
    ({"num_perturbations": 0}, r"num_perturbations must be in \[1, 16383\], got 0"),
    ({"noise": "gausian"}, "noise must be one of .* did you mean 'gaussian'"),
    ({"restore": "copies"}, "restore must be one of .* did you mean 'copy'"),
    ({"estimator": "both"}, "estimator must be one of"),
    ({"rounding": "up"}, "rounding must be one of"),
    ({"headroom": 65}, r"headroom must be a whole number in \[1, 65\), got 65"),
    ({"headroom": 8.0}, r"headroom must be a whole number in \[1, 65\), got 8.0"),
    ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
    ({"restore": "blocks"}, "module must be given with restore='blocks'"),
    ({"module": nn.Linear(1, 1)}, "module must be given with restore='blocks' and not without"),
    ({"restore": "blocks", "module": nn.Linear(1, 1)}, "module must own every trained parameter"),
])  # fmt: skip
def test_settings(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("changes, options, message", [
    ({"lr": float("inf")}, {}, "lr must be finite, got inf"),
    ({"weight_decay": float("nan")}, {}, "weight_decay must be finite, got nan"),
    ({"eps": 0.0}, {}, "eps must be positive and finite, got 0.0"),
    ({"momentum": 0.9}, {"rounding": "stochastic"}, "momentum must be 0 for stochastic rounding"),
])  # fmt: skip
def test_settings_that_change_between_steps(changes, options, message):
    model = model_of()
    optimizer = make(model.named_parameters(), **options)
    optimizer.step(lambda: loss_of(model))
    start = bits(model)
    optimizer.param_groups[0].update(changes)
    for call in (optimizer.step, optimizer.accumulate):
        with pytest.raises(InputError, match=message):
            call(lambda: pytest.fail("evaluated"))
    assert same(bits(model), start)
    assert optimizer.steps == 1


def test_a_schedule_that_cycles_momentum_needs_parameters_that_can_have_it(tmp_path):
    """OneCycleLR cycles momentum or betas unless told not to."""
    codes, scales = torch.ones(4, 4, dtype=torch.int8), {"w": torch.ones(4)}
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    with_codes = make([("w", codes)], scales=scales)
    one_cycle(with_codes, 0.01, 10)
    with pytest.raises(InputError, match=r"momentum must be 0 for int8 codes, got 0\.95"):
        with_codes.step(lambda: pytest.fail("evaluated"))
    for cycles in (False, True):  # a log has betas once, so they stay; without one they may change
        for path in (None, tmp_path / f"{cycles}.zolog"):
            model = model_of()
            adam = ZOAdam(model.named_parameters(), 0.01, EPS, log=path)
            schedule = one_cycle(adam, 0.01, 10, cycle_momentum=cycles)
            adam.step(lambda m=model: loss_of(m))
            schedule.step()
            refused = cycles and path is not None
            told = pytest.raises(InputError, match=r"other constants of its groups: .*betas")
            with told if refused else nullcontext():
                adam.step(lambda m=model: loss_of(m))
            assert adam.steps == (1 if refused else 2)
            if path is not None:
                assert same(bits(sopt.replay(model_of(), path)), bits(model))


def test_parameters():
    weight = nn.Parameter(torch.ones(4, 4))
    codes = torch.ones(4, 4, dtype=torch.int8)
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    view = nn.Parameter(weight.detach())
    for named, message in (
        ([weight], r"must be \(name, parameter\) pairs"),
        ([{"params": [("w", weight)]}, {"params": []}], "at least one parameter, got none"),
        ([("w", frozen)], "parameter 'w' must require grad"),
        ([("w", nn.Parameter(torch.ones(2, dtype=torch.float64)))], "'w' must be float32"),
        ([("w", nn.Parameter(torch.ones(2, 3).t()))], "'w' must be contiguous"),
        ([("w", codes)], "scales must have the int8 codes 'w'"),
        ([("w", weight), ("module.w", weight)], "'w' must be in one group, and once, got two"),
        ([{"params": [("w", weight)]}, {"params": [("w", weight)]}], "in one group"),
        ([{"params": [("a", weight)]}, {"params": [("b", weight)]}], "more than one|share memory"),
        ([{"params": [("a", weight)]}, {"params": [("b", view)]}], "must not share memory"),
    ):
        with pytest.raises((InputError, ValueError), match=message):
            make(named).step(lambda: 0.0)
    for scale, message in (
        (torch.ones(3), "of 'w' must be one per row, a divisor of the 16 codes, got 3"),
        (torch.ones(0), "of 'w' must be one per row, a divisor of the 16 codes, got 0"),
        (torch.ones(4).half(), "of 'w' must be contiguous float32 on cpu .*, got torch.float16"),
        (torch.ones(4, device="meta"), "float32 on cpu as the codes, got .* on meta"),
        (torch.ones(8)[::2], r"must be contiguous .* strides \(2,\)"),
        (torch.tensor([1.0, 0.0]), "of 'w' must be positive and finite, got 0.0"),
        (torch.tensor([torch.nan, 1.0]), "of 'w' must be positive and finite, got nan"),
        (torch.tensor([1.0, torch.inf]), "of 'w' must be positive and finite, got inf"),
    ):
        with pytest.raises(InputError, match=message):
            make([("w", codes)], scales={"w": scale})
    scales = {"w": torch.ones(4)}
    with pytest.raises(InputError, match="weight_decay must be 0 for int8 codes"):
        make([("w", codes)], scales=scales, weight_decay=0.1)
    with pytest.raises(InputError, match="momentum must be 0 for int8 codes"):
        make([("w", codes)], scales=scales, momentum=0.5)
    with pytest.raises(InputError, match=r"betas must be in \[0, 1\)"):
        ZOAdam([("w", weight)], 0.1, EPS, betas=(0.9, 1.0))
    with pytest.raises(InputError, match="must be float32, bfloat16 or float16 for ZOAdam"):
        ZOAdam([("w", codes)], 0.1, EPS)


def test_step_without_losses():
    with pytest.raises(InputError, match=r"closure must be given, or accumulate\(closure\)"):
        make().step()


def test_a_block_that_is_not_called_is_found():
    """Attention reads its output projection's weight without calling it."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = ZOSGD(attention.named_parameters(), 0.01, EPS, restore="blocks", module=attention)
    start, x = bits(attention), torch.randn(1, 3, 8)
    with pytest.raises(InputError, match="each block's forward to be called, but 'out_proj' was"):
        optimizer.step(lambda: attention(x, x, x)[0].sum())
    assert same(bits(attention), start)


def test_a_module_that_calls_itself_is_perturbed_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x, again=True):
            return self(x, False) if again else (self.weight * x).sum()

    model, seen = Twice(), []
    optimizer = ZOSGD(model.named_parameters(), 0.0, EPS, restore="blocks", module=model)
    other = nn.Parameter(torch.ones(3))
    expected = ZOSGD([("weight", other)], 0.0, EPS)
    optimizer.step(lambda: seen.append(model(torch.ones(3))) or seen[-1])
    expected.step(lambda: seen.append(other.sum()) or seen[-1])
    assert seen[:2] == seen[2:]
    assert torch.equal(model.weight, torch.ones(3))


def test_state_of_another_optimizer():
    model = model_of()
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(InputError, match="state_dict must be of a zeroth-order optimizer"):
        make(model.named_parameters()).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_of_an_optimizer_are_refused(copied):
    with pytest.raises(InputError, match=r"cannot be copied or pickled: save state_dict\(\)"):
        copied(make())
