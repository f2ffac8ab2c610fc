"""A group's tensors, divided by device and by how they are moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .blocks import BlockWeights
from .restore import Codes, CopiedWeights, InPlaceWeights, Weights
from .setup import Setup
from .tensors import distinct


def parts_of(groups: Sequence[Mapping[str, Tensor]], setup: Setup) -> list[Weights]:
    """All that is trained, of each group by name; what shares memory once."""
    return [
        part for index, group in enumerate(distinct(groups)) for part in _split(index, group, setup)
    ]


def _split(index: int, group: Mapping[str, Tensor], setup: Setup) -> Iterator[Weights]:
    parts: dict[tuple, dict[str, Tensor]] = {}
    for name, x in group.items():
        parts.setdefault((x.device, x.dtype == torch.int8), {})[name] = x
    for (_, codes), tensors in parts.items():
        common = index, tensors, setup.noise, setup.rounding
        if codes:
            yield Codes(*common, setup.scales, setup.headroom)
        elif setup.module is not None:
            yield BlockWeights(*common, setup.module)
        else:
            yield (CopiedWeights if setup.restore == "copy" else InPlaceWeights)(*common)
