"""The tensors that an optimizer trains: their names, the memory they share, their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SAMPLED = 64  # about as many values of each tensor go into a digest of a sample


def canonical_name(name: str) -> str:
    """``name`` without what wrappers add to it, so that a wrapped model has the same noise.

    ``module.`` (DistributedDataParallel), ``base_model.model.`` (peft) at the head, and
    ``_orig_mod`` (torch.compile) anywhere.

    Example:
        >>> canonical_name("module._orig_mod.layers.0.weight")
        'layers.0.weight'
    """
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    while name.startswith(("module.", "base_model.model.")):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    return name


def check_trained(name: str, tensor: Tensor, scales: Mapping[str, Tensor]) -> None:
    """InputError unless ``tensor`` can be trained: a float with grad, or int8 with scales."""
    if tensor.dtype == torch.int8:
        if name not in scales:
            raise InputError(
                f"scales must have the int8 codes {name!r}, got {', '.join(scales) or 'none'}"
            )
        _check_scales(name, tensor, scales[name])
    elif tensor.dtype not in FLOATS:
        raise InputError(
            f"parameter {name!r} must be float32, bfloat16, float16 or int8, got {tensor.dtype}"
        )
    elif not tensor.requires_grad:
        raise InputError(
            f"parameter {name!r} must require grad to be trained, got requires_grad=False: "
            "leave frozen parameters out"
        )
    if not tensor.is_contiguous():
        raise InputError(
            f"parameter {name!r} must be contiguous, got shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()}"
        )


def _check_scales(name: str, codes: Tensor, scales: Tensor) -> None:
    if scales.dtype != torch.float32 or scales.device != codes.device or not scales.is_contiguous():
        raise InputError(
            f"scales of {name!r} must be contiguous float32 on {codes.device} as the codes, got "
            f"{scales.dtype} with strides {scales.stride()} on {scales.device}"
        )
    if codes.numel() and (scales.numel() == 0 or codes.numel() % scales.numel()):
        raise InputError(
            f"scales of {name!r} must be one per row, a divisor of the {codes.numel()} codes, "
            f"got {scales.numel()}"
        )
    if bad := scales[~(scales.isfinite() & (scales > 0))].tolist():
        raise InputError(f"scales of {name!r} must be positive and finite, got {bad[0]}")


def place(tensor: Tensor) -> tuple:
    """What two names of one tensor have in common."""
    start = tensor.storage_offset() * tensor.element_size()
    return tensor.device, tensor.untyped_storage().data_ptr() + start, tensor.nbytes, tensor.dtype


def distinct(groups: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The groups with each piece of memory once, under the first of its names in sorted order.

    Raises:
        InputError: Two groups share memory.
    """
    owners: dict[tuple, tuple[int, str]] = {}
    kept: list[dict[str, Tensor]] = []
    for index, group in enumerate(groups):
        kept.append({})
        for name, tensor in sorted(group.items()):
            owner, first = owners.setdefault(place(tensor), (index, name))
            if tensor.numel() == 0 or first == name:
                kept[-1][name] = tensor
            elif owner != index:
                raise InputError(
                    f"parameter {name!r} of group {index} must not share memory with {first!r} of "
                    f"group {owner}: tied parameters are trained once, in one group"
                )
    return kept


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A name for a list of tensors: BLAKE2b over names, shapes and dtypes."""
    lines = [f"{name} {tuple(x.shape)} {x.dtype}\n" for name, x in sorted(tensors.items())]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def digest(tensors: Iterable[Tensor], sampled: bool = False) -> str:
    """BLAKE2b over the bytes of tensors, or over a sample spread over each of them."""
    state = hashlib.blake2b(digest_size=8)
    for x in tensors:
        flat = x.detach().reshape(-1)
        if sampled:
            flat = flat[:: max(1, len(flat) // SAMPLED)]
        state.update(flat.cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()
