"""Simulated tensors: what shapes alone decide is what FakeTensorMode finds."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sopt import simulation

aten = torch.ops.aten
NARROW = {"dtype": torch.bfloat16}


def arguments(func) -> tuple:
    a, row = torch.empty(4, 6).t(), torch.empty(4, **NARROW)
    return {
        aten._unsafe_view.default: (torch.empty(4, 6), [2, 12]),
        aten.addmm.default: (row, a.to(**NARROW), torch.empty(4, 4, **NARROW)),
        aten.detach.default: (a,),
        aten.expand.default: (row, [3, 4]),
        aten.mm.default: (a, torch.empty(4, 4)),
        aten.permute.default: (torch.empty(2, 3, 4), [2, 0, 1]),
        aten.silu.default: (torch.empty(1, 2, 3, 4).to(memory_format=torch.channels_last),),
        aten.t.default: (a,),
        aten.transpose.int: (torch.empty(2, 3, 4), 0, 2),
        aten.unsqueeze.default: (a, 1),
        aten.view.default: (torch.empty(4, 6), [-1]),
        aten.zeros_like.default: (a,),
        aten.add_.Tensor: (a, a.clone()),
        aten.addcdiv_.default: (a, a.clone(), a.clone()),
        aten.addcmul_.default: (a, a.clone(), a.clone()),
        aten.lerp_.Scalar: (a, a.clone(), 0.1),
    }[func]


def found(mode, func) -> tuple:
    with mode:
        given = arguments(func)
        result = func(*given)
        storage = result.untyped_storage()
        shared = [x.untyped_storage() is storage for x in given if isinstance(x, torch.Tensor)]
        return (
            (result.shape, result.stride(), result.storage_offset(), result.dtype, result.device),
            (storage.nbytes(), shared, result is given[0]),
        )


@pytest.mark.parametrize(
    "func", sorted(simulation._BY_SHAPE | simulation._IN_PLACE, key=str), ids=str
)
def test_each_operation(func):
    simulated = found(simulation._Simulated(allow_non_fake_inputs=True), func)
    assert simulated == found(FakeTensorMode(allow_non_fake_inputs=True), func)


def test_what_the_real_operation_refuses():
    with simulation.simulated_tensors():
        with pytest.raises(RuntimeError, match="broadcast"):
            torch.empty(2).add_(torch.empty(3))
        with pytest.raises(RuntimeError, match=r"Promotion|cast"):
            torch.empty(2, dtype=torch.int64).add_(torch.empty(2))


def test_a_real_tensor_beside_a_simulated_one():
    real = torch.ones(3)
    with simulation.simulated_tensors():
        assert (torch.empty(2, 3) + real).shape == (2, 3)
