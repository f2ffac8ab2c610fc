"""Which device a name means on this machine."""

from __future__ import annotations

import torch

from .errors import InputError


def resolve_device(name: str | None) -> str:
    """``name``, checked; the GPU if there is one and the CPU if not, for None.

    Raises:
        InputError: This machine has no such device.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    present = ["cpu", *["cuda"] * bool(gpus), *gpus]
    if name not in present:
        raise InputError(
            f"device must be one of {', '.join(present)} on this machine, got {name!r}"
        )
    return name
