"""DINO, CLIP-I, CLIP-T and diversity of one subject's pictures, as cosines of embeddings.

Source: arXiv 2208.12242 (DreamBooth) for the metrics; github.com/facebookresearch/dino and
github.com/openai/CLIP for the transforms. The processors of transformers resize for DINO straight
to 224 pixels, which gives other values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checkpoint import fingerprint
from ..data import Picture
from ..devices import resolve_device
from ..errors import InputError
from ..models.backbones import ClipBackbone, DinoBackbone

NORMALIZATION = {  # mean and standard deviation of red, green and blue
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Scores:
    """Mean cosines in [-1, 1]; ``diversity`` in [0, 2] is None with one picture a prompt."""

    dino: float
    clip_i: float
    clip_t: float
    diversity: float | None
    images: int
    references: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Scorer:
    """The backbones, loaded, and the scores of pictures by them.

    Args:
        dino, clip: Backbones, as for :func:`~sopt.evaluation.evaluating.evaluate`.
        device: Where to compute; the GPU if there is one, if not given.
        batch_size: Pictures embedded at once.
    """

    def __init__(self, dino: str, clip: str, device: str | None, batch_size: int) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")
        self._device = torch.device(resolve_device(device))
        self._batch_size = batch_size
        self._dino = DinoBackbone(dino, self._device)
        self._clip = ClipBackbone(clip, self._device)
        self.backbones = {
            "dino": {"name": dino, "weights": fingerprint(self._dino.network)},
            "clip": {"name": clip, "weights": fingerprint(self._clip.network)},
        }

    def score(
        self, references: Sequence[Picture], drawn: Sequence[tuple[str, Sequence[Picture]]]
    ) -> Scores:
        r"""The scores of what was drawn of one subject.

        .. math:: \mathrm{DINO} = \frac1{nm} \sum_{i,j} \cos(d(x_i), d(r_j)), \qquad
                  \mathrm{CLIP\text{-}T} = \frac1n \sum_i \cos(c(x_i), t(p_i))

        with CLIP-I as DINO but for the embedding c, over all pairs of the n drawn pictures x and
        the m real ones r. Diversity is 1 - cos(d(x), d(x')) for two pictures of the same prompt,
        its mean over their pairs, then over prompts.

        Args:
            references: Real pictures of the subject.
            drawn: Each prompt without the rare word, and the pictures drawn for it.

        Raises:
            InputError: Nothing to compare, or an embedding that is not finite.
        """
        pictures = [picture for _, each in drawn for picture in each]
        if not pictures or not references:
            raise InputError(
                "evaluation needs drawn and real pictures, "
                f"got {len(pictures)} and {len(references)}"
            )
        dino, clip = self._embed_dino(pictures), self._embed_clip(pictures)
        counts = [len(each) for _, each in drawn]
        texts = unit(self._clip.embed_texts([text for text, _ in drawn]))
        texts = texts.repeat_interleave(torch.tensor(counts, device=texts.device), dim=0)
        apart = [1 - cosine_within(each) for each in dino.split(counts) if len(each) > 1]
        return Scores(
            dino=mean_cosine(dino, self._embed_dino(references)),
            clip_i=mean_cosine(clip, self._embed_clip(references)),
            clip_t=(clip * texts).sum(dim=1).mean().item(),
            diversity=float(np.mean(apart)) if apart else None,
            images=len(pictures),
            references=len(references),
            prompts=len(drawn),
        )

    def _embed_dino(self, pictures: Sequence[Picture]) -> Tensor:
        side = self._dino.side
        shorter = side * 256 // 224  # the official one, for any side
        return self._embed(
            pictures, self._dino.embed, lambda image: to_input(image, shorter, side, "dino")
        )

    def _embed_clip(self, pictures: Sequence[Picture]) -> Tensor:
        side = self._clip.side
        return self._embed(
            pictures, self._clip.embed, lambda image: to_input(image, side, side, "clip")
        )

    def _embed(
        self,
        pictures: Sequence[Picture],
        network: Callable[[Tensor], Tensor],
        transform: Callable[[Image.Image], Tensor],
    ) -> Tensor:
        embeddings = []
        for start in range(0, len(pictures), self._batch_size):
            batch = pictures[start : start + self._batch_size]
            pixels = torch.stack([transform(picture.image) for picture in batch])
            embeddings.append(unit(network(pixels.to(self._device))))
            for picture, embedding in zip(batch, embeddings[-1], strict=True):
                if not embedding.isfinite().all():
                    raise InputError(f"the embedding of the picture {picture.name} is not finite")
        return torch.cat(embeddings)


def to_input(image: Image.Image, shorter: int, crop: int, normalization: str) -> Tensor:
    """The published transform: bicubic to a shorter side, crop of the middle, normalised.

    Args:
        image: Of mode RGB.
        shorter: Shorter side in pixels after resizing, at least ``crop``.
        crop: Side of the result in pixels.
        normalization: "dino" (ImageNet's mean and standard deviation) or "clip".

    Returns:
        (3, crop, crop) float32.

    Example:
        >>> to_input(Image.new("RGB", (640, 480)), 256, 224, "dino").shape
        torch.Size([3, 224, 224])
    """
    short, long = sorted(image.size)
    longer = int(shorter * long / short)
    size = (shorter, longer) if image.width <= image.height else (longer, shorter)
    left, top = (round((side - crop) / 2) for side in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(resized.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    mean, deviation = (np.array(each, np.float32) for each in NORMALIZATION[normalization])
    return torch.from_numpy((values - mean) / deviation).permute(2, 0, 1).contiguous()


def unit(vectors: Tensor) -> Tensor:
    """Each row divided by its length, in float64."""
    return torch.nn.functional.normalize(vectors.double(), dim=1)


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """The mean over all pairs of a row of ``a`` and one of ``b``, rows of length 1.

    Example:
        >>> mean_cosine(torch.eye(2), torch.eye(2))
        0.5
    """
    return (a @ b.T).mean().item()


def cosine_within(a: Tensor) -> float:
    """The mean over all pairs of different rows, at least two, of length 1."""
    n = len(a)
    return ((a @ a.T).sum().item() - n) / (n * (n - 1))
