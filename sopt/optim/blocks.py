"""``restore="blocks"``: perturbed weights that exist while a module computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakMethod, finalize

import torch
from torch import Tensor, nn
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
        self._scratch: Tensor | None = None  # bytes, as many as the largest block has
        self._largest = 0
        self._blocks: set[str] = set()
        self._used: set[str] = set()
        self._hooks: list[RemovableHandle] = []
        finalize(self, _remove, self._hooks).atexit = False
        streams = dict(zip(map(place, self._list), self._streams, strict=True))
        for name, block in module.named_modules():
            own = {p: streams[place(p)] for p in block.parameters(False) if place(p) in streams}
            if own:
                self._register(name, block, own)
        owned = {place(p) for p in module.parameters()}
        for name, tensor in tensors.items():
            if place(tensor) not in owned:
                raise InputError(
                    f"module must own every trained parameter where restore='blocks', not {name!r}"
                )

    def _register(self, name: str, block: nn.Module, own: Mapping[Tensor, int]) -> None:
        self._blocks.add(name)
        self._largest = max(self._largest, sum(map(_aligned_bytes, own)))
        perturb = _Hook(WeakMethod(self._perturb), name, own)
        restore = _Hook(WeakMethod(self._restore))
        self._hooks += [
            block.register_forward_pre_hook(perturb),
            block.register_forward_hook(restore, always_call=True),  # also after an error
        ]

    def _perturb(self, name: str, own: Mapping[Tensor, int]) -> None:
        """Before a block's forward, with the streams of its own parameters."""
        if self._at is None:
            return
        self._used.add(name)
        params = [p for p in own if p not in self._base]  # another block may have it too
        base = [p.data for p in params]
        scratch = self._scratch_like(base)
        streams = [own[p] for p in params]
        write_noisy_(scratch, base, *self._at, streams=streams, kind=self._noise["kind"])
        for p, x, perturbed in zip(params, base, scratch, strict=True):
            self._base[p], p.data = x, perturbed
        self._calls.append(params)

    def _restore(self) -> None:
        """After it."""
        for p in self._calls.pop() if self._calls else ():
            p.data = self._base[p]
            del self._base[p]  # not sooner: Ctrl-C may come between

    def move(self, seed: int, coefficient: float, rounding_seed: int) -> None:
        self._at = seed, coefficient
        self._used.clear()

    def home(self) -> None:
        self._at = None
        self._calls.clear()
        for p, x in self._base.items():  # torch calls no hook after a Ctrl-C
            p.data = x
        self._base.clear()

    def update(self, terms: Terms) -> None:
        self.home()
        add_noise_(self._list, **self._sum(terms))

    def _scratch_like(self, base: Sequence[Tensor]) -> list[Tensor]:
        """Memory for perturbed weights: kept, as new pages cost more than the noise in them."""
        if self._base:  # in use, by a block around this one
            return [torch.empty_like(x) for x in base]
        if self._scratch is None:
            device = self._list[0].device
            self._scratch = torch.empty(self._largest, dtype=torch.uint8, device=device)
        offsets = [0, *accumulate(map(_aligned_bytes, base))]
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
        def run() -> None:
            call = None if method is None else method()
            if call is not None:
                call(*arguments)

        self._run = run

    def __call__(self, *_: Any) -> None:
        self._run()

    def __reduce__(self) -> tuple:
        return _Hook, ()


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _aligned_bytes(x: Tensor) -> int:
    return -(-x.nbytes // 64) * 64  # of a cache line
