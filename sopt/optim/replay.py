"""``replay``: weights from a seed log, without data and without forward passes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import InputError
from .optimizer import ZerothOrderOptimizer
from .seed_log import SeedLog
from .tensors import canonical_name
from .zoadam import ZOAdam
from .zosgd import ZOSGD

logger = logging.getLogger(__name__)

Base = TypeVar("Base", nn.Module, Mapping[str, Tensor])


def replay(
    base: Base,
    log: str | Path,
    step: int | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> Base:
    """Bring the weights that a run began with to those after its last step, or after any other.

    Bit for bit those of the run, in every dtype. Up to 256 steps are one pass over the weights,
    for plain SGD on floats under settings that stay.

    Args:
        base: The model, or its tensors by name, with the weights before the first step. Names that
            the log does not have are left alone. Modified in place.
        log: A file that an optimizer wrote (``log=``).
        step: The last step to do; None for all.
        scales: Those of int8 codes, as in :class:`~sopt.optim.ZOSGD`.

    Returns:
        ``base``.

    Raises:
        InputError: There is no such log; it is of tensors with other names, shapes or dtypes, or
            of other first weights; or it ends before ``step``.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> first = {name: p.detach().clone() for name, p in model.named_parameters()}
        >>> optimizer = ZOSGD(model.named_parameters(), lr=1e-2, eps=1e-3, log="run.zolog")
        >>> loss = optimizer.step(lambda: model(torch.ones(3)).square().sum())
        >>> torch.equal(replay(first, "run.zolog")["weight"], model.weight)
        True
    """
    file = SeedLog(log)
    if file.torn_bytes:
        logger.warning(
            "log %s: its last %d bytes are torn or damaged; replaying up to step %d, "
            "the last whole one",
            log,
            file.torn_bytes,
            file.step,
        )
    if step is not None and not 0 <= step <= file.step:
        raise InputError(f"step must be in [0, {file.step}], where {log} ends, got {step}")
    _optimizer_of(file, _tensors(base), scales).replay(file, step)
    return base


def _tensors(base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(base, nn.Module):
        return {canonical_name(name): x for name, x in base.items()}
    named = [*base.named_buffers(), *base.named_parameters(remove_duplicate=False)]
    return {canonical_name(name): x for name, x in named}


def _optimizer_of(
    log: SeedLog, tensors: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None
) -> ZerothOrderOptimizer:
    """An optimizer for which replaying the log is doing the steps again."""
    header = log.header
    groups: list[dict[str, Any]] = []
    for names, constants in zip(header["names"], header["constants"], strict=True):
        for name in names:
            if name not in tensors:
                raise InputError(f"base must have {name!r}, which log {log.path} trains")
        pairs = [(name, tensors[name].detach()) for name in names]
        for _, x in pairs:
            x.requires_grad_(x.is_floating_point())
        groups.append({"params": pairs, **constants})
    settings: dict[str, Any] = {"lr": 0.0, "eps": 1.0, "seed": header["seed"]}
    if header["optimizer"] == "ZOAdam":
        return ZOAdam(groups, noise=header["noise"], **settings)
    return ZOSGD(
        groups,
        noise=header["noise"],
        rounding=header["rounding"],
        headroom=header["headroom"],
        scales=scales,
        **settings,
    )
