"""How this process was started: alone, or by torchrun as one of several."""

from __future__ import annotations

import os


def world_size() -> int:
    """The number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Which of those on this machine this one is, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def attempt() -> int:
    """How often torchrun has started all processes again; what it serves keys from stays."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
