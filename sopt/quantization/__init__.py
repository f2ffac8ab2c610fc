"""int8 weights: layers that never dequantize them, and networks turned into such layers."""

from .layers import (
    LARGEST,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    Int8Weight,
    quantize_weight,
    requantize,
)
from .network import Quantization, become_int8, quantizable_layers, quantize

__all__ = [
    "LARGEST",
    "Int8Conv2d",
    "Int8Layer",
    "Int8Linear",
    "Int8Weight",
    "Quantization",
    "become_int8",
    "quantizable_layers",
    "quantize",
    "quantize_weight",
    "requantize",
]
