"""What ``ZOSGD`` and ``ZOAdam`` share: all of a step but what its coefficients are applied to."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .closure import evaluate, warn_of_equal
from .distributed import Exchange, Row, losses_of, warn_of_others
from .interrupts import uninterrupted
from .parts import parts_of
from .restore import Codes, Terms, Weights
from .seed_log import GroupSettings, SeedLog, Update
from .setup import Setup
from .tensors import canonical_name, check_trained, digest, distinct, fingerprint

logger = logging.getLogger(__name__)

STATE = "zeroth_order"  # the entry of a state_dict beside torch's own
REPLAYED_AT_ONCE = 256  # steps per pass over memory

Closure = Callable[[], Tensor | float]


class ZerothOrderOptimizer(torch.optim.Optimizer, ABC):
    """Losses at perturbed weights in, an update along the perturbations out.

    A step is :meth:`_decide` (losses, and the exchange), :meth:`_update_of` (coefficients) and
    :meth:`_commit` (log and weights). A subclass says what a group's coefficients are factors of
    (:meth:`_settings`, :meth:`_factor`), and how they reach the weights (:meth:`_update_weights`).
    """

    steps: int  # done so far, skipped ones included
    skipped: int  # steps without effect, because a loss or a coefficient was not finite

    def __init__(
        self, named_parameters: Iterable[Any], defaults: dict[str, Any], setup: Setup
    ) -> None:
        self.steps = self.skipped = 0
        self._setup = setup
        self._begun = False  # whether the log is open and other processes are known to agree
        self._log: SeedLog | None = None
        self._pending: list[Tensor] = []  # (perturbations, 2) losses of each micro-batch
        self._weights: list[Weights] | None = None
        super().__init__(named_parameters, defaults)
        shared = setup.log is not None or setup.exchange is not None
        if self.floats() and setup.restore == "inplace" and shared:
            raise InputError(
                "restore='inplace' leaves rounding errors that neither a log nor another process "
                "repeats: with log or exchange, float parameters need restore='copy' or 'blocks'"
            )

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
        if not group["lr"] == group["lr"] or abs(group["lr"]) == float("inf"):
            raise InputError(f"lr must be finite, got {group['lr']}")
        if not 0 < group["eps"] < float("inf"):
            raise InputError(f"eps must be positive and finite, got {group['eps']}")
        if group["clip"] is not None and not group["clip"] > 0:
            raise InputError(f"clip must be positive or None, got {group['clip']}")
        if group["weight_decay"] and any(p.dtype == torch.int8 for p in params):
            raise InputError(f"weight_decay must be 0 for int8 codes, got {group['weight_decay']}")

    @torch.no_grad()
    def accumulate(self, closure: Closure) -> Tensor:
        """Evaluate a micro-batch along the directions of the coming step, without updating.

        Its losses wait for :meth:`step`, or until :meth:`zero_grad`.

        Args:
            closure: Returns the mean loss of a micro-batch. Called as by :meth:`step`.

        Returns:
            The mean of the losses, detached.

        Raises:
            InputError: As :meth:`step`.
        """
        try:
            values = self._evaluate(closure)
            losses = values.cpu()
            self._go_home()  # Ctrl-C before it is in: then by the one below
        finally:
            self._go_home()
        self._pending.append(losses)
        return values.mean()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """torch's; and losses that wait for a step are dropped, as gradients would be."""
        super().zero_grad(set_to_none)
        self._pending = []

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Update the weights along N directions by the losses of perturbed forward passes.

        Args:
            closure: Returns the loss at the current weights, a scalar, and the same one whenever
                the weights are the same: no dropout, no new batch, no noise of its own; it
                neither calls ``backward`` nor changes weights. Called 2 N times (N + 1 if
                one-sided) under ``no_grad``. None after :meth:`accumulate`.

        Returns:
            The mean of the step's losses, detached. Of all processes', with an exchange.

        Raises:
            InputError: The closure does not keep to this, in a way that can be seen; or there are
                no losses.

        Whatever is raised before the update, the weights are as before, and so are the losses of
        :meth:`accumulate`. Ctrl-C comes before an update or after it, when ``steps`` counts it.
        """
        if not self._begun:
            self._begin()
        step = self.steps + 1
        try:
            rows = self._decide(step, closure)
            update = self._update_of(step, rows)
            self._commit(update)
        finally:
            self._go_home()
        if self.exchange is not None and self.exchange.checks(step):
            self.exchange.check(step, self.digest())
        return losses_of(rows).mean().to(self.param_groups[0]["params"][0].device)

    def resume(self) -> int:
        """Replay an existing log into the parameters, which must be those the run began with.

        With an exchange, first agree with the other processes on the step to go on from.

        Returns:
            The number of steps done; 0 if there is no log yet.

        Raises:
            InputError: The log is of other tensors, settings or first weights.
        """
        if self._setup.log is None or self.steps:
            raise InputError("resume() needs log= and comes before the first step")
        log = SeedLog(self._setup.log) if Path(self._setup.log).exists() else None
        start = 0 if log is None else log.step
        if self.exchange is not None:
            start = self.exchange.begin(start)
        if log is not None:
            self._log = log.truncated(start)
            self.replay(self._log)
        if self.exchange is not None:
            self.exchange.joined()
        return self.steps

    @torch.no_grad()
    def replay(self, log: SeedLog, last: int | None = None) -> None:
        """Apply the updates of ``log``, up to step ``last``, as if the steps had been done."""
        log.check(self.header())
        chunk: list[Update] = []
        for update in log.updates(last):
            if update.indices:
                chunk.append(update)
            else:
                self.skipped += 1
            self.steps = update.step
            if len(chunk) == REPLAYED_AT_ONCE:
                self._apply(chunk)
                chunk = []
        self._apply(chunk)

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

    def state_dict(self) -> dict[str, Any]:
        """torch's, with the step and losses that wait for one: continues to the same bits."""
        own = {"steps": self.steps, "skipped": self.skipped, "pending": list(self._pending)}
        return {**super().state_dict(), STATE: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave; the weights themselves are the model's to load."""
        if STATE not in state_dict:
            raise InputError(f"state_dict must be of a zeroth-order optimizer, has no {STATE!r}")
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        params = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():  # torch cast it to the weights' dtype
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value = value.to(params[index].device, copy=True)
                self.state[params[index]][key] = value
        own = deepcopy(state_dict[STATE])
        self.steps, self.skipped, self._pending = own["steps"], own["skipped"], own["pending"]
        self._begun, self._log = False, None

    # What subclasses say.

    @abstractmethod
    def _settings(self, group: Mapping[str, Any]) -> GroupSettings: ...

    @abstractmethod
    def _factor(self, group: Mapping[str, Any]) -> float:
        """The coefficients are this times the mean's share of each slope."""

    def _constants(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a group that never change in a run and are needed for its replay."""
        return {}

    @abstractmethod
    def _update_weights(self, weights: Weights, updates: Sequence[Update]) -> None: ...

    # The step.

    def _begin(self) -> None:
        """Compare this training with that of the other processes, and open its log."""
        if self.exchange is not None:
            self.exchange.agree(self.steps, self.header())
        else:
            warn_of_others()
        if self._setup.log is not None and self._log is None:
            self._log = SeedLog.of_run(self._setup.log, self.header(), self.steps)
        self._begun = True

    def _decide(self, step: int, closure: Closure | None) -> list[Row]:
        """The losses of a step, averaged over micro-batches, and all processes'."""
        rows = self.exchange.decision(step) if self.exchange is not None else None
        if rows is not None:  # the others have done this step without this process
            return rows
        losses = list(self._pending)
        if closure is not None:
            losses.append(self._evaluate(closure).cpu())  # the one wait for the device in a step
        if not losses:
            raise InputError("closure must be given, or accumulate(closure) called before")
        mean = torch.stack(losses).double().mean(0).float()
        rows = [(n, *pair) for n, pair in zip(self._setup.indices(), mean.tolist(), strict=True)]
        return rows if self.exchange is None else self.exchange.share(step, rows)

    def _evaluate(self, closure: Closure) -> Tensor:
        """Losses (perturbations, 2) of a micro-batch; the weights stay at the last perturbation."""
        parts = [(part, self._settings(self.param_groups[part.group])) for part in self._parts()]
        moved = [(part, settings.eps) for part, settings in parts if settings.enabled]
        watched = [x for part in self._parts() for x in part.tensors.values()]
        sides = self._setup.sides
        losses: list[Tensor] = []
        base = [evaluate(closure, watched)] if sides == 1 else []
        for n in self._setup.indices():
            seed, rounding_seed = self._setup.direction(self.steps + 1, n)
            for sign in (1, -1)[:sides]:
                for part, eps in moved:
                    part.move(seed, sign * eps, rounding_seed)
                losses.append(evaluate(closure, watched))
                for part, _ in moved:
                    part.check_evaluated()
            losses += base
        return torch.stack(losses).view(-1, 2) if losses else losses_of([])

    def _update_of(self, step: int, rows: Sequence[Row]) -> Update:
        settings = [self._settings(group) for group in self.param_groups]
        plus, minus = losses_of(rows).unbind(1)
        if any(now.enabled for now in settings):
            warn_of_equal(step, plus, minus)
        columns = []
        for group, now in zip(self.param_groups, settings, strict=True):
            slopes = (plus - minus) / (self._setup.sides * now.eps)
            if group["clip"] is not None:
                slopes = slopes.clamp(-group["clip"], group["clip"])
            columns.append(slopes * (now.enabled * self._factor(group) / max(1, len(rows))))
        coefficients = torch.stack(columns, dim=1)  # (perturbations, groups)
        if not (torch.isfinite(coefficients).all() and torch.isfinite(plus + minus).all()):
            return Update(step, settings, [], [])
        return Update(step, settings, [row[0] for row in rows], coefficients.tolist())

    def _commit(self, update: Update) -> None:
        """Log an update, then apply it: a log that cannot be written has no step of its own."""
        with uninterrupted():
            if self._log is not None:
                self._log.append(update)
            try:
                self._apply([update] if update.indices else [])
                self._go_home()  # what was not updated is at a perturbation
            except BaseException:
                if self._log is not None:
                    self._log = self._log.truncated(self.steps)
                raise
            self.steps, self._pending = update.step, []
            if not update.indices:
                self.skipped += 1
                logger.warning("step %d was skipped: a loss was not finite", update.step)

    def _apply(self, updates: Sequence[Update]) -> None:
        for weights in self._parts():
            enabled = [u for u in updates if u.settings[weights.group].enabled]
            if enabled:
                self._update_weights(weights, enabled)

    def _terms(self, updates: Sequence[Update], group: int) -> Terms:
        """Consecutive updates of a group under the same settings as one sum."""
        settings = updates[0].settings[group]
        counts = [len(update.indices) for update in updates]
        directions = [self._setup.direction(u.step, n) for u in updates for n in u.indices]
        return Terms(
            seeds=[seed for seed, _ in directions],
            coefficients=[c[group] for update in updates for c in update.coefficients],
            decay=settings.decay,
            round_after=[sum(counts[: k + 1]) for k in range(len(counts) - 1)],
            rounding_seeds=[self._setup.rounding_seed(u.step) for u in updates],
            eps=settings.eps,
            delta_rounding_seeds=[rounding_seed for _, rounding_seed in directions],
        )

    def _buffer(self, parameter: Tensor, key: str) -> Tensor:
        """A float32 buffer of a parameter in the optimizer's state, zero at first."""
        state = self.state[parameter]
        if key not in state:
            state[key] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        return state[key]

    def _go_home(self) -> None:
        with uninterrupted():  # the second Ctrl-C
            for weights in self._parts():
                weights.home()

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
