"""Properties of ``restore_accumulate_``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sopt_kernels import add_noise_, noise, restore_accumulate_
from sopt_kernels._arguments import DTYPES
from sopt_kernels._noise import KINDS


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=4),
    dtype=st.sampled_from(DTYPES),
    grad_dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
)
def test_equals_two_calls_of_add_noise(sizes, dtype, grad_dtype, kind):
    params = [torch.linspace(-1, 1, n).to(dtype) for n in sizes]
    grads = [torch.linspace(2, -1, n).to(grad_dtype) for n in sizes]
    expected = [x.clone() for x in params], [x.clone() for x in grads]
    streams = [f"tensor {k}" for k in range(len(sizes))]
    seed = 2**64 - 3
    assert restore_accumulate_(params, grads, seed, -0.5, 0.3, streams=streams, kind=kind) is params
    add_noise_(expected[0], seed, -0.5, streams=streams, kind=kind)
    add_noise_(expected[1], seed, 0.3, streams=streams, kind=kind)
    assert all(map(torch.equal, params, expected[0]))
    assert all(map(torch.equal, grads, expected[1]))


def test_restores_and_accumulates():
    w, g = torch.randint(-9, 9, (100,)).float(), torch.ones(100)
    before = w.clone()
    add_noise_(w, 1, 4.0, streams=2, kind="rademacher")
    restore_accumulate_(w, g, 1, -4.0, 0.5, streams=2, kind="rademacher")
    assert torch.equal(w, before)
    assert torch.equal(g, 1 + 0.5 * noise(100, 1, 2, "rademacher"))


def test_scalars_may_be_tensors():
    w, g = torch.zeros(10), torch.zeros(10)
    scalars = torch.tensor(-1), torch.tensor([0.5]), torch.tensor(-2.0)
    restore_accumulate_(w, g, *scalars, streams=0)
    z = noise(10, 2**64 - 1, 0)
    assert torch.equal(w, 0.5 * z)
    assert torch.equal(g, -2 * z)


ZEROS, LEAF = torch.zeros(4), torch.zeros(4, requires_grad=True)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"params": torch.zeros(4).int()}, TypeError, r"params\[0\] must be float32.*int32"),
        ({"grads": torch.zeros(4).double()}, TypeError, r"grads\[0\] must be"),
        ({"grads": torch.zeros(3)}, ValueError, r"params\[0\] must have the shape and device"),
        ({"grads": []}, ValueError, "params and grads must be as many, got 1 and 0"),
        ({"grads": ZEROS}, ValueError, "must not overlap"),
        ({"params": LEAF}, RuntimeError, r"params\[0\] requires grad"),
        ({"grads": LEAF}, RuntimeError, r"grads\[0\] requires grad"),
        ({"seed": [1, 2]}, ValueError, "seed must be one value, got 2"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"restore": float("nan")}, ValueError, "restore_coefficient must be finite"),
        ({"grad": float("inf")}, ValueError, "grad_coefficient must be finite"),
        ({"grad": torch.ones(2)}, ValueError, "grad_coefficient must be one value"),
        ({"streams": [1, 2]}, ValueError, "streams must be one per tensor"),
        ({"kind": "uniform"}, ValueError, "kind must be one of"),
    ],
)
def test_rejects_and_changes_nothing(change, error, words):
    given = {"params": ZEROS, "grads": torch.zeros(4), "seed": 1, "restore": 1.0, "grad": 1.0}
    options = {"streams": 0, "kind": "gaussian"}
    arguments = [change.get(name, value) for name, value in given.items()]
    with pytest.raises(error, match=words):
        restore_accumulate_(*arguments, **{k: change.get(k, v) for k, v in options.items()})
    for x in arguments[:2]:
        assert not torch.as_tensor(x).any()


def test_no_pairs_is_a_no_op():
    assert restore_accumulate_([], [], 1, 1.0, 1.0, streams=[]) == []


def test_autograd_notices_both_mutations():
    for k in range(2):
        pair = [torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)]
        y = (pair[k] * pair[k]).sum()
        with torch.no_grad():
            restore_accumulate_(*pair, 0, 1.0, 1.0, streams=0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_compiles_into_one_graph():
    def f(x, y, c):
        return restore_accumulate_(x * 2, y, 1, -0.5, c, streams=7) + y

    x, y, c = torch.randn(37, 65), torch.randn(37, 65), torch.tensor([0.25])
    expected = f(x, y.clone(), c)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x, y, c), expected)
