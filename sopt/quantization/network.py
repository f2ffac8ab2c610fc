"""``quantize``: the linear layers and convolutions of a network to int8, in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layers import Int8Conv2d, Int8Layer, Int8Linear, Int8Weight, quantize_weight

ACTIVATIONS = ("int8", "float")
MOST_CHANNELS, MOST_OF_A_KERNEL = 65536, 64  # of int8_linear and int8_conv2d


@dataclass(frozen=True)
class Quantization:
    """How much of a network is int8."""

    layers: int
    quantized: int  # parameters of theirs that are codes
    parameters: int  # of the network, those included

    @property
    def share(self) -> float:
        """Of the parameters that are int8 codes, in [0, 1]."""
        return self.quantized / self.parameters if self.parameters else 0.0

    @classmethod
    def of(cls, module: nn.Module) -> Quantization:
        """Of a network as it is."""
        layers = [layer for layer in module.modules() if isinstance(layer, Int8Layer)]
        quantized = sum(layer.codes.numel() for layer in layers)
        biases = sum(layer.bias.numel() for layer in layers if isinstance(layer.bias, Tensor))
        others = sum(parameter.numel() for parameter in module.parameters())
        return cls(len(layers), quantized, quantized + biases + others)


def quantize(module: nn.Module, activations: str = "int8") -> Quantization:
    r"""Put every ``Linear`` and ``Conv2d`` of a network on symmetric int8 weights, in place.

    A weight becomes int8 codes with a scale for each output channel, ``max |w| / 127``; embeddings,
    norms and biases stay as they are. The layers become :class:`Int8Linear` and
    :class:`Int8Conv2d`, whose weights are never dequantized in memory, in either direction. What is
    int8 already stays. One layer at a time is in memory in both forms.

    Args:
        module: A network, such as the ``unet`` of a pipeline; all is checked before any of it is
            changed.
        activations: ``"int8"`` quantizes the input of each layer too, by a scale for each token or
            pixel; ``"float"`` leaves it.

    Returns:
        How much of the network is int8.

    Raises:
        InputError: A weight is NaN or infinite, weights are on several devices, a layer is of a
            kind that has no int8 form, or ``activations`` is neither.

    Source:
        Scales per output channel and per token: Yao et al., *ZeroQuant*, arXiv 2206.01861.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
        >>> quantize(network).share > 0.9
        True
    """
    if activations not in ACTIVATIONS:
        raise InputError(f"activations must be one of {ACTIVATIONS}, got {activations!r}")
    layers = quantizable_layers(module)
    devices = sorted({str(weight.device) for weight in module.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise InputError(f"the weights must be on one device, got {' and '.join(devices)}")
    for name, weight in module.named_parameters():
        if not weight.isfinite().all():
            raise InputError(f"the weights must be finite, but {name} has NaN or infinite values")
    for layer in layers.values():
        become_int8(layer, quantize_weight(layer.weight.detach()), activations)
    return Quantization.of(module)


def quantizable_layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers to put on int8 weights, by path.

    Raises:
        InputError: A layer is of a kind that has no int8 form.
    """
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            raise InputError(f"{path or 'module'} reads its weights itself: it has no int8 form")
        if isinstance(layer, Int8Layer) or not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        if isinstance(layer, nn.Conv2d):
            _check_convolution(path, layer)
        _check_weight(path, layer.weight)
        found[path] = layer
    return found


def _check_weight(path: str, weight: Tensor) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(
            f"{path or 'module'} must be float32, bfloat16 or float16, got {weight.dtype}"
        )
    if not weight.numel() > 0 or max(weight.shape[:2]) > MOST_CHANNELS:
        raise InputError(
            f"{path or 'module'} must have between 1 and {MOST_CHANNELS} inputs and outputs, got a "
            f"weight of shape {tuple(weight.shape)}"
        )


def _check_convolution(path: str, layer: nn.Conv2d) -> None:
    plain = (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and len(set(layer.stride)) == 1
        and not isinstance(layer.padding, str)
        and len(set(layer.padding)) == 1
        and max(*layer.kernel_size, *layer.stride, *layer.padding) <= MOST_OF_A_KERNEL
    )
    if not plain:
        raise InputError(
            f"{path} must be a convolution of one group without dilation, with one stride and one "
            f"padding of zeros, none of them above {MOST_OF_A_KERNEL}, got {layer}"
        )


def become_int8(layer: nn.Linear | nn.Conv2d, weight: Int8Weight, activations: str) -> None:
    """Turn a layer into its int8 form with this weight, in place.

    By class, as the frozen convolutions do it: whoever holds the layer holds the int8 one then.
    """
    kind = Int8Conv2d if isinstance(layer, nn.Conv2d) else Int8Linear
    layer.__class__ = kind
    assert isinstance(layer, Int8Layer)
    layer.take(weight, activations)
