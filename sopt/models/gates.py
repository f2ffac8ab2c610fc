"""Gated feed-forward layers that keep one tensor for the backward pass instead of two."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor
from torch.nn import functional


class _Gated(torch.autograd.Function):
    r"""``a * gelu(b)`` for ``x = [a, b]``; autograd alone would keep ``gelu(b)`` beside ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, dim=-1)
        return value * functional.gelu(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            opened = functional.gelu(leaf)
        (of_gate,) = torch.autograd.grad(opened, leaf, gradient * value)
        return torch.cat([gradient * opened.detach(), of_gate], dim=-1)


class _LeanGEGLU(GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Gated.apply(self.proj(x))
        return super().forward(x)


def recompute_gates(unet: Any) -> None:
    """Have the gated layers of a U-Net compute GELU again in the backward pass, in place.

    The same values and gradients, bit for bit. In float32 at 512 pixels it saves 21 MiB in each
    transformer layer at the full side of the latents.
    """
    for layer in unet.modules():
        if type(layer) is GEGLU:
            layer.__class__ = _LeanGEGLU  # by class, as forget_inputs_of_frozen_convolutions
