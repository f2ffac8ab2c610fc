"""Properties of ``add_noise_`` and ``write_noisy_``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sopt_kernels import add_noise_, noise, write_noisy_
from sopt_kernels._arguments import DTYPES
from sopt_kernels._noise import KINDS


def test_returns_its_argument_and_adds_the_noise():
    x = torch.zeros(3, 5)
    assert add_noise_(x, 1, 0.5, streams="w") is x
    assert torch.equal(x, 0.5 * noise((3, 5), 1, "w"))


def test_minus_the_coefficient_undoes_a_call_on_integers():
    x = torch.randint(-100, 100, (1000,)).float()  # integers: no rounding
    y = add_noise_(x.clone(), 7, 3.0, streams=1, kind="rademacher")
    assert not torch.equal(x, y)
    assert torch.equal(x, add_noise_(y, 7, -3.0, streams=1, kind="rademacher"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 2, 7, 8, 9, 16, 17, 24, 25])
def test_one_call_with_k_seeds_equals_k_calls_in_float32(kind, terms):
    """Also across the groups of seeds that a kernel keeps in registers, and their tiles."""
    seeds = [2**64 - 1 - 3 * k for k in range(terms)]
    coefficients = [0.1 * (k + 1) for k in range(terms)]
    start = torch.randn(4500)
    once = add_noise_(start.clone(), seeds, coefficients, streams="w", kind=kind, decay=0.9)
    many = start.clone()
    for k, (seed, c) in enumerate(zip(seeds, coefficients, strict=True)):
        add_noise_(many, seed, c, streams="w", kind=kind, decay=0.9 if k == 0 else 1.0)
    assert torch.equal(once, many)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=5),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    terms=st.integers(0, 10),
    decay=st.sampled_from([1.0, 0.5, 0.9375]),
)
def test_a_list_in_one_call_equals_calls_one_by_one(sizes, dtype, kind, terms, decay):
    base = [torch.linspace(-1, 1, n).to(dtype) for n in sizes]
    together, alone = [x.clone() for x in base], [x.clone() for x in base]
    written = [torch.full_like(x, float("nan")) for x in base]
    streams = [f"tensor {k}" for k in range(len(sizes))]
    arguments = list(range(terms)), [0.1] * terms
    add_noise_(together, *arguments, streams=streams, kind=kind, decay=decay)
    write_noisy_(written, base, *arguments, streams=streams, kind=kind, decay=decay)
    for k, x in enumerate(alone):
        add_noise_(x, *arguments, streams=streams[k], kind=kind, decay=decay)
    assert all(map(torch.equal, together, alone))
    assert all(map(torch.equal, written, alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_once_from_a_float32_sum(dtype):
    x = torch.randn(3000).to(dtype)
    exact = add_noise_(x.float(), [1, 2, 3], [0.3, 0.2, 0.1], streams=9)
    assert torch.equal(add_noise_(x, [1, 2, 3], [0.3, 0.2, 0.1], streams=9), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_is_untouched(dtype):
    base = torch.randn(1000).to(dtype)
    before = base.clone()
    out = torch.empty_like(base)
    for sign in (1e-3, -1e-3):
        assert write_noisy_(out, base, 5, sign, streams="w") is out
        assert not torch.equal(out, base)
    assert torch.equal(base, before)


def test_coefficients_and_seeds_may_be_tensors():
    expected = add_noise_(torch.zeros(10), [1, 2**64 - 1], [0.5, -0.25], streams=3)
    seeds, coefficients = torch.tensor([1, -1]), torch.tensor([0.5, -0.25])
    assert torch.equal(add_noise_(torch.zeros(10), seeds, coefficients, streams=3), expected)
    every_other = torch.tensor([0.5, 9.0, -0.25, 9.0])[::2]
    assert torch.equal(add_noise_(torch.zeros(10), seeds, every_other, streams=3), expected)


def test_no_terms_is_decay_alone():
    assert add_noise_(torch.full((3,), 2.0), [], [], streams=0, decay=0.5).tolist() == [1.0] * 3
    negative_zero = add_noise_(torch.tensor([-0.0]), [], [], streams=0)
    assert negative_zero.signbit().all()


def test_empty_list_and_empty_tensors_are_no_ops():
    assert add_noise_([], 1, 1.0, streams=[]) == []
    assert write_noisy_([], [], 1, 1.0, streams=[]) == []
    empty = torch.zeros(0, 3)
    assert add_noise_([empty, empty], 1, 1.0, streams=[1, 2])[0] is empty


def overlapping():
    x = torch.zeros(10)
    return [x[:6], x[5:]]


LEAF = torch.zeros(2, requires_grad=True)
ZEROS = torch.zeros(2)


@pytest.mark.parametrize(
    "params, options, error, words",
    [
        (torch.zeros(2, dtype=torch.float64), {}, TypeError, r"params\[0\] must be .*float64"),
        (torch.zeros(2, dtype=torch.int8), {}, TypeError, "int8"),
        ([ZEROS, 3.0], {"streams": [1, 2]}, TypeError, r"params\[1\] must be a tensor"),
        (torch.zeros(4, 4).t(), {}, ValueError, r"params\[0\] must be contiguous"),
        (overlapping(), {"streams": [1, 2]}, ValueError, "must not overlap"),
        ([ZEROS, ZEROS], {"streams": [1, 2]}, ValueError, "must not overlap"),
        ([ZEROS, torch.zeros(2, device="meta")], {"streams": [1, 2]}, ValueError, "one device"),
        (LEAF, {}, RuntimeError, r"params\[0\] requires grad.*no_grad"),
        ([ZEROS], {"streams": [1, 2]}, ValueError, r"streams must be one per tensor \(1\), got 2"),
        (ZEROS, {"streams": -1}, ValueError, "streams must be in"),
        (ZEROS, {"streams": 2**64}, ValueError, "streams must be in"),
        (ZEROS, {"streams": 1.5}, TypeError, "streams"),
        (ZEROS, {"seeds": -1}, ValueError, "seeds must be in"),
        (ZEROS, {"seeds": [2**64]}, ValueError, "seeds must be in"),
        (ZEROS, {"seeds": torch.tensor([1.0])}, TypeError, "seeds must be an int64"),
        (ZEROS, {"seeds": [1, 2]}, ValueError, "seeds and coefficients must be as many"),
        (ZEROS, {"coefficients": float("nan")}, ValueError, "coefficients must be finite"),
        (ZEROS, {"coefficients": 1e39}, ValueError, "coefficients must be finite"),
        (ZEROS, {"coefficients": torch.ones(1).double()}, TypeError, "float32 tensor"),
        (ZEROS, {"coefficients": torch.ones(1, 1)}, ValueError, "at most one dimension"),
        (ZEROS, {"kind": "uniform"}, ValueError, "kind must be one of"),
        (ZEROS, {"decay": float("inf")}, ValueError, "decay must be a finite"),
    ],
)
def test_rejects_and_changes_nothing(params, options, error, words):
    tensors = [x for x in (params if isinstance(params, list) else [params]) if x is not LEAF]
    with pytest.raises(error, match=words):
        add_noise_(params, **{"seeds": 0, "coefficients": 1.0, "streams": 0, **options})
    real = [x for x in tensors if isinstance(x, torch.Tensor) and x.device.type != "meta"]
    assert not any(x.any() for x in real)


def strided_pair():
    x = torch.zeros(10)
    return x[:6], x[4:]


@pytest.mark.parametrize(
    "out, base, words",
    [
        (torch.zeros(2), torch.zeros(3), r"out\[0\] must have the shape"),
        (torch.zeros(2), torch.zeros(2).bfloat16(), "dtype and device"),
        ([torch.zeros(2)], [], "out and base must be as many, got 1 and 0"),
        (ZEROS, ZEROS, "must not overlap"),
        (*strided_pair(), "must not overlap"),
        (torch.zeros(4, 4).t(), torch.zeros(4, 4), r"out\[0\] must be contiguous"),
        (torch.zeros(4, 4), torch.zeros(4, 4).t(), r"base\[0\] must be contiguous"),
    ],
)
def test_write_noisy_rejects(out, base, words):
    with pytest.raises(ValueError, match=words):
        write_noisy_(out, base, 0, 1.0, streams=0)


def test_two_outputs_may_share_a_base():
    base, out = torch.randn(10), [torch.empty(10), torch.empty(10)]
    write_noisy_(out, [base, base], 1, 1.0, streams=["a", "b"])
    assert torch.equal(out[0], add_noise_(base.clone(), 1, 1.0, streams="a"))


def test_autograd_notices_the_mutation():
    x = torch.ones(4, requires_grad=True)
    y = (x * x).sum()
    with torch.no_grad():
        add_noise_(x, 0, 1.0, streams=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    out = torch.ones(4, requires_grad=True)
    y = (out * out).sum()
    with torch.no_grad():
        write_noisy_(out, x, 0, 1.0, streams=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_list_may_change_under_the_same_tensors():
    """New memory, another size, another dtype: what was kept of the last call must not be used."""
    x, y = torch.zeros(300), torch.zeros(7)
    run = partial(add_noise_, [x, y], 1, 1.0, streams=[1, 2], kind="rademacher")
    z = noise(300, 1, 1, "rademacher")
    run()
    old = x.data
    x.data = torch.zeros(300)
    run()
    assert torch.equal(x, z)
    assert torch.equal(old, z)
    x.data = x.data[:100]  # the same address
    run()
    assert torch.equal(x, 2 * z[:100])
    x.data = x.data.view(torch.bfloat16).zero_()  # the same address and bytes
    run()
    assert torch.equal(x, z[:200].bfloat16())
    x.data = y.data
    with pytest.raises(ValueError, match="must not overlap"):
        run()
    x.data = torch.zeros(4, 4).t()
    with pytest.raises(ValueError, match="must be contiguous"):
        run()
    x.data = torch.zeros(4)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        run()


def test_what_one_op_keeps_is_not_taken_for_another():
    """In place is no overlap; the same tensor as the base of a list of its own is one."""
    x = torch.zeros(4)
    add_noise_([x], 1, 1.0, streams=[1])
    with pytest.raises(ValueError, match="must not overlap"):
        write_noisy_([x], [x], 1, 1.0, streams=[1])
    write_noisy_([torch.zeros(4)], [x], 1, 1.0, streams=[1])
    add_noise_([x], 1, 1.0, streams=[1])
    with pytest.raises(TypeError, match="streams must be an integer"):
        add_noise_([x], 1, 1.0, streams=[True])


def test_a_base_that_requires_grad_is_only_read():
    base = torch.ones(4, requires_grad=True)
    assert not write_noisy_(torch.empty(4), base, 0, 1.0, streams=0).requires_grad


def test_fake_tensors_pass_through():
    """Planning runs the same code on tensors without memory."""
    with torch._subclasses.FakeTensorMode():
        x, y = torch.empty(10), torch.empty(10)
        assert add_noise_(x, [1, 2], [0.5, 0.5], streams="w") is x
        assert write_noisy_(y, x, 1, 0.5, streams="w").shape == (10,)
        assert noise((2, 3), 1, "w").shape == (2, 3)


def test_compiles_into_one_graph():
    def f(x, c):
        y = add_noise_(x * 2, [1, 2], c, streams=7) + 1
        return write_noisy_(torch.empty_like(y), y, 3, 0.5, streams=8)

    x, c = torch.randn(37, 65), torch.tensor([0.5, 0.25])
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x, c), f(x, c))
