"""Names of tensors and 64-bit unsigned integers, as the ops take them."""

from __future__ import annotations

import hashlib


def stream_id(name: str) -> int:
    r"""The noise stream of a tensor, from its canonical name and never from its position.

    The first 8 bytes, little-endian, of BLAKE2b (``digest_size=8``) of the name in UTF-8. So
    freezing a module, adding one, or splitting a model over processes moves no other tensor's
    noise.

    Args:
        name: Canonical name, for example ``"unet.<path>.lora_A.weight"``: the caller removes
            wrapper prefixes such as ``module.`` first.

    Returns:
        An integer in ``[0, 2**64)``.

    Raises:
        TypeError: ``name`` is not a string.

    Source:
        BLAKE2: RFC 7693.

    Example:
        >>> stream_id("unet.conv_in.weight") == stream_id("unet.conv_in.weight")
        True
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def int64_bits(name: str, value: int) -> int:
    """The int64 with the bits of ``value``, as PyTorch's dispatcher carries a 64-bit unsigned."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{name} must be in [0, 2**64), got {value}")
    return value - 2**64 if value >= 2**63 else value
