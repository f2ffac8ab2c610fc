"""Tensors without storage: what a run would have in memory, found by running its own code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from .models import Model
from .models.kinds import build_on_meta
from .models.model import remove_submodules
from .models.weights import materialize
from .quantization import Int8Weight

aten = torch.ops.aten


@contextlib.contextmanager
def simulated_tensors() -> Iterator[None]:
    """All tensors made meanwhile have a shape, a dtype and a device, and no storage behind them.

    A value that decides something (is the loss finite?) reads as 1, which is true.
    """
    with _Simulated(allow_non_fake_inputs=True):
        yield


def simulated(model: Model) -> Model:
    """The model with networks of simulated tensors; nothing of its weights is read."""
    return replace(model, weights=_SimulatedWeights(model))


@dataclass(frozen=True)
class _SimulatedWeights:
    model: Model

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None = None
    ) -> nn.Module:
        with _disable_current_modes():
            network = build_on_meta(self.model.kind, component, self.model.configs[component])
        remove_submodules(network, dropped)

        def fill(name: str, weight: Tensor) -> Tensor:
            return torch.empty(weight.shape, dtype=dtype)

        def fill_int8(name: str, weight: Tensor) -> Int8Weight:
            codes = torch.empty(weight.movedim(1, -1).shape, dtype=torch.int8)
            return Int8Weight(codes, torch.empty(len(weight)))

        return materialize(network, fill, int8, fill_int8)

    def source(self, component: str, network: nn.Module) -> Any:
        return _NoSource()

    def write(self, component: str, folder: Path) -> None:
        raise AssertionError("a simulation writes no files")

    def tokenizer(self, component: str) -> Any:
        with _disable_current_modes():
            return self.model.tokenizer(component)


class _NoSource:
    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        pass


class _Simulated(FakeTensorMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if FakeTensor not in types:
            if any(isinstance(x, Tensor) for x in tree_leaves((args, kwargs))):
                with _disable_current_modes():  # real tensors, such as a sampler's, stay so
                    return func(*args, **(kwargs or {}))
        elif func.name() == "aten::_local_scalar_dense":  # what bool(), item() and tolist() read
            return _one(*args)
        elif func in _BY_SHAPE and _are_simulated(args):
            with in_kernel_invocation_manager(self):
                result = func(*args, **(kwargs or {}))
            return FakeTensor(self, result, args[0].device)
        elif func in _IN_PLACE and _are_simulated(args) and _are_alike(args):
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


# Half of the operations of a step, which FakeTensorMode takes 50 to 300 us for: it looks at all
# that other operations can do. Here PyTorch's own rules for shapes and dtypes say everything, in
# C++; those of the others are in Python, and FakeTensorMode, which remembers them, is faster.
_BY_SHAPE = {
    aten._unsafe_view.default,
    aten.addmm.default,
    aten.detach.default,
    aten.expand.default,
    aten.mm.default,
    aten.permute.default,
    aten.silu.default,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
    aten.zeros_like.default,
}
_IN_PLACE = {
    aten.add_.Tensor,
    aten.addcdiv_.default,
    aten.addcmul_.default,
    aten.lerp_.Scalar,
}


def _are_simulated(args: Sequence[Any]) -> bool:
    return all(type(x) is FakeTensor for x in args if isinstance(x, Tensor))


def _are_alike(args: Sequence[Any]) -> bool:
    first, *others = (x for x in args if isinstance(x, Tensor))
    return all(x.shape == first.shape and x.dtype == first.dtype for x in others)


def _one(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1
