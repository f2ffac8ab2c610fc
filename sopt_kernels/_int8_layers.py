"""Layers on int8 weights: what ``int8_linear`` and ``int8_conv2d`` share.

Everything here takes images of shape (batch, height, width, channels), of which the rows of a
linear layer are one with a height of 1, and codes of shape (outputs, kernel height, kernel width,
inputs), of which those of a linear layer have a kernel of one element.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._arguments import DTYPES
from ._noise import fma
from ._samples import codes_sample, ramp

ACTIVATIONS = ("int8", "float")
MOST_CHANNELS = 65536  # SOPT_INT8_MAX_CHANNELS
_LEAST_QUANTIZED = 2.0**-100  # kLeastQuantized in csrc


def check_layer(
    name: str, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, channels: int
) -> None:
    """TypeError or ValueError for tensors that the ops reject; ``channels`` is what x must have."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {x.dtype}")
    if codes.dtype != torch.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}")
    if not codes.is_contiguous() or codes.numel() == 0:
        raise ValueError(
            f"codes must be contiguous and not empty, got shape {tuple(codes.shape)}, "
            f"strides {codes.stride()}"
        )
    outputs, inputs = codes.shape[0], codes.shape[-1]
    if outputs > MOST_CHANNELS or inputs > MOST_CHANNELS:
        raise ValueError(
            f"codes must have at most {MOST_CHANNELS} outputs and inputs, got {outputs}, {inputs}"
        )
    for vector_name, vector in (("scales", scales), ("bias", bias)):
        if vector is None:
            continue
        if vector.dtype != torch.float32:
            raise TypeError(f"{vector_name} must be float32, got {vector.dtype}")
        if vector.shape != (outputs,) or not vector.is_contiguous():
            raise ValueError(
                f"{vector_name} must be contiguous, one per row of codes ({outputs}), "
                f"got shape {tuple(vector.shape)}"
            )
        if vector.device != x.device:
            raise ValueError(
                f"{vector_name} must be on the device of {name}, got {vector.device} and {x.device}"
            )
    if codes.device != x.device:
        raise ValueError(
            f"codes must be on the device of {name}, got {codes.device} and {x.device}"
        )
    size = x.shape[channels] if -x.dim() <= channels < x.dim() else None
    expected = inputs if name == "x" else outputs
    if size != expected:
        raise ValueError(
            f"{name} must have {expected} channels, as codes, got shape {tuple(x.shape)}"
        )


def check_activations(activations: str) -> None:
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations must be one of {ACTIVATIONS}, got {activations!r}")


def check_no_gradient(**tensors: Tensor | None) -> None:
    """RuntimeError where autograd would have to record something else than x."""
    if torch.is_grad_enabled():
        for name, x in tensors.items():
            if x is not None and x.requires_grad:
                raise RuntimeError(f"{name} requires grad: only the gradient of x is defined")


def image_of_rows(x: Tensor) -> Tensor:
    """Rows, in any number of dimensions, as an image of height 1; no image if there are none."""
    channels = x.shape[-1]
    return x.reshape(1, 1, -1, channels) if x.numel() else x.new_empty((0, 1, 1, channels))


def codes_of_rows(codes: Tensor) -> Tensor:
    """The codes of a linear layer as those of a convolution."""
    return codes[:, None, None, :]


def result_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Rows or columns of a convolution's result; ValueError if there are none."""
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"x must have a side of at least {kernel - 2 * padding}, got {size}")
    return room // stride + 1


def quantize_pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of each pixel, float32, and its scale ``(..., 1)``; NaN if it is not finite."""
    values = image.float()
    largest = values.abs().amax(-1, keepdim=True)  # NaN if there is one
    finite = largest.isfinite()
    most = torch.full_like(largest, 127)  # by a number torch would multiply with a reciprocal
    inverse = torch.where(finite & (largest >= _LEAST_QUANTIZED), most / largest, 0.0)
    codes = torch.where(inverse > 0, values * inverse, 0.0).round()
    scales = torch.where(inverse > 0, largest / most, 0.0)
    return codes, torch.where(finite, scales, torch.nan)


def forward_reference(
    image: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    activations: str,
) -> Tensor:
    """The result, one element of the kernel after the other; integers are exact in float64."""
    _, down, right, _ = codes.shape
    height = result_size(image.shape[1], down, stride, padding)
    width = result_size(image.shape[2], right, stride, padding)
    elements, pixel_scales = image.float(), None
    if activations == "int8":
        elements, pixel_scales = quantize_pixels(image)

    def patch(of: Tensor, dy: int, dx: int) -> Tensor:
        padded = pad(of, (0, 0, padding, padding, padding, padding))
        rows = padded[:, dy : dy + (height - 1) * stride + 1 : stride]
        return rows[:, :, dx : dx + (width - 1) * stride + 1 : stride]

    shape = *image.shape[:1], height, width, len(codes)
    total = torch.zeros(shape, dtype=torch.float32, device=image.device)
    for dy in range(down):
        for dx in range(right):
            weight = codes[:, dy, dx].mT
            if pixel_scales is None:
                total += patch(elements, dy, dx) @ weight.float()
            else:
                sums = patch(elements, dy, dx).double() @ weight.double()
                scale = patch(pixel_scales, dy, dx).expand(sums.shape)
                total = fma(sums.float(), scale, total)
    shift = torch.zeros_like(scales) if bias is None else bias
    return fma(total, scales, shift.expand(total.shape)).to(image.dtype)


def backward_reference(
    gradient: Tensor,
    codes: Tensor,
    scales: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
) -> Tensor:
    """The gradient with respect to the input, in float32, rounded once."""
    batch, rows, columns, _ = gradient.shape
    _, down, right, inputs = codes.shape
    shape = batch, height + 2 * padding, width + 2 * padding, inputs
    total = torch.zeros(shape, dtype=torch.float32, device=gradient.device)
    scaled = gradient.float() * scales
    for dy in range(down):
        for dx in range(right):
            part = total[:, dy : dy + (rows - 1) * stride + 1 : stride]
            part = part[:, :, dx : dx + (columns - 1) * stride + 1 : stride]
            part += scaled @ codes[:, dy, dx].float()
    cropped = total[:, padding : padding + height, padding : padding + width]
    return cropped.to(gradient.dtype).contiguous()


def layer_sample(device: str, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and bias, for tests and benchmarks."""
    codes = codes_sample(shape)
    scales = ramp(0.001, 0.02, shape[0])
    return codes.to(device, torch.int8), scales.to(device), (scales * 9).sin().to(device)


def image_samples(device: str, shapes: list[tuple[int, ...]]) -> Iterator[Tensor]:
    """One tensor of each shape and dtype."""
    for dtype in DTYPES:
        for shape in shapes:
            x = ramp(-9, 7, torch.Size(shape).numel()).mul(5).sin()
            yield x.view(shape).to(device, dtype)
