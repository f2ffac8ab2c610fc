"""The bundled model: a complete small Stable-Diffusion-style pipeline, 64 x 64 pixels."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Folder of the bundled pipeline, in diffusers layout.

    Example:
        >>> (path() / "model_index.json").exists()
        True
    """
    return Path(__file__).parent / "model"
