"""Stage 1: what the pristine network says behind the hole, for every sample of the training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes
from tqdm import tqdm

from ..budget import readable
from ..cache import Cache
from ..config import TrainConfig
from ..models import Model
from ..schedules import make_schedule
from ..steps.draws import draw_step, sample_timestep
from ..steps.loss import Sample, unet_inputs
from ..streaming.network import Inputs, UnitNetwork
from ..streaming.shapes import shapes_of
from ..text_files import checksum
from .cuts import Cut
from .store import Store

logger = logging.getLogger(__name__)

# What one visit of a unit serves, so that weights are read less often: samples, and bytes of their
# hidden states together.
MOST = 8
_CHUNK_BYTES = 2**25


@dataclass(frozen=True, order=True)
class Entry:
    """A forward of stage 1: a sample at one side, or (index 1) that for prior preservation."""

    sample: int
    side: int
    index: int = 0

    @property
    def name(self) -> str:
        return f"{self.sample}.{self.side}.{self.index}"


def entries_of(config: TrainConfig, num_timesteps: int, priors: bool) -> list[Entry]:
    """All that the steps of a run will ask for, each once."""
    assert config.resolution is not None
    schedule = make_schedule(config.schedule, config.steps, num_timesteps)
    found = set()
    for step in range(1, config.steps + 1):
        draw = draw_step(config.seed, step, schedule, config.timesteps, config.pool)
        side = config.resolution if draw.zeroth_order else config.low_resolution
        found |= {Entry(draw.sample, side, index) for index in range(1 + priors)}
    return sorted(found)


def attach(sample: Sample, store: Readable, entry: Entry) -> Sample:
    """The sample, and its prior, with what the store has for them."""
    device = sample.latents.device
    if sample.prior is not None:
        beside = store.read(replace(entry, index=1).name).to(device)
        sample = replace(sample, prior=replace(sample.prior, central=beside))
    return replace(sample, central=store.read(entry.name).to(device))


def open_store(
    path: Path,
    config: TrainConfig,
    model: Model,
    cut: Cut,
    cache: Cache,
    weights: str,
    entries: Sequence[Entry],
) -> Store:
    """The store of a run, with all that it depends on in its metadata.

    Args:
        weights: Fingerprint of the U-Net.
    """
    sides = sorted({each.side for each in entries})
    shape_at = {side: central_shape(model, cut, side) for side in sides}
    shapes = {each.name: shape_at[each.side] for each in entries}
    identity = {
        "format": "pt",
        "cut": cut.name,
        "model": weights,
        "weights": str(config.weights),
        "seed": str(config.seed),
        "timesteps": f"{config.min_timestep} {config.max_timestep}",
        "resolution": " ".join(map(str, sides)),
        "prompt": _digest(x.tokens for x in cache.prompts.values()),
        "pictures": _digest(x.mean for side in sorted(cache.encoded) for x in cache.encoded[side]),
        "captions or repeats": checksum(
            [[each.caption, each.repeats, each.regularization] for each in cache.pictures]
        ),
        "scheduler": checksum(model.configs["scheduler"]),
    }
    store = Store(path, shapes, getattr(torch, str(config.hollow_dtype)), identity)
    logger.info(
        "the activations behind the hole take %s on the disk, in %s", readable(store.bytes), path
    )
    return store


class Writable(Protocol):
    def write(self, name: str, value: torch.Tensor) -> None: ...
    def flush(self) -> None: ...


class Readable(Protocol):
    def read(self, name: str) -> torch.Tensor: ...


@torch.no_grad()
def precompute(
    store: Writable,
    network: UnitNetwork,
    cut: Cut,
    cache: Cache,
    scheduler: Any,
    config: TrainConfig,
    missing: Sequence[Entry],
) -> None:
    """Run the network up to the end of the hole on the entries that a store lacks, and fill it.

    A unit's weights are read once for several samples, which go through it one after the other: the
    bits do not depend on how many.

    Args:
        network: The whole U-Net, or at least its units up to the end of the hole, without adapter.
    """
    with tqdm(total=len(missing), desc="activations") as progress:
        while missing:
            largest = max(entry.side for entry in missing[:MOST])
            count = chunk_size(network, cache.encoded[largest][0].mean.shape[-1])
            chunk, missing = missing[:count], missing[count:]
            found = centrals(network, cut, cache, scheduler, config, chunk)
            for entry, hidden in zip(chunk, found, strict=True):
                store.write(entry.name, hidden)
            progress.update(len(chunk))
    store.flush()


def centrals(
    network: UnitNetwork,
    cut: Cut,
    cache: Cache,
    scheduler: Any,
    config: TrainConfig,
    chunk: Sequence[Entry],
) -> list[torch.Tensor]:
    """What the network says behind the hole for some entries."""
    inputs = []
    for entry in chunk:
        timestep = sample_timestep(config.seed, entry.sample, config.timesteps)
        sample = cache.draw(config.seed, entry.sample, timestep, entry.side)
        if entry.index:
            assert sample.prior is not None
            sample = sample.prior
        inputs.append(Inputs(*unet_inputs(scheduler, sample, network.dtype).values()))
    states = network.run(inputs, range(cut.hole.stop), kept=cut.hole)
    return [state.hidden for state in states]


def chunk_size(network: UnitNetwork, latent_side: int) -> int:
    """How many samples one visit of a unit serves."""
    channels = network.unet.config["block_out_channels"][0]
    state = channels * latent_side**2 * network.dtype.itemsize
    return min(MOST, max(1, _CHUNK_BYTES // state))


def central_shape(model: Model, cut: Cut, side: int) -> tuple[int, ...]:
    """Of the activation behind the hole, for one picture of ``side`` pixels."""
    network, inputs = shapes_of(model, side)
    with _disable_current_modes(), torch.no_grad():
        (state,) = network.run([inputs], range(cut.hole.stop), kept=cut.hole)
    return tuple(state.hidden.shape)


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
