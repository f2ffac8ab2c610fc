"""The judge of the bundled model: reads attributes off a picture and tells individuals apart.

It is trained on drawings only, never on a generated picture (``sopt/tiny/train_judge.py``), and its
accuracy on held-out drawings stands in ``sopt/tiny/figures.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .drawings import SIDE, draw
from .scenes import IDENTITY_NUMBERS, VOCABULARIES, Subject, place

WEIGHTS = Path(__file__).parent / "judge.safetensors"
EMBEDDING = 32
REFERENCES = 24  # drawings of a subject that define its identity
SUBJECT_ATTRIBUTES = ("class", "colour", "second_colour", "pattern", "accessory")


class Judge(nn.Module):
    """A small convolutional classifier: one head an attribute, and an identity embedding."""

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return [convolution, nn.GroupNorm(8, outputs), nn.SiLU()]

        self.trunk = nn.Sequential(
            *stage(3, 32, 5, 2),
            *stage(32, 64, 3, 2),
            *stage(64, 64, 3, 1),
            *stage(64, 128, 3, 2),
            *stage(128, 128, 3, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * 16, 256),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({k: nn.Linear(256, len(v)) for k, v in VOCABULARIES.items()})
        self.identity = nn.Linear(256, EMBEDDING)

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits by attribute and unit identity embeddings (n, 32) of pixels (n, 3, 64, 64)."""
        features = self.trunk(pixels)
        logits = {name: head(features) for name, head in self.heads.items()}
        return logits, F.normalize(self.identity(features), dim=1)


@cache
def load() -> Judge:
    """The trained judge, in float32."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return judge.eval().requires_grad_(False)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size as (n, 3, 64, 64) in [-1, 1]."""
    rows = [
        np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def read(images: Sequence[Image.Image]) -> tuple[dict[str, Tensor], Tensor]:
    """Probabilities by attribute, each (n, values), and identity embeddings (n, 32)."""
    logits, embedding = load()(to_pixels(images))
    return {k: v.softmax(dim=1) for k, v in logits.items()}, embedding


@torch.no_grad()
def features(images: Sequence[Image.Image]) -> Tensor:
    """What the judge bases its answers on: (n, 256), without a meaning of their own."""
    return load().trunk(to_pixels(images))


@dataclass(frozen=True)
class Reference:
    """What the judge knows of one subject: its attributes and the place of its identity.

    ``own`` and ``others`` are mean cosines to ``centre`` of further drawings of the subject, and
    of drawings of individuals that share every named attribute with it.
    """

    subject: Subject
    centre: Tensor
    own: float
    others: float


def reference(subject: Subject, seed: int = 0) -> Reference:
    """Draw ``subject``, and others that a caption could not tell from it, and measure them."""
    rng = np.random.default_rng([seed, 0])

    def embed(subjects: Sequence[Subject]) -> Tensor:
        return read([draw(place(s, rng)) for s in subjects])[1]

    centre = F.normalize(embed([subject] * REFERENCES).mean(dim=0), dim=0)
    strangers = [
        replace(subject, identity=tuple(rng.random(IDENTITY_NUMBERS).tolist()))
        for _ in range(2 * REFERENCES)
    ]
    own = embed([subject] * REFERENCES) @ centre
    others = embed(strangers) @ centre
    return Reference(subject, centre, own.mean().item(), others.mean().item())


def subject_score(images: Sequence[Image.Image], known: Reference) -> float:
    r"""How much ``images`` show the subject: about 0 for strangers, 1 for its own drawings.

    .. math:: \frac1n \sum_i \bar p_i \, \max\left(0, \frac{\cos_i - o}{s - o}\right)

    with :math:`\bar p_i` the mean probability of the true class, colours, pattern and accessory,
    :math:`\cos_i` the cosine of the picture's identity embedding to the subject's, and
    :math:`s, o` its means over the subject's own drawings and over other individuals'.
    """
    probabilities, embedding = read(images)
    labels = place(known.subject, np.random.default_rng(0)).labels()
    named = [probabilities[k][:, labels[k]] for k in SUBJECT_ATTRIBUTES]
    likeness = (embedding @ known.centre - known.others) / (known.own - known.others)
    return (torch.stack(named).mean(dim=0) * likeness.clamp(min=0)).mean().item()


def prompt_score(images: Sequence[Image.Image], named: dict[str, str]) -> float:
    """Mean probability of the attributes a prompt names, such as ``{"background": "snow"}``."""
    probabilities, _ = read(images)
    columns = [probabilities[k][:, VOCABULARIES[k].index(value)] for k, value in named.items()]
    return torch.stack(columns).mean().item()
