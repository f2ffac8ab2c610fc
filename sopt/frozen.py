"""Frozen layers whose backward pass keeps no inputs.

Autograd keeps the input of every convolution for the gradient of its weight; a frozen weight has
none. Linear layers and the norms keep what they need only, as PyTorch writes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class _FrozenConvolution(torch.autograd.Function):
    """``conv2d`` with a gradient with respect to the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return nn.Conv2d.forward(layer, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        result = conv2d_input(
            ctx.shape,
            layer.weight,
            gradient,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        return result, None


class _FrozenConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _FrozenConvolution.apply(x, self)
        return super().forward(x)


def forget_inputs_of_frozen_convolutions(module: nn.Module) -> None:
    """Have no convolution of a frozen network keep its input for the backward pass, in place.

    The same values, bit for bit.

    Example:
        >>> network = nn.Conv2d(3, 8, 3).requires_grad_(False)
        >>> forget_inputs_of_frozen_convolutions(network)
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d and not layer.weight.requires_grad:
            assert layer.padding_mode == "zeros", layer
            # By class: a function put on the layer would hold it in a reference cycle, and the
            # network would stay in memory after its last use until a collection.
            layer.__class__ = _FrozenConv2d
