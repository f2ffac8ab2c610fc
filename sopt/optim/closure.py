"""Calling a user's closure: what it must return, and what it must leave alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ..errors import InputError

logger = logging.getLogger(__name__)


def evaluate(closure: Callable[[], Tensor | float], weights: Sequence[Tensor]) -> Tensor:
    """The closure's loss as a float32 tensor without dimensions, on the weights' device.

    A loss that is not finite is returned as it is.

    Raises:
        InputError: The closure returned no scalar, changed weights, or computed gradients.
    """
    versions = [(x._version, x.data_ptr(), x.grad is None) for x in weights]
    # Autocast around this call would keep its casts of the weights, whatever is written to them.
    torch.clear_autocast_cache()
    try:
        loss = closure()
    except RuntimeError as error:
        if "does not require grad" in str(error):  # what backward says under no_grad
            raise InputError(
                "closure must return a loss and not call backward: no gradient exists here"
            ) from error
        raise
    finally:
        torch.clear_autocast_cache()
    computed = [
        x for x, (*_, none) in zip(weights, versions, strict=True) if none and x.grad is not None
    ]
    for x in computed:
        x.grad = None  # else the next call would pass for one that computes none
    if computed:
        raise InputError("closure must not compute gradients: they would be taken and never used")
    for x, (version, address, _) in zip(weights, versions, strict=True):
        if (x._version, x.data_ptr()) != (version, address):
            raise InputError(
                f"closure must not change the weights it evaluates, changed one of shape "
                f"{tuple(x.shape)}"
            )
    if not isinstance(loss, (Tensor, float, int)) or isinstance(loss, bool):
        raise InputError(f"closure must return a scalar loss, got {loss!r}")
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise InputError(f"closure must return a scalar loss, got shape {tuple(loss.shape)}")
    if isinstance(loss, Tensor) and loss.dtype in (torch.bfloat16, torch.float16):
        _warn_of_precision(loss.dtype)
    scalar = torch.as_tensor(loss, dtype=torch.float32, device=weights[0].device)
    return scalar.detach().reshape(())


def without_effect(step: int, plus: Tensor, minus: Tensor) -> bool:
    """Whether no perturbation of a step had an effect on its losses; a warning says so."""
    equal = len(plus) > 0 and bool(plus.isfinite().all()) and torch.equal(plus, minus)
    if equal:
        logger.warning(
            "step %d: the two losses of every direction are equal to the last bit; was the model "
            "moved or a weight replaced after the optimizer was made, is eps too small, or can the "
            "loss have few values only? Further such steps are not told",
            step,
        )
    return equal


@cache
def _warn_of_precision(dtype: torch.dtype) -> None:
    logger.warning(
        "the closure's loss is %s: the difference of two such losses has an error near "
        "%.1g of a loss; compute it in float32",
        dtype,
        torch.finfo(dtype).eps,
    )
