"""Linear layers and convolutions on int8 codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sopt_kernels import int8_conv2d, int8_linear

LARGEST = 127  # code of a row
_ROWS = 1 << 20  # elements quantized at a time: bounds memory


class Int8Weight(NamedTuple):
    """``scales[row] * codes[row]`` stands for a weight; a convolution's inputs are last."""

    codes: Tensor  # int8
    scales: Tensor  # float32


def quantize_weight(weight: Tensor, largest: int = LARGEST) -> Int8Weight:
    r"""The weight of a linear layer or a convolution as symmetric int8 codes.

    .. math:: s_n = \max_k |w_{nk}| / Q, \qquad q_{nk} = \mathrm{round}(w_{nk} / s_n)

    for each output n, ties to even; s = 1 for a row of zeros. With Q = 127 codes are as fine as
    int8 has them; a smaller Q leaves room for them to move. Memory: the codes, and two float32
    copies of 2^20 elements or of one row.

    Args:
        weight: ``(outputs, inputs)`` or ``(outputs, inputs, height, width)``, floating.
        largest: Q, in [1, 127].

    Raises:
        ValueError: A value is NaN or infinite.

    Example:
        >>> quantize_weight(torch.tensor([[0.5, -2.0, 1.0]])).codes
        tensor([[  32, -127,   64]], dtype=torch.int8)
    """
    last = weight.movedim(1, -1)
    codes = torch.empty(last.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(last), dtype=torch.float32, device=weight.device)
    for begin, end in _pieces(last):
        part = last[begin:end].float()
        reach = part.flatten(1).abs().amax(1)
        if not torch.isfinite(reach).all():
            raise ValueError("weight must be finite, got NaN or infinite values")
        scale = torch.where(reach > 0, reach / largest, 1.0)
        scales[begin:end] = scale
        quotients = part / scale.view(-1, *[1] * (part.dim() - 1))
        codes[begin:end] = quotients.round_().clamp_(-largest, largest)
    return Int8Weight(codes, scales)


def requantize(weight: Int8Weight, largest: int) -> Int8Weight:
    """The same weight with no code beyond ``largest``, in [1, 127]: rows that have one get a larger
    scale, and their codes are rounded again; the others stay. Use :func:`quantize_weight` where the
    weight itself is still there."""
    codes, scales = torch.empty_like(weight.codes), torch.empty_like(weight.scales)
    for begin, end in _pieces(weight.codes):
        part, scale = weight.codes[begin:end].float(), weight.scales[begin:end]
        factor = (part.flatten(1).abs().amax(1) / largest).clamp_(min=1)
        scales[begin:end] = scale * factor
        part /= factor.view(-1, *[1] * (part.dim() - 1))
        codes[begin:end] = part.round_().clamp_(-largest, largest)
    return Int8Weight(codes, scales)


def _pieces(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are changed at a time."""
    step = max(1, _ROWS // max(1, rows[0].numel()))
    for begin in range(0, len(rows), step):
        yield begin, min(begin + step, len(rows))


class Int8Layer(nn.Module):
    """What both layers have: ``codes``, float32 ``scales`` and ``bias`` as buffers, no weight.

    ``activations``: ``"int8"`` quantizes what comes in (W8A8), ``"float"`` does not (weight-only).
    """

    codes: Tensor
    scales: Tensor
    activations: str

    def take(self, weight: Int8Weight, activations: str) -> None:
        """Put int8 codes in the place of this layer's own weight."""
        bias: Any = self.bias
        del self.bias
        self.register_parameter("weight", None)
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.activations = activations

    @property
    def qweight(self) -> Tensor:
        """The codes, by the name under which peft looks for a quantized layer's device."""
        return self.codes

    def _apply(self, fn: Callable, recurse: bool = True) -> Int8Layer:
        """Scales and biases follow to another device, and not to another dtype."""
        kept = {name: self._buffers[name] for name in ("scales", "bias")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activations={self.activations!r}"


class Int8Linear(Int8Layer, nn.Linear):
    """A linear layer by :func:`sopt_kernels.int8_linear`; adapters take it for an ``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.codes, self.scales, self.bias, activations=self.activations)


class Int8Conv2d(Int8Layer, nn.Conv2d):
    """A convolution by :func:`sopt_kernels.int8_conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)  # see quantize: numbers, the same on all sides
        (stride, _), (padding, _) = self.stride, self.padding
        return int8_conv2d(
            x,
            self.codes,
            self.scales,
            self.bias,
            stride=stride,
            padding=padding,
            activations=self.activations,
        )
