"""``restore="blocks"``: perturbed weights that exist while a module computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakMethod, finalize

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from sopt_kernels import add_noise_, write_noisy_

from ..errors import InputError
from .restore import Terms, Weights
from .tensors import place


class BlockWeights(Weights):
    """``restore="blocks"``: a module computes with perturbed weights of its own, then drops them.

    A block is a module that owns trained parameters directly. While it computes, its parameters
    are scratch that ``write_noisy_`` filled; the base is never written.
    """

    def __init__(
        self,
        group: int,
        tensors: Mapping[str, Tensor],
        noise: str,
        rounding: str,
        module: nn.Module,
    ) -> None:
        super().__init__(group, tensors, noise, rounding)
        self._at: tuple[int, float] | None = None
        self._base: dict[Tensor, Tensor] = {}  # of the parameters that are scratch now
        self._calls: list[list[Tensor]] = []  # those of each call of a block that goes on
        self._scratch: Tensor | None = None  # bytes: of a block, and of those around it before
        self._most = 0  # that a block and those around it have
        self._blocks: set[str] = set()
        self._used: set[str] = set()
        self._hooks: list[RemovableHandle] = []
        finalize(self, _remove, self._hooks)
        streams = dict(zip(map(place, self._list), self._streams, strict=True))
        sizes: dict[str, int] = {}
        for name, block in module.named_modules():  # each after those around it
            own = {p: streams[place(p)] for p in block.parameters(False) if place(p) in streams}
            around = sizes.get(name.rpartition(".")[0], 0)
            sizes[name] = around + sum(map(_aligned_bytes, own))
            if own:
                self._register(name, block, own)
        self._most = max(sizes.values())
        owned = {place(p) for p in module.parameters()}
        for name, tensor in tensors.items():
            if place(tensor) not in owned:
                raise InputError(
                    f"module must own every trained parameter where restore='blocks', not {name!r}"
                )

    def _register(self, name: str, block: nn.Module, own: Mapping[Tensor, int]) -> None:
        self._blocks.add(name)
        perturb = _Hook(WeakMethod(self._perturb), name, own)
        restore = _Hook(WeakMethod(self._restore))
        self._hooks += [
            block.register_forward_pre_hook(perturb),
            block.register_forward_hook(restore, always_call=True),  # also after an error
        ]

    def _perturb(self, name: str, own: Mapping[Tensor, int], block: nn.Module, _: Any) -> None:
        """Before a block's forward, with the streams of its own parameters."""
        if self._at is None:
            return
        call: list[Tensor] = []
        self._calls.append(call)  # before an error, which torch tells _restore of
        if not own.keys() <= {*block.parameters()}:  # a parametrization has moved them down
            raise InputError(
                "module must compute with the trained parameters where restore='blocks', but "
                f"{name!r} has others (nn.DataParallel computes with copies)"
            )
        self._used.add(name)
        params = [p for p in own if p not in self._base]  # another block may have it too
        base = [p.data for p in params]
        scratch = self._scratch_like(base)
        streams = [own[p] for p in params]
        write_noisy_(scratch, base, *self._at, streams=streams, kind=self._noise["kind"])
        for p, x, perturbed in zip(params, base, scratch, strict=True):
            self._base[p], p.data = x, perturbed
            call.append(p)

    def _restore(self, _: nn.Module, __: Any, output: Any) -> Any:
        """After it; what it returns of its weights, they themselves or views, stays perturbed where
        torch's pytree sees it, as in tuples, lists and dictionaries."""
        call = self._calls.pop() if self._calls else []
        scratch = set(map(_memory, call))

        def shared(x: Any) -> bool:
            return isinstance(x, Tensor) and _memory(x) in scratch

        returned = None  # as it is
        if scratch and any(map(shared, tree_leaves(output))):
            returned = tree_map_only(shared, lambda x: x.detach().clone(), output)
        for p in call:
            p.data = self._base[p]
            del self._base[p]  # not sooner: Ctrl-C may come between
        return returned

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        self._at = seed, coefficient
        self._used.clear()

    def home(self) -> None:
        self._at = None
        self._calls.clear()
        for p, x in self._base.items():  # torch calls no hook after a Ctrl-C
            p.data = x
        self._base.clear()

    def update(self, terms: Terms) -> None:  # between forwards they are at the base
        add_noise_(self._list, **self._sum(terms))

    def _scratch_like(self, base: Sequence[Tensor]) -> list[Tensor]:
        """Memory for perturbed weights: kept, as new pages cost more than the noise in them."""
        start = sum(map(_aligned_bytes, self._base.values()))  # of blocks around this one
        offsets = list(accumulate(map(_aligned_bytes, base), initial=start))
        if offsets[-1] > self._most:  # it is called by one that it is not a part of
            return [torch.empty_like(x) for x in base]
        if self._scratch is None:
            device = self._list[0].device
            self._scratch = torch.empty(self._most, dtype=torch.uint8, device=device)
        return [
            self._scratch[start : start + x.nbytes].view(x.dtype).view(x.shape)
            for start, x in zip(offsets, base, strict=False)
        ]

    def check_evaluated(self) -> None:
        if self._at is not None and (unused := sorted(self._blocks - self._used)):
            raise InputError(
                f"restore='blocks' needs each block's forward to be called, but {unused[0]!r} was "
                "not: leave its parameters out, or use restore='copy'"
            )


class _Hook:
    """Calls a method of the weights while they are there; one in a copy of the module is idle."""

    def __init__(self, method: WeakMethod | None = None, *arguments: Any) -> None:
        # A compiled module would be compiled again for each perturbation, a constant to it.
        @torch.compiler.disable
        def run(*called: Any) -> Any:
            call = None if method is None else method()
            return None if call is None else call(*arguments, *called)

        self._run = run

    def __call__(self, *called: Any) -> Any:
        return self._run(*called)

    def __reduce__(self) -> tuple:
        return _Hook, ()


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _memory(x: Tensor) -> int | None:
    try:
        return x.untyped_storage().data_ptr()
    except RuntimeError:  # a sparse one, a nested one, or one of torch.func
        return None


def _aligned_bytes(x: Tensor) -> int:
    return -(-x.nbytes // 64) * 64  # of a cache line
