"""Which device a name means on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import InputError
from .models.storage import INT8, Storage, float_dtype, storage_of

_CPUINFO = Path("/proc/cpuinfo")


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


def resolve_weights(name: str | None, device: str) -> str:
    """``name``, checked; for None the smaller of the dtypes that ``device`` computes in natively.

    Raises:
        InputError: The device cannot compute in this dtype.

    Example:
        >>> resolve_weights("float32", "cpu")
        'float32'
    """
    if name is None:
        return "bfloat16" if _has_bfloat16(device) else "float32"
    if name == INT8:
        return name
    try:
        weight = torch.ones(1, 1, 1, 1, dtype=getattr(torch, name), device=device)
        torch.nn.functional.conv2d(weight, weight)
    except RuntimeError as error:
        raise InputError(
            f"weights={name!r} must be a dtype that {device} computes in: {error}"
        ) from error
    return name


def weight_storage(weights: str, device: str) -> Storage:
    """How networks store their weights: ``weights`` as :func:`resolve_weights` gave it."""
    return storage_of(weights, _has_bfloat16(device))


def float_name(weights: str, device: str) -> str:
    """The dtype of numbers that are not quantized, where ``weights`` may be int8.

    Example:
        >>> float_name("float32", "cpu")
        'float32'
    """
    return str(float_dtype(weight_storage(weights, device))).removeprefix("torch.")


def _has_bfloat16(device: str) -> bool:
    """Whether there are instructions for it: without them PyTorch converts back and forth."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not _CPUINFO.exists():
        return False
    words = set(_CPUINFO.read_text().split())
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
