"""Op registry: the one place where an op name meets its bodies."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from . import _native

NAMESPACE = "sopt"
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # lets Triton kernels run on the CPU
_FORCED = os.environ.get("SOPT_BACKEND")  # native, triton or reference for every op, or fail
# By the build of PyTorch, not the presence of a GPU: no device is touched at import.
_DEVICE_TYPES = ["cpu"] + ["cuda"] * bool(torch.version.cuda or torch.version.hip)

_lib = torch.library.Library(NAMESPACE, "DEF")  # module-level: dropping it unregisters
OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Body:
    """One implementation of one op on one device type, as :func:`backends` lists them."""

    op: str
    device_type: str
    backend: str  # native, triton or reference
    selected: bool  # the one that calls reach in this process
    reason: str  # why it cannot run here; "" if it can


@dataclass(frozen=True)
class Op:
    """One operator: its semantics, its bodies, and the inputs that exercise it.

    All bodies take the arguments of ``schema`` and mutate what it says.
    """

    name: str
    schema: str
    reference: Callable  # plain PyTorch; defines the semantics
    fake: Callable  # shapes and dtypes only; raises for arguments the op rejects
    samples: Callable[[str], Iterable[tuple]]  # device -> argument tuples, for tests and bench
    native: Mapping[str, Callable] = field(default_factory=dict)  # device type -> launcher
    best: Mapping[str, str] = field(default_factory=dict)  # device type -> backend, if not native
    triton: Callable | str | None = None  # or why it is not written; None: no Triton installed
    exact: bool = True  # the same bits of every body; else sums have an order of each one's own
    # (backward, setup_context) of torch.library.register_autograd; None: nothing to differentiate
    autograd: tuple[Callable, Callable] | None = None

    def implementations(self, device_type: str) -> dict[str, Callable | str]:
        """Each backend's body on ``device_type``, or why there is none; best first."""
        native = self.native.get(device_type, f"not written for {device_type}")
        triton = self.triton or "Triton is not installed"
        if callable(self.triton) and device_type != "cuda" and not _INTERPRET:
            triton = f"Triton runs on {device_type} only with TRITON_INTERPRET=1"
        found = {
            "native": _native.UNAVAILABLE.get(device_type, native),
            "triton": triton,
            "reference": self.reference,
        }
        best = self.best.get(device_type, "native")
        return {best: found.pop(best), **found}

    def backends(self, device_type: str) -> dict[str, Callable]:
        """The bodies usable on ``device_type`` in this process, best first."""
        return {k: v for k, v in self.implementations(device_type).items() if callable(v)}

    def select(self, device_type: str) -> str:
        """The backend to dispatch to; ``SOPT_BACKEND`` forces one or fails."""
        available = self.backends(device_type)
        if _FORCED is None:
            return next(iter(available))
        if _FORCED not in available:
            reason = self.implementations(device_type).get(_FORCED, "no such backend")
            raise RuntimeError(f"SOPT_BACKEND={_FORCED!r}, {self.name} on {device_type}: {reason}")
        return _FORCED


def triton_body(package: str, name: str) -> Callable | None:
    """The launcher ``name`` in ``package.triton_kernel``; None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return getattr(importlib.import_module(f"{package}.triton_kernel"), name)


def register(op: Op) -> None:
    """Define ``torch.ops.sopt.<name>`` and bind its bodies to the dispatcher."""
    if op.name in OPS:
        raise ValueError(f"{NAMESPACE}::{op.name} is already registered")
    OPS[op.name] = op
    _lib.define(op.name + op.schema)
    _lib.impl(op.name, op.reference, "CompositeExplicitAutograd")  # any other device
    for device_type in _DEVICE_TYPES:
        body = op.backends(device_type)[op.select(device_type)]
        _lib.impl(op.name, body, device_type.upper())
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake, lib=_lib)
    if op.autograd is not None:
        backward, setup_context = op.autograd
        torch.library.register_autograd(
            f"{NAMESPACE}::{op.name}", backward, setup_context=setup_context, lib=_lib
        )


def backends() -> list[Body]:
    """Every body of every op: whether calls reach it in this process, and if it cannot, why.

    Example:
        >>> {body.backend for body in backends()} == {"native", "triton", "reference"}
        True
    """
    return [
        Body(
            op=op.name,
            device_type=device_type,
            backend=backend,
            selected=backend == op.select(device_type),
            reason="" if callable(found) else found,
        )
        for op in OPS.values()
        for device_type in _DEVICE_TYPES
        for backend, found in op.implementations(device_type).items()
    ]
