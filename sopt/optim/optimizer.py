"""What ``ZOSGD`` and ``ZOAdam`` share: all of a step but what its coefficients are applied to."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .closure import evaluate, without_effect
from .distributed import Row, losses_of, warn_of_others
from .groups import TrainedGroups
from .interrupts import uninterrupted
from .restore import Codes, Weights
from .seed_log import GroupSettings, SeedLog, Update
from .setup import Setup

logger = logging.getLogger(__name__)

STATE = "zeroth_order"  # the entry of a state_dict beside torch's own
REPLAYED_AT_ONCE = 256  # steps per pass over memory

Closure = Callable[[], Tensor | float]


class ZerothOrderOptimizer(TrainedGroups):
    """Losses at perturbed weights in, an update along the perturbations out.

    A step is :meth:`_decide` (losses, and the exchange), :meth:`_update_of` (coefficients) and
    :meth:`_commit` (log and weights). A subclass says what a group's coefficients are factors of
    (:meth:`_settings`, :meth:`_factor`), and how they reach the weights (:meth:`_update_weights`).
    """

    skipped: int  # steps without effect, because a loss or a coefficient was not finite

    def __init__(
        self, named_parameters: Iterable[Any], defaults: dict[str, Any], setup: Setup
    ) -> None:
        self.skipped = 0
        self._begun = False  # whether the log is open and other processes are known to agree
        self._pending: list[Tensor] = []  # (perturbations, 2) losses of each micro-batch
        self._torn = False  # whether an update failed that may have changed some of the weights
        self._told = False  # of a step whose perturbations had no effect
        super().__init__(named_parameters, defaults, setup)
        shared = setup.log is not None or setup.exchange is not None
        if self.floats() and setup.restore == "inplace" and shared:
            raise InputError(
                "restore='inplace' leaves rounding errors that neither a log nor another process "
                "repeats: with log or exchange, float parameters need restore='copy' or 'blocks'"
            )

    @torch.no_grad()
    def accumulate(self, closure: Closure) -> Tensor:
        """Evaluate a micro-batch along the directions of the coming step, without updating.

        Its losses wait for :meth:`step`, or until :meth:`zero_grad`.

        Args:
            closure: Returns the mean loss of a micro-batch. Called as by :meth:`step`; not at all
                where other processes have done the coming step already.

        Returns:
            The mean of the losses, detached.

        Raises:
            InputError: As :meth:`step`.
        """
        self._begin()
        decided = self._decided(self.steps + 1)
        if decided is not None:
            return self._mean(decided)
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
            InputError: The closure does not keep to this, in a way that can be seen; there are no
                losses; or a group's setting is out of range, or of those that a log needs to stay.
            RuntimeError: An update failed midway, and no state was loaded since.

        Whatever is raised before the update, the weights are as before, and so are the losses of
        :meth:`accumulate`. Ctrl-C comes before an update or after it, when ``steps`` counts it.
        """
        self._begin()
        step = self.steps + 1
        try:
            rows = self._decide(step, closure)
            update = self._update_of(step, rows)
            self._commit(update)
        finally:
            self._go_home()
        if self.exchange is not None:
            self.exchange.done(step)
            if self.exchange.checks(step):
                self.exchange.check(step, self.digest())
        return self._mean(rows)

    def resume(self) -> int:
        """Replay an existing log into the parameters, which must be those the run began with.

        With an exchange, first agree with the other processes on the step to go on from. If Ctrl-C
        breaks it off, call it again: it goes on.

        Returns:
            The number of steps done; 0 if there is no log yet.

        Raises:
            InputError: The log is of other tensors, settings or first weights.
        """
        if self._setup.log is None or self._begun or (self.steps and self._log is None):
            raise InputError("resume() needs log= and comes before the first step")
        log = self._log
        if log is None and Path(self._setup.log).exists():
            log = SeedLog(self._setup.log)
            log.check(self.header())
        start = 0 if log is None else log.step
        if self.exchange is not None:
            start = self.exchange.begin(start)
        if log is not None:
            self._log = log.truncated(start)
            self._catch_up(self._log)
        if self.exchange is not None:
            self.exchange.joined()
        return self.steps

    def replay(self, log: SeedLog, last: int | None = None) -> None:
        """Apply the updates of ``log``, up to step ``last``, as if the steps had been done.

        Raises:
            InputError: Steps were done already, or the log is of another run.
        """
        if self.steps:
            raise InputError(f"replay() must come before the first step, got {self.steps} done")
        log.check(self.header())
        self._catch_up(log, last)

    def state_dict(self) -> dict[str, Any]:
        """torch's, with the step and losses that wait for one: continues to the same bits."""
        pending = [losses.tolist() for losses in self._pending]  # no tensors: they have no device
        own = {"steps": self.steps, "skipped": self.skipped, "pending": pending}
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
        own = state_dict[STATE]
        self.steps, self.skipped = own["steps"], own["skipped"]
        self._pending = [
            torch.as_tensor(losses, dtype=torch.float32, device="cpu") for losses in own["pending"]
        ]
        self._begun, self._log, self._torn = False, None, False

    def __getstate__(self) -> dict[str, Any]:
        """torch's has no more than the groups; and two would write one log."""
        raise InputError("a zeroth-order optimizer cannot be copied or pickled: save state_dict()")

    # What subclasses say.

    @abstractmethod
    def _buffers(self, settings: GroupSettings) -> Sequence[str]:
        """float32 tensors of a parameter that an update needs in its state; zero at first."""

    @abstractmethod
    def _update_weights(self, weights: Weights, updates: Sequence[Update]) -> None:
        """Apply consecutive updates that have the same settings."""

    # The step.

    def _check(self) -> None:
        """What no loss and no update can be made with."""
        if self._torn:
            raise RuntimeError(
                f"weights are between step {self.steps} and the next, whose update failed: load "
                "those of a checkpoint and its state_dict, or the first ones into a model of which "
                "a new optimizer resumes the log"
            )
        for group in self.param_groups:  # schedulers change them between steps
            self._check_group(group, group["params"])
        if self._log is not None:
            constants = [self._constants(group) for group in self.param_groups]
            self._log.check({"constants": constants})

    def _begin(self) -> None:
        """Compare this training with that of the other processes, and open its log; once."""
        self._check()
        if self._begun:
            return
        if self._behind():
            raise InputError("resume() must be called again before a step, as it was broken off")
        if self.exchange is not None:
            settings = [
                (
                    *astuple(self._settings(group)),
                    float(self._factor(group)),
                    None if group["clip"] is None else float(group["clip"]),
                )
                for group in self.param_groups
            ]
            counts = [self._setup.sides, self._setup.num_perturbations]
            same = {"counts": counts, "settings": settings}
            self.exchange.agree(self.steps, {**self.header(), **same})
        else:
            warn_of_others()
        if self._setup.log is not None and self._log is None:
            self._log = SeedLog.of_run(self._setup.log, self.header(), self.steps)
        self._begun = True

    def _decided(self, step: int) -> list[Row] | None:
        """The losses of a step that the others have done without this process."""
        return self.exchange.decision(step) if self.exchange is not None else None

    def _decide(self, step: int, closure: Closure | None) -> list[Row]:
        """The losses of a step, averaged over micro-batches, and all processes'."""
        rows = self._decided(step)
        if rows is not None:
            return rows
        losses = list(self._pending)
        if closure is not None:
            losses.append(self._evaluate(closure).cpu())  # the one wait for the device in a step
        if not losses:
            raise InputError("closure must be given, or accumulate(closure) called before")
        mean = torch.stack(losses).double().mean(0).float()
        rows = [(n, *pair) for n, pair in zip(self._setup.indices(), mean.tolist(), strict=True)]
        return rows if self.exchange is None else self.exchange.share(step, rows)

    def _mean(self, rows: Sequence[Row]) -> Tensor:
        return losses_of(rows).mean().to(self.param_groups[0]["params"][0].device)

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
        return torch.stack(losses).view(-1, 2)

    def _update_of(self, step: int, rows: Sequence[Row]) -> Update:
        settings = [self._settings(group) for group in self.param_groups]
        plus, minus = losses_of(rows).unbind(1)
        if not self._told and any(now.enabled for now in settings):
            self._told = without_effect(step, plus, minus)
        columns = []
        for group, now in zip(self.param_groups, settings, strict=True):
            slopes = (plus - minus) / (self._setup.sides * now.eps)
            if group["clip"] is not None:
                slopes = slopes.clamp(-group["clip"], group["clip"])
            columns.append(slopes * (now.enabled * self._factor(group) / len(rows)))
        coefficients = torch.stack(columns, dim=1)  # (perturbations, groups)
        if not (torch.isfinite(coefficients).all() and torch.isfinite(plus + minus).all()):
            return Update(step, settings, [], [])
        return Update(step, settings, [row[0] for row in rows], coefficients.tolist())

    def _commit(self, update: Update) -> None:
        """Log an update, then apply it: a log that cannot be written has no step of its own."""
        updates = [update] if update.indices else []
        with uninterrupted():
            self._make_buffers(updates)
            if self._log is not None:
                self._log.append(update)
            try:
                self._apply(updates)
                self._go_home()  # what was not updated is at a perturbation
            except BaseException:
                if self._log is not None:
                    self._log = self._log.truncated(self.steps)
                raise
            self.steps, self._pending = update.step, []
            if update.skipped:
                self.skipped += 1
                logger.warning("step %d was skipped: a loss was not finite", update.step)

    def _behind(self) -> bool:
        """Whether a replay of this run's log was broken off."""
        return self._log is not None and self.steps < self._log.step

    @torch.no_grad()
    def _catch_up(self, log: SeedLog, last: int | None = None) -> None:
        """Apply what ``log`` has after ``steps``; Ctrl-C comes between two passes over memory."""
        self._check()
        for chunk in self._passes(log.updates(last)):
            with uninterrupted():
                effective = [update for update in chunk if update.indices]
                self._make_buffers(effective)
                self._apply(effective)
                self.steps = chunk[-1].step
                self.skipped += sum(update.skipped for update in chunk)

    def _passes(self, updates: Iterable[Update]) -> Iterator[list[Update]]:
        """Those after ``steps``, divided: floats without a state take many in one pass, as long as
        the settings stay."""
        done = self.steps
        chunk: list[Update] = []
        codes = any(isinstance(weights, Codes) for weights in self._parts())
        for update in updates:
            if update.step <= done:
                continue
            if chunk and update.settings != chunk[-1].settings:
                yield chunk
                chunk = []
            chunk.append(update)
            alone = codes or any(map(self._buffers, update.settings))
            if alone or len(chunk) == REPLAYED_AT_ONCE:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _make_buffers(self, updates: Sequence[Update]) -> None:
        """Apart from the update, so that nothing is written yet where there is no memory left."""
        for weights in self._parts():
            settings = [update.settings[weights.group] for update in updates]
            for key in dict.fromkeys(k for s in settings if s.enabled for k in self._buffers(s)):
                for p in weights.tensors.values():
                    if key not in self.state[p]:
                        self.state[p][key] = torch.zeros_like(
                            p, dtype=torch.float32, requires_grad=False
                        )

    def _apply(self, updates: Sequence[Update]) -> None:
        changed = False
        try:
            for weights in self._parts():
                enabled = [u for u in updates if u.settings[weights.group].enabled]
                if enabled:  # in one write, which has its memory before; with a state in several
                    states = any(self._buffers(u.settings[weights.group]) for u in enabled)
                    changed = changed or states
                    self._update_weights(weights, enabled)
                    changed = True
        except BaseException:
            self._torn = changed
            raise

    def _go_home(self) -> None:
        with uninterrupted():  # the second Ctrl-C
            for weights in self._parts():
                weights.home()
