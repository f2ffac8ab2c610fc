"""Peaks of tensors, simulated or real, by the same code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sopt.memory import MemoryRecorder
from sopt.models import Model
from sopt.simulation import simulated, simulated_tensors


@contextlib.contextmanager
def counted(model: Model, measured: bool) -> Iterator[tuple[Model, MemoryRecorder]]:
    """The model, of tensors that are simulated or measured meanwhile, and the count of them."""
    with contextlib.ExitStack() as stack:
        if not measured:
            stack.enter_context(simulated_tensors())
            model = simulated(model)
        yield model, stack.enter_context(MemoryRecorder(torch.device("cpu"), found=False))
