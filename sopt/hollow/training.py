"""Stage 2: what a run needs of a hollow, once stage 1 is done."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from ..cache import Cache
from ..config import TrainConfig
from ..devices import weight_storage
from ..memory import MemoryRecorder
from ..models import Model
from ..models.forwards import speed_up_forwards
from ..steps.draws import sample_number
from ..steps.loss import Sample
from ..streaming import open_network, units_of
from .cuts import Cut, cut_of
from .precompute import MOST, Entry, attach, central_shape, entries_of, open_store, precompute
from .store import Store

STORE = "activations.safetensors"  # in the run folder


class Hollow:
    """The cut of a run, and the activations behind the hole for all its samples.

    Args:
        cache: Of the run; it has what the samples are made of.
        memory: Gets the phase "precompute".
        weights: Fingerprint of the U-Net.
        folder: Of the run. None makes the activations of one chunk, and stores none.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        cache: Cache,
        memory: MemoryRecorder,
        weights: str,
        folder: Path | None,
    ) -> None:
        assert config.hollow is not None
        self.cut = cut_of(config.hollow, model)
        self._config, self._cache = config, cache
        self._pool = config.pool
        priors = any(picture.regularization for picture in cache.pictures)
        scheduler = model.noise_scheduler()
        entries = entries_of(config, model.num_train_timesteps, priors)
        self._store: Store | UnwrittenStore
        if folder is None:
            self._store = UnwrittenStore(config, model, self.cut)
            missing = sorted(entries, key=lambda entry: -entry.side)[:MOST]
        else:
            path = folder / STORE
            self._store = open_store(path, config, model, self.cut, cache, weights, entries)
            names = set(self._store.missing())
            missing = [entry for entry in entries if entry.name in names]
        if not missing:
            return
        with memory.phase("precompute"):
            network = open_network(
                model,
                weight_storage(str(config.weights), str(memory.device)),
                memory.device,
                hole=range(self.cut.hole.stop, len(units_of(model))),
                stream=True,
            )
            speed_up_forwards(network.unet)
            precompute(self._store, network, self.cut, cache, scheduler, config, missing)

    def draw(self, step: int, timestep: int, side: int) -> Sample:
        """As :meth:`Cache.draw`, with what the hole says."""
        number = sample_number(self._config.seed, step, self._config.pool)
        sample = self._cache.draw(self._config.seed, number, timestep, side)
        return attach(sample, self._store, Entry(number, side))


class UnwrittenStore:
    """In place of a store in a simulation: takes everything and has any value."""

    def __init__(self, config: TrainConfig, model: Model, cut: Cut) -> None:
        self._shape = partial(central_shape, model, cut)
        self._dtype = getattr(torch, str(config.hollow_dtype))

    def write(self, name: str, value: torch.Tensor) -> None:
        pass

    def read(self, name: str) -> torch.Tensor:
        _, side, _ = name.split(".")
        return torch.empty(self._shape(int(side)), dtype=self._dtype)

    def flush(self) -> None:
        pass
