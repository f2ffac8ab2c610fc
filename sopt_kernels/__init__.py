"""Exact zeroth-order kernels: counter-based noise added to tensors, the same bits everywhere.

And what makes the forward passes between them fast on the CPU: attention, and low-rank adapters.
"""

from ._native import cpu_level
from ._philox import philox4x32_10
from ._registry import Body, backends
from ._streams import stream_id
from .ops import box_muller as box_muller  # a module: registers the op
from .ops.add_low_rank import add_low_rank_
from .ops.add_noise import add_noise_, noise
from .ops.attention_forward import attention_forward
from .ops.int8_conv2d import int8_conv2d
from .ops.int8_linear import int8_linear
from .ops.perturb_int8 import perturb_int8_
from .ops.philox4x32 import philox4x32
from .ops.restore_accumulate import restore_accumulate_
from .ops.update_int8 import clamp_codes_, update_int8_
from .ops.write_noisy import write_noisy_

__all__ = [
    "Body",
    "add_low_rank_",
    "add_noise_",
    "attention_forward",
    "backends",
    "clamp_codes_",
    "cpu_level",
    "int8_conv2d",
    "int8_linear",
    "noise",
    "perturb_int8_",
    "philox4x32",
    "philox4x32_10",
    "restore_accumulate_",
    "stream_id",
    "update_int8_",
    "write_noisy_",
]
