"""Hollowed Net: train an adapter without the middle of the U-Net in memory.

Stage 1 computes what the middle says for every sample of the training, stage 2 trains what is left,
and sampling runs two paths.

Source:
    Cho et al., "Hollowed Net for on-device personalization of text-to-image diffusion models",
    NeurIPS 2024, arXiv 2411.01179.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference import apply

__all__ = ["apply"]


def __getattr__(name: str) -> Any:
    if name == "apply":  # at first use: it imports diffusers
        from .inference import apply

        return apply
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
