"""Fits the judge on drawings: ``python -m sopt.tiny.train_judge --work DIR``.

Half of each batch are scenes of any subject, for the attributes. The other half are groups of
individuals alike in all that captions name and drawn twice each, so that the identity embedding
has nothing but the identity to tell them apart by.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .drawings import SIDE, draw
from .fitting import fit
from .judge import WEIGHTS, Judge
from .scenes import IDENTITY_NUMBERS, VOCABULARIES, Scene, place, random_subject

SEED = 1
GROUPS, ALIKE, VIEWS = 1000, 4, 4  # groups of individuals alike, pictures of each
GROUPS_A_STEP = 12  # of which 2 views each: 96 pictures
STEPS, RATE = 1_500, 1.5e-3
TEMPERATURE = 0.1
HELD_OUT_GROUPS = 60
FIGURES = Path(__file__).parent / "figures.json"


def group_scenes(groups: int, seed: int) -> list[Scene]:
    """``groups`` x ALIKE x VIEWS scenes, in that order."""
    rng = np.random.default_rng([SEED, seed])
    scenes = []
    for _ in range(groups):
        first = random_subject(rng)
        for _ in range(ALIKE):
            individual = replace(first, identity=tuple(rng.random(IDENTITY_NUMBERS).tolist()))
            scenes += [place(individual, rng) for _ in range(VIEWS)]
    return scenes


def drawn(scenes: list[Scene], file: Path) -> Tensor:
    """uint8 (scenes, 3, 64, 64), cached in ``file``."""
    if not file.exists():
        images = np.empty((len(scenes), SIDE, SIDE, 3), np.uint8)
        for i, scene in enumerate(tqdm(scenes, desc="draw", mininterval=5)):
            images[i] = np.asarray(draw(scene))
        save_file({"pictures": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()}, file)
    return load_file(file)["pictures"]


def labels_of(scenes: list[Scene]) -> dict[str, Tensor]:
    rows = [scene.labels() for scene in scenes]
    return {k: torch.tensor([row[k] for row in rows]) for k in VOCABULARIES}


def disturbed(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and exposure, so that the judge does not live on the drawings' sharpness."""
    x = pixels.float() / 127.5 - 1
    if rng.random() < 0.5:
        side = int(rng.integers(36, 60))
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear")
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return x * rng.uniform(0.9, 1.1) + rng.uniform(-0.08, 0.08) + rng.uniform(0, 0.12) * noise


def identity_loss(embedding: Tensor, groups: int) -> Tensor:
    """Each picture must find the other view of its individual among its group (NT-Xent, Chen 2020).

    Only pictures of individuals alike in all named attributes compete, so that the embedding is
    of no use but for the identity. ``embedding``: (groups x ALIKE x 2 views, width).
    """
    rows = embedding.view(groups, ALIKE * 2, -1)
    similarity = rows @ rows.mT / TEMPERATURE - 1e9 * torch.eye(ALIKE * 2)
    other_view = (torch.arange(ALIKE * 2) ^ 1).expand(groups, -1)
    return F.cross_entropy(similarity.flatten(0, 1), other_view.flatten())


@torch.no_grad()
def accuracy(judge: Judge, pixels: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of held-out drawings read right, by attribute, and of identities found.

    An identity counts as found if, of the other pictures of its group, the one with the nearest
    embedding shows the same individual.
    """
    logits, embedding = judge.eval()(pixels.float() / 127.5 - 1)
    figures = {k: (v.argmax(1) == labels[k]).float().mean().item() for k, v in logits.items()}
    groups = embedding.view(-1, ALIKE * VIEWS, embedding.shape[1])
    similarity = groups @ groups.mT - 2 * torch.eye(ALIKE * VIEWS)
    individual = torch.arange(ALIKE * VIEWS) // VIEWS
    found = individual[similarity.argmax(dim=2)] == individual
    return figures | {"identity": found.float().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and caches")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    scenes = group_scenes(GROUPS, 0)
    pixels, labels = drawn(scenes, work / "groups.safetensors"), labels_of(scenes)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        judge = Judge()

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        groups = rng.choice(GROUPS, GROUPS_A_STEP, replace=False)
        people = (groups[:, None] * ALIKE + np.arange(ALIKE)).ravel()
        pairs = np.stack([rng.permutation(VIEWS)[:2] for _ in people])
        alike = people[:, None] * VIEWS + pairs
        rows = torch.from_numpy(np.concatenate([alike.ravel(), rng.integers(len(scenes), size=96)]))
        logits, embedding = judge(disturbed(pixels[rows], rng))
        named = sum(F.cross_entropy(v, labels[k][rows]) for k, v in logits.items())
        return named + identity_loss(embedding[: alike.size], GROUPS_A_STEP)

    fit("judge", judge, loss_of_step, steps=STEPS, lr=RATE, work=work, average=0.995)
    save_file({k: v.half() for k, v in judge.state_dict().items()}, WEIGHTS)
    held_out = group_scenes(HELD_OUT_GROUPS, 1)
    figures = accuracy(judge, drawn(held_out, work / "held_out.safetensors"), labels_of(held_out))
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known["judge_on_held_out_drawings"] = {k: round(v, 4) for k, v in figures.items()}
    FIGURES.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
