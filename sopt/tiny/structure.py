"""How well pictures show a subject's shape: its silhouette and where its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .drawings import LAYOUT, SIDE, layout
from .scenes import BACKGROUNDS, VIEWPOINTS, Scene, Subject
from .segmenter import segment

SCALES = (0.32, 0.36, 0.40, 0.44)  # drawings have 0.34 to 0.43
TILTS = (-0.1, 0.0, 0.1)
SHIFTS = range(-8, 9, 2)  # pixels, across and down
CENTRE = (0.5, 0.56)


def structure_score(images: Sequence[Image.Image], subject: Subject) -> float:
    r"""How much ``images`` have the subject's shape, whatever its colours and pose: in [0, 1].

    .. math:: \frac1n \sum_i \max_{\text{pose}} \frac12 \Big(
              \mathrm{IoU}(\text{silhouette}) + \frac1K \sum_k \mathrm{IoU}(\text{part}_k) \Big)

    between what the segmenter reads and the layout of the subject's drawing, with k over body,
    parts and accessory as far as the subject has them, and the pose over a grid of viewpoints,
    scales, tilts and places.
    """
    return agreement(segment(images), poses(subject)).amax(dim=1).mean().item()


def agreement(seen: Tensor, drawn: Tensor) -> Tensor:
    """The score of each pair, (n, p), of layouts that were read and layouts as drawn.

    Args:
        seen: (n, height, width), indices in ``LAYOUT``.
        drawn: (p, height, width), of one subject.
    """
    seen, drawn = seen.flatten(1), drawn.flatten(1)
    parts = [k for k in range(1, len(LAYOUT)) if (drawn == k).any()]
    each = torch.stack([_overlap(seen == k, drawn == k) for k in parts])
    return (_overlap(seen > 0, drawn > 0) + each.mean(dim=0)) / 2


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, (n, p), of masks (n, pixels) and (p, pixels)."""
    a, b = a.float(), b.float()
    common = a @ b.T
    return common / (a.sum(dim=1)[:, None] + b.sum(dim=1) - common).clamp(min=1)


def poses(subject: Subject) -> Tensor:
    """The subject's layout in every pose of the grid, uint8 (poses, 64, 64)."""
    # Its other attributes leave the layout as it is.
    return pose_grid(replace(subject, colour="red", second_colour="blue", pattern="plain"))


@lru_cache(maxsize=1)  # 8 MB; pictures are scored subject by subject
def pose_grid(subject: Subject) -> Tensor:
    """As :func:`poses`, and kept until another subject is asked for."""
    margin = max(SHIFTS)
    side = SIDE + 2 * margin
    centre = tuple((margin + SIDE * c) / side for c in CENTRE)
    found = []
    for viewpoint, scale, tilt in product(VIEWPOINTS, SCALES, TILTS):
        pose = (centre[0], centre[1]), scale * SIDE / side, tilt
        wide = layout(Scene(subject, BACKGROUNDS[0], viewpoint, *pose), side)
        found += [
            wide[margin + down : margin + down + SIDE, margin + across : margin + across + SIDE]
            for down, across in product(SHIFTS, SHIFTS)
        ]
    return torch.from_numpy(np.stack(found))
