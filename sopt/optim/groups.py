"""What an optimizer trains: parameter groups, their settings, and the tensors in them by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .distributed import Exchange
from .parts import parts_of
from .restore import Codes, Weights
from .seed_log import GroupSettings, SeedLog
from .setup import Setup
from .tensors import canonical_name, check_trained, digest, distinct, fingerprint


class TrainedGroups(torch.optim.Optimizer, ABC):
    """A ``torch.optim.Optimizer`` whose parameters have names; it has no ``step`` yet."""

    steps: int  # done so far, skipped ones included

    def __init__(
        self, named_parameters: Iterable[Any], defaults: dict[str, Any], setup: Setup
    ) -> None:
        self.steps = 0
        self._setup = setup
        self._log: SeedLog | None = None
        self._weights: list[Weights] | None = None
        super().__init__(named_parameters, defaults)

    @property
    def exchange(self) -> Exchange | None:
        """What this process shares losses with others by."""
        return self._setup.exchange

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`.

        Raises:
            InputError: A parameter has no name, cannot be trained, or is in a group already; or a
                setting is out of range.
        """
        pairs = list(param_group["params"])
        if not pairs:
            raise InputError("params of a group must be at least one parameter, got none")
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise InputError(
                "params must be (name, parameter) pairs as of model.named_parameters(), "
                "because a parameter's noise goes by its name"
            )
        group = {**self.defaults, **param_group}
        self._check_group(group, [parameter for _, parameter in pairs])
        taken = {name for named in self._named_groups() for name in named}
        for name, parameter in ((canonical_name(name), p) for name, p in pairs):
            if name in taken:
                raise InputError(f"parameter {name!r} must be in one group, and once, got two")
            taken.add(name)
            check_trained(name, parameter, self._setup.scales)
        if self.steps or self._log is not None:
            raise InputError(
                "param_group must be added before the first step, the log begins there"
            )
        super().add_param_group({**param_group, "params": pairs})
        self._weights = None

    def _check_group(self, group: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        for setting in ("lr", "weight_decay"):
            if not math.isfinite(group[setting]):
                raise InputError(f"{setting} must be finite, got {group[setting]}")
        if not 0 < group["eps"] < float("inf"):
            raise InputError(f"eps must be positive and finite, got {group['eps']}")
        if group["clip"] is not None and not group["clip"] > 0:
            raise InputError(f"clip must be positive or None, got {group['clip']}")
        if group["weight_decay"] and any(p.dtype == torch.int8 for p in params):
            raise InputError(f"weight_decay must be 0 for int8 codes, got {group['weight_decay']}")

    def digest(self) -> str:
        """A hash of the trained weights' bytes."""
        tensors = self.tensors()
        return digest(tensors[name] for name in sorted(tensors))

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by canonical name; those that share memory once."""
        return {name: x for weights in self._parts() for name, x in weights.tensors.items()}

    def floats(self) -> list[tuple[str, float, Tensor]]:
        """Name, eps and tensor of what is trained in floating point."""
        return [
            (name, self.param_groups[weights.group]["eps"], x)
            for weights in self._parts()
            for name, x in weights.tensors.items()
            if not isinstance(weights, Codes)
        ]

    def header(self) -> dict[str, Any]:
        """What a log needs to be replayed, and to be refused where it does not belong."""
        tensors = self.tensors()
        return {
            "optimizer": type(self).__name__,
            "seed": self._setup.seed,
            "noise": self._setup.noise,
            "rounding": self._setup.rounding,
            "headroom": self._setup.headroom,
            "tensors": fingerprint(tensors),
            "weights": digest((tensors[name] for name in sorted(tensors)), sampled=True),
            "names": [list(group) for group in distinct(self._named_groups())],
            "constants": [self._constants(group) for group in self.param_groups],
            "groups": len(self.param_groups),
        }

    # What subclasses say.

    @abstractmethod
    def _settings(self, group: Mapping[str, Any]) -> GroupSettings: ...

    @abstractmethod
    def _factor(self, group: Mapping[str, Any]) -> float:
        """The coefficients are this times the mean's share of each slope."""

    def _constants(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a group that never change in a run and are needed for its replay."""
        return {}

    # What is trained.

    def _named_groups(self) -> list[dict[str, Tensor]]:
        return [
            dict(zip(map(canonical_name, group["param_names"]), group["params"], strict=True))
            for group in self.param_groups
        ]

    def _parts(self) -> list[Weights]:
        if self._weights is None:
            self._weights = parts_of(self._named_groups(), self._setup)
        return self._weights
