"""A U-Net as a list of units, run one after the other, with all weights in memory or few of them.

A unit is one ResNet, one transformer layer, one down- or upsampler, the embedding of the timestep,
the first or the last convolution. What is computed is what the U-Net computes, to the bit.
"""

from .network import UnitNetwork
from .opening import network_fingerprint, open_network, open_text_encoder, units_of
from .reader import Reader
from .units import Unit, list_units

__all__ = [
    "Reader",
    "Unit",
    "UnitNetwork",
    "list_units",
    "network_fingerprint",
    "open_network",
    "open_text_encoder",
    "units_of",
]
