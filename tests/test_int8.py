"""Properties of ``perturb_int8_``, ``update_int8_`` and ``clamp_codes_``."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rounding import words_24

from sopt_kernels import clamp_codes_, noise, perturb_int8_, stream_id, update_int8_
from sopt_kernels._noise import KINDS
from sopt_kernels._registry import OPS


def codes_within(limit: int, *shape: int) -> torch.Tensor:
    return torch.randint(-limit, limit + 1, shape, dtype=torch.int8)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_cycles_end_on_the_first_bytes(kind):
    """+c, -c, -c, +c; every tensor of a list is a cycle of its own, as its stream differs."""
    for case in range(20):
        headroom = int(torch.randint(1, 65, ()))
        rows = torch.randint(1, 9, (250,)).tolist()
        codes = [codes_within(127 - headroom, r, int(torch.randint(1, 99, ()))) for r in rows]
        start = [x.clone() for x in codes]
        scales = [torch.rand(r) + 0.01 for r in rows]
        terms = case % 3 + 1
        c = torch.randn(terms) * 4.0 ** int(torch.randint(-2, 4, ()))
        seeds = list(range(case, case + terms))
        streams = [f"{case} {k}" for k in range(250)]
        run = partial(perturb_int8_, codes, scales, seeds, headroom=headroom, streams=streams)
        changes = []
        for sign in (1, -1, -1, 1):
            run(coefficients=sign * c, rounding_seed=case, kind=kind)
            moved = [x.short() - y.short() for x, y in zip(codes, start, strict=True)]
            changes.append(torch.cat([x.flatten() for x in moved]))
        plus, back, minus, end = changes
        assert not back.any()
        assert not end.any()
        assert torch.equal(plus, -minus)
        assert 0 < plus.abs().max() <= headroom  # so nothing wrapped


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    length=st.integers(0, 300),
    headroom=st.integers(1, 64),
    kind=st.sampled_from(KINDS),
    coefficients=st.lists(st.floats(-100, 100, width=32), max_size=4),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_opposite_coefficients_restore_any_codes(
    rows, length, headroom, kind, coefficients, seed
):
    """Also codes outside of the head-room: these wrap, and wrap back."""
    start = (torch.arange(rows * length) % 256 - 128).to(torch.int8).view(rows, length)
    codes, scales = start.clone(), torch.linspace(0.1, 3, rows)
    seeds = [seed ^ k for k in range(len(coefficients))]
    options = {"headroom": headroom, "streams": seed, "rounding_seed": seed, "kind": kind}
    assert perturb_int8_(codes, scales, seeds, coefficients, **options) is codes
    perturb_int8_(codes, scales, seeds, [-c for c in coefficients], **options)
    assert torch.equal(codes, start)


@pytest.mark.parametrize("level", ["sse42", "avx2", "avx512", "neon", "generic"])
@pytest.mark.parametrize("kind", KINDS)
def test_changes_follow_their_definition(kind, level, cpu_level):
    """In fractions, from the noise and the words themselves; rows that no vector divides."""
    cpu_level(level)
    rows, length, headroom, c = 7, 43, 5, 1.7
    n = rows * length
    scales = torch.rand(rows) + 0.2
    codes = torch.zeros(rows, length, dtype=torch.int8)
    options = {"streams": 5, "rounding_seed": 9, "kind": kind}
    perturb_int8_(codes, scales, 3, c, headroom, **options)
    v = (torch.tensor(c) * noise((rows, length), 3, 5, kind)) / scales[:, None]
    expected = []
    for value, k in zip(v.flatten().tolist(), words_24(9, 5, n), strict=True):
        size = min(int(abs(Fraction(value)) + Fraction(k, 2**24)), headroom)
        expected.append(size if value > 0 else -size)
    assert codes.flatten().tolist() == expected


@pytest.mark.parametrize("level", ["sse42", "avx2", "avx512", "neon", "generic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_gives_the_bytes_of_the_reference(kind, level, cpu_level):
    """Rows longer than a tile, shorter than one, and of one code; c of both signs."""
    cpu_level(level)
    for rows, length in ((3, 5003), (64, 320), (61, 97), (300, 1)):
        scales = torch.rand(rows) + 0.02
        start = codes_within(119, rows, length)
        for c in (0.9, -0.9):
            native, reference = start.clone(), start.clone()
            terms = (torch.tensor([3]), torch.tensor([c]), [7], kind, 8, torch.tensor([4]))
            torch.ops.sopt.perturb_int8_([native], [scales], *terms)
            OPS["perturb_int8_"].reference([reference], [scales], *terms)
            assert torch.equal(native, reference)
            # Sums so large that they clamp: past the end of a tensor nothing may be counted.
            terms = (terms[0], 100 * terms[1], *terms[2:])
            more = (torch.tensor([6]), torch.tensor([c]))  # of the directions, and eps
            counts = torch.tensor(0), torch.tensor(0)
            torch.ops.sopt.update_int8_([native], [scales], *terms, *more, counts[0])
            OPS["update_int8_"].reference([reference], [scales], *terms, *more, counts[1])
            assert torch.equal(native, reference)
            assert counts[0] == counts[1]


@pytest.mark.parametrize("level", ["sse42", "avx2", "avx512", "neon", "generic"])
def test_the_last_word_that_rounds_down_and_the_first_that_rounds_up(level, cpu_level):
    """|v| = 1 - k 2^-24 becomes 1 where u = k 2^-24, and the next smaller |v| becomes 0."""
    cpu_level(level)
    words = words_24(9, 5, 300)
    for i in range(0, 300, 7):
        for extra, expected in ((0, 1), (1, 0)):
            codes = torch.zeros(300, dtype=torch.int8)
            c = 1 - (words[i] + extra) * 2.0**-24
            perturb_int8_(
                codes, torch.ones(1), 3, c, 8, streams=5, rounding_seed=9, kind="rademacher"
            )  # fmt: skip
            assert abs(int(codes[i])) == expected


def test_whole_numbers_need_no_rounding_and_rows_have_their_scales():
    codes = torch.zeros(4, 5000, dtype=torch.int8)
    scales = torch.tensor([[1.0], [0.5], [0.25], [0.125]])
    z = noise((4, 5000), 1, 2, "rademacher")
    perturb_int8_(codes, scales, 1, 1.0, 4, streams=2, rounding_seed=3, kind="rademacher")
    expected = z * torch.tensor([[1.0], [2.0], [4.0], [4.0]])  # the last by its head-room
    assert torch.equal(codes.float(), expected)


def test_the_mean_of_the_change_is_exact():
    """v = +-0.3: five deviations of the mean of n changes of +-1."""
    n = 1 << 18
    codes = torch.zeros(n, dtype=torch.int8)
    perturb_int8_(
        codes, torch.ones(1), 1, 0.3, 8, streams=2, rounding_seed=3, kind="rademacher"
    )  # fmt: skip
    assert abs(codes.abs().double().mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    assert torch.equal(codes.float(), codes.abs() * noise(n, 1, 2, "rademacher"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("headroom", [1, 16, 64])
def test_update_follows_its_definition(kind, headroom):
    """Directions from perturb_int8_ itself; coefficients of few bits, so that sums are exact."""
    rows, length, eps, limit = 7, 430, 0.8, 127 - headroom
    n = rows * length
    start, scales = codes_within(limit, rows, length), torch.rand(rows) + 0.05
    seeds, rounding, coefficients = [3, 2**64 - 1], [6, 7], [-1.75, 0.625]
    total = torch.zeros(rows, length)
    for seed, delta_rounding, c in zip(seeds, rounding, coefficients, strict=True):
        delta = torch.zeros(rows, length, dtype=torch.int8)
        options = {"streams": "w", "rounding_seed": delta_rounding, "kind": kind}
        perturb_int8_(delta, scales, seed, eps, headroom, **options)
        total += c * delta.float()
    codes = start.clone()
    clamped = update_int8_(
        codes, scales, seeds, coefficients, headroom, streams="w", eps=eps, kind=kind,
        delta_rounding_seeds=rounding, rounding_seed=8,
    )  # fmt: skip
    u = torch.tensor(words_24(8, stream_id("w"), n)).view(rows, length).double() * 2.0**-24
    change = (total.double().abs() + u).floor() * total.sign()
    moved = start.double() + change
    assert torch.equal(codes.double(), moved.clamp(-limit, limit))
    assert clamped.item() == (moved.abs() > limit).sum().item()
    assert clamped.dtype == torch.int64
    assert clamped.dim() == 0


def test_update_descends_a_quadratic():
    """256 codes, 32 directions a step: the loss falls to what rounding noise leaves of it."""
    target = codes_within(60, 256).float() * 0.1
    codes, scale, eps, lr, directions = torch.zeros(256, dtype=torch.int8), 0.1, 0.2, 0.02, 32
    scales, run = torch.tensor([scale]), {"streams": 1, "kind": "rademacher"}

    def loss():
        return (codes.float() * scale - target).square().sum().item() / 2

    first = loss()
    for step in range(60):
        seeds = [step * directions + n for n in range(directions)]
        slopes = []
        for seed in seeds:
            values = []
            for sign in (1, -1):
                perturb_int8_(codes, scales, seed, sign * eps, 8, rounding_seed=seed, **run)
                values.append(loss())
                perturb_int8_(codes, scales, seed, -sign * eps, 8, rounding_seed=seed, **run)
            slopes.append((values[0] - values[1]) / (2 * eps))
        factors = [-lr * g / (directions * eps) for g in slopes]
        update_int8_(
            codes, scales, seeds, factors, 8, eps=eps, delta_rounding_seeds=seeds,
            rounding_seed=10**6 + step, **run,
        )  # fmt: skip
    assert loss() < first / 5


def test_clamped_codes_are_counted_whatever_the_threads():
    start = torch.arange(-128, 128).repeat(1000).to(torch.int8)
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        codes = [start.clone(), start[:77].clone()]
        count = clamp_codes_(codes, headroom=28)
        assert torch.equal(codes[0], start.clamp(-99, 99))
        assert count.item() == 1000 * (29 + 28) + 29
    torch.set_num_threads(before)


def test_empty_lists_and_tensors_are_no_ops():
    options = {"headroom": 1, "streams": [], "rounding_seed": 0}
    assert perturb_int8_([], [], 1, 1.0, **options) == []
    assert clamp_codes_([], 1).item() == 0
    empty = torch.zeros(0, 4, dtype=torch.int8)
    perturb_int8_(empty, torch.zeros(0), 1, 1.0, 1, streams=0, rounding_seed=0)
    assert clamp_codes_(empty, 64).item() == 0


CODES = torch.zeros(2, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"codes": torch.zeros(6)}, TypeError, r"codes\[0\] must be int8, got torch.float32"),
        ({"codes": CODES.t()}, ValueError, r"codes\[0\] must be contiguous"),
        ({"codes": [CODES, CODES], "scales": [torch.ones(1)] * 2, "streams": [1, 2]},
         ValueError, "must not overlap"),
        ({"scales": torch.ones(2).double()}, TypeError, r"scales\[0\] must be float32"),
        ({"scales": torch.ones(4)}, ValueError, r"scales\[0\] must be one per row, .* 6 .* got 4"),
        ({"scales": torch.ones(0)}, ValueError, "got 0"),
        ({"scales": []}, ValueError, "codes and scales must be as many, got 1 and 0"),
        ({"scales": torch.tensor([1.0, 0.0])}, ValueError, r"scales\[0\] must be positive"),
        ({"scales": torch.tensor([1.0, float("inf")])}, ValueError, "positive and finite"),
        ({"scales": torch.tensor([1.0, float("nan")])}, ValueError, "positive and finite"),
        ({"scales": torch.ones(2, device="meta")}, ValueError, r"scales\[0\] must be on cpu"),
        ({"headroom": 0}, ValueError, r"headroom must be in \[1, 64\], got 0"),
        ({"headroom": 65}, ValueError, "headroom must be in"),
        ({"headroom": 8.0}, TypeError, "headroom must be an integer"),
        ({"seeds": -1}, ValueError, "seeds must be in"),
        ({"seeds": [1, 2]}, ValueError, "seeds and coefficients must be as many"),
        ({"coefficients": float("nan")}, ValueError, "coefficients must be finite"),
        ({"rounding_seed": 2**64}, ValueError, "rounding_seed must be in"),
        ({"rounding_seed": [1, 2]}, ValueError, "rounding_seed must be one value, got 2"),
        ({"streams": [1, 2]}, ValueError, "streams must be one per tensor"),
        ({"kind": "uniform"}, ValueError, "kind must be one of"),
        ({"eps": float("inf")}, ValueError, "eps must be finite"),
        ({"eps": [1.0, 2.0]}, ValueError, "eps must be one value"),
        ({"delta_rounding_seeds": []}, ValueError, r"must be one per seed \(1\), got 0"),
    ],
)  # fmt: skip
def test_rejects_and_changes_nothing(change, error, words):
    given = {"codes": CODES, "scales": torch.ones(2), "seeds": 1, "coefficients": 1.0}
    given |= {"headroom": 8, "streams": 0, "rounding_seed": 0, "kind": "gaussian"} | change
    update = {"eps": 1.0, "delta_rounding_seeds": 1} | given
    with pytest.raises(error, match=words):
        update_int8_(**update)
    if not {"eps", "delta_rounding_seeds"} & set(change):
        with pytest.raises(error, match=words):
            perturb_int8_(**given)
    assert not CODES.any()


def test_fake_tensors_pass_through():
    with torch._subclasses.FakeTensorMode():
        codes = torch.empty(10, dtype=torch.int8)
        perturb_int8_(codes, torch.ones(1), 1, 0.5, 8, streams="w", rounding_seed=1)
        assert clamp_codes_(codes, 8).dtype == torch.int64


def test_compiles_into_one_graph():
    def f(codes, scales, c):
        codes = perturb_int8_(codes + 1, scales, 1, c, 8, streams=7, rounding_seed=1)
        options = {"eps": 0.5, "delta_rounding_seeds": 1, "rounding_seed": 2}
        return codes, update_int8_(codes, scales, 1, c, 8, streams=7, **options)

    arguments = codes_within(119, 37, 65), torch.rand(37) + 0.1, torch.tensor([0.5])
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(*arguments), f(*arguments)))
