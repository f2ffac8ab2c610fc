"""Stochastic rounding and roundings on the way, of ``add_noise_`` and ``write_noisy_``."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sopt_kernels import add_noise_, philox4x32, write_noisy_
from sopt_kernels._noise import KINDS
from sopt_kernels._registry import OPS

HALVES = [torch.bfloat16, torch.float16]
LEVELS = ["sse42", "avx2", "avx512", "neon", "generic"]


def words_24(seed: int, stream: int, n: int) -> list[int]:
    """``w >> 8`` of the elements 0 .. n - 1, straight from the generator."""
    counters = torch.zeros(-(-n // 4), 4, dtype=torch.int64)
    counters[:, 0] = torch.arange(len(counters))
    counters[:, 2], counters[:, 3] = stream & 0xFFFFFFFF, stream >> 32
    words = philox4x32(counters.tolist(), (seed, 0)).view(torch.int32).flatten()
    return [(w & 0xFFFFFFFF) >> 8 for w in words[:n].tolist()]


def exactly_rounded(x: float, k: int, dtype: torch.dtype) -> float:
    """The rule of the design in fractions; the neighbours from torch's own conversions."""
    largest = torch.finfo(dtype).max
    nearest = torch.tensor(x).to(dtype)
    if not abs(x) <= largest:
        return nearest.item()
    step = torch.tensor(1, dtype=torch.int16)
    bits = nearest.abs().view(torch.int16)
    low = bits - step if nearest.abs().item() > abs(x) else bits
    a, b = low.view(dtype).item(), (low + step).view(dtype).item()
    if b > largest:
        return nearest.item()
    away = (Fraction(abs(x)) - Fraction(a)) / (Fraction(b) - Fraction(a)) > Fraction(k, 2**24)
    return (b if away else a) * (-1 if x < 0 else 1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("level", LEVELS)
def test_stochastic_rounding_follows_its_definition(level, dtype, cpu_level):
    """Products of bfloat16 and float16 values with a decay: subnormal, normal, past the largest."""
    cpu_level(level)
    exponents = torch.arange(-40, 20) if dtype == torch.float16 else torch.arange(-140, 128)
    x = torch.ldexp(1 + torch.rand(8, len(exponents)), exponents).flatten()
    x = torch.cat([x, -x, torch.tensor([0.0, -0.0, 65504.0, 3.39e38])]).to(dtype)
    decay = 1.0 + 2.0**-7 + 2.0**-15 + 2.0**-22
    values = (x.float() * decay).tolist()
    expected = [
        exactly_rounded(v, k, dtype) for v, k in zip(values, words_24(9, 5, len(x)), strict=True)
    ]
    add_noise_(x, [], [], streams=5, decay=decay, rounding="stochastic", rounding_seed=9)
    assert x.tolist() == expected


@pytest.mark.parametrize("body", ["native", "reference"])
@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_not_finite_stays(dtype, body):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0]).to(dtype)
    run = OPS["add_noise_"].backends("cpu").get(body) or pytest.skip(f"no {body} body")
    empty = (torch.empty(0, dtype=torch.int64), torch.empty(0))
    run([x], *empty, [0], "gaussian", 1.0, [], torch.tensor([1]))
    assert x[0].isposinf()
    assert x[1].isneginf()
    assert x[2].isnan()
    assert x[3] == 1


def test_the_mean_of_stochastic_rounding_is_exact():
    """1 + 1/1024 in bfloat16, of which the ulp is 1/128: five deviations of the mean."""
    n = 1 << 18
    x = torch.ones(n, dtype=torch.bfloat16)
    add_noise_(x, [], [], streams=0, decay=1 + 2.0**-10, rounding="stochastic", rounding_seed=3)
    share = (x > 1).double().mean().item()
    assert set(x.unique().tolist()) == {1.0, 1 + 2.0**-7}
    assert abs(share - 1 / 8) < 5 * (1 / 8 * 7 / 8 / n) ** 0.5


def test_small_updates_are_not_lost():
    """Nearest rounding realises none of 100 updates of 1/20 ulp; stochastic rounding all of it."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        x = torch.ones(4096, dtype=torch.bfloat16)
        for step in range(100):
            seed = step if rounding == "stochastic" else None
            decay = 1 + 2.0**-7 / 20
            add_noise_(x, [], [], streams=0, decay=decay, rounding=rounding, rounding_seed=seed)
        moved[rounding] = (x.double().mean().item() - 1) / 2.0**-7
    assert moved["nearest"] == 0
    assert 4.5 < moved["stochastic"] < 5.5


def test_float32_needs_no_rounding():
    x = torch.randn(100)
    plain = add_noise_(x.clone(), 1, 0.5, streams=0)
    options = {"rounding": "stochastic", "rounding_seed": 1}
    assert torch.equal(add_noise_(x.clone(), 1, 0.5, streams=0, **options), plain)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, *HALVES]),
    kind=st.sampled_from(KINDS),
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    decay=st.sampled_from([1.0, 0.9]),
    stochastic=st.booleans(),
    n=st.integers(1, 5000),
)
def test_round_after_replays_calls_one_after_the_other(dtype, kind, steps, decay, stochastic, n):
    start = torch.linspace(-1, 1, n).to(dtype)
    total = sum(steps)
    seeds, coefficients = list(range(total)), [0.01 * (k + 1) for k in range(total)]
    ends = [sum(steps[: k + 1]) for k in range(len(steps))]
    options = {"streams": "w", "kind": kind, "decay": decay}
    one, many = start.clone(), start.clone()
    rounding = {"rounding": "stochastic", "rounding_seed": ends} if stochastic else {}
    add_noise_(one, seeds, coefficients, round_after=ends[:-1], **rounding, **options)
    for begin, end in zip([0, *ends], ends, strict=False):
        rounding = {"rounding": "stochastic", "rounding_seed": end} if stochastic else {}
        add_noise_(many, seeds[begin:end], coefficients[begin:end], **rounding, **options)
    assert torch.equal(one, many)
    written = torch.full_like(start, float("nan"))
    rounding = {"rounding": "stochastic", "rounding_seed": ends} if stochastic else {}
    write_noisy_(written, start, seeds, coefficients, round_after=ends[:-1], **rounding, **options)
    assert torch.equal(written, one)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"rounding": "up"}, ValueError, "rounding must be one of"),
        ({"rounding": "stochastic"}, ValueError, "rounding_seed must be given with"),
        ({"rounding_seed": 1}, ValueError, "and not without, got rounding='nearest'"),
        ({"rounding": "stochastic", "rounding_seed": [1, 2]}, ValueError, r"rounding \(1\), got 2"),
        ({"rounding": "stochastic", "rounding_seed": -1}, ValueError, "rounding_seed must be in"),
        ({"rounding": "stochastic", "rounding_seed": 2**64}, ValueError, "rounding_seed must be"),
        ({"round_after": [0]}, ValueError, r"round_after must increase and lie in \[1, 1\]"),
        ({"round_after": [2]}, ValueError, "round_after must increase"),
        ({"round_after": [1, 1]}, ValueError, "round_after must increase"),
        ({"round_after": [1.0]}, TypeError, "round_after must hold integers"),
    ],
)
def test_rejects_and_changes_nothing(options, error, words):
    x = torch.zeros(3, dtype=torch.bfloat16)
    with pytest.raises(error, match=words):
        add_noise_(x, [1, 2], [1.0, 1.0], streams=0, **options)
    assert not x.any()


def test_compiles_into_one_graph():
    def f(x, c):
        options = {"rounding": "stochastic", "rounding_seed": [4, 5], "round_after": [1]}
        return add_noise_(x * 2, [1, 2], c, streams=7, **options)

    x, c = torch.randn(37, 65).bfloat16(), torch.tensor([0.5, 0.25])
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x, c), f(x, c))
