"""The state of a run in one file, and its log: after a crash or Ctrl-C to the same bits.

All random numbers of a run are functions of its seed and the step, so the state is the adapter,
the optimizer's moments and the number of steps done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .files import load_metadata, save_tensors, tensor_bytes, write_all, write_text
from .models.weights import SafetensorsFile
from .text_files import parse_object, read_text


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps."""

    step: int
    settings: dict[str, Any]  # those that the bits depend on, as plain values
    skipped: dict[str, int]  # steps without effect, because not finite, by branch
    peaks: dict[str, int]  # bytes by phase
    weights: str  # fingerprint of the frozen networks that the adapter is for
    adapter: Mapping[str, Tensor]  # by canonical name; of a loaded one, read as they are asked for
    optimizer: dict[str, dict[str, Tensor]]  # state of each parameter that has one, by its name
    steps: dict[str, Tensor] = field(default_factory=dict)  # what the steps keep besides

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {f"adapter/{name}": tensor for name, tensor in self.adapter.items()}
        for name, state in self.optimizer.items():
            tensors |= {f"optimizer/{name}/{key}": tensor for key, tensor in state.items()}
        tensors |= {f"steps/{name}": tensor for name, tensor in self.steps.items()}
        content = {
            "step": self.step,
            "settings": self.settings,
            "skipped": self.skipped,
            "peaks": self.peaks,
            "weights": self.weights,
        }
        text = json.dumps(content, sort_keys=True)
        save_tensors(path, tensors, {"content": text, "blake2b": _digest(tensors, text)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read the file.

        Raises:
            InputError: It is cut off or damaged.
        """
        try:
            metadata, tensors = load_metadata(path), _Stored(SafetensorsFile(path))
        except InputError as error:
            raise InputError(f"{error}; {_REMEDY}") from error
        text = metadata.get("content", "")
        if metadata.get("blake2b") != _digest(tensors, text):
            raise InputError(f"the checkpoint {path} is damaged: its checksum is wrong; {_REMEDY}")
        content = json.loads(text)
        if content.keys() != {"step", "settings", "skipped", "peaks", "weights"}:
            raise InputError(f"the checkpoint {path} is of another version of sopt; {_REMEDY}")
        optimizer: dict[str, dict[str, Tensor]] = {}
        steps: dict[str, Tensor] = {}
        for name in tensors:
            match name.split("/"):
                case ["optimizer", parameter, key]:
                    optimizer.setdefault(parameter, {})[key] = tensors[name]
                case ["steps", *parts]:
                    steps["/".join(parts)] = tensors[name]
        adapter = _Stored(tensors.file, "adapter/")
        return cls(adapter=adapter, optimizer=optimizer, steps=steps, **content)

    def check_weights(self, weights: str) -> None:
        """Raise InputError unless ``weights`` is the fingerprint of the networks of before."""
        if weights != self.weights:
            raise InputError(
                "model: its UNet is not that of the run in the output folder; "
                "use the model of before, or another output"
            )

    @torch.no_grad()
    def restore(
        self, adapter: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, weights: str
    ) -> None:
        """Copy the state into a run's adapter and optimizer.

        Raises:
            InputError: ``weights`` is not the fingerprint of the networks of before.
        """
        self.check_weights(weights)
        for name, parameter in adapter.items():
            parameter.copy_(self.adapter[name])
        restore_optimizer(adapter, optimizer, self.optimizer)


class _Stored(Mapping[str, Tensor]):
    """The tensors of a file whose names begin so, each read when it is asked for: what was trained
    may be as large as the network."""

    def __init__(self, file: SafetensorsFile, prefix: str = "") -> None:
        self.file = file
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.file.read(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        names = (name for name in self.file.shapes if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def fingerprint(*networks: torch.nn.Module) -> str:
    """A name for networks: BLAKE2b over names, shapes and values of their weights.

    With or without an adapter or a token of ours in it, the name is that of the frozen weights.

    Of floating-point weights with more than ``WHOLE`` elements, about ``SAMPLED`` values that are
    spread over each count: reading all of several GiB would take seconds, and training a network
    changes every one of its tensors. Of int8 codes all count: an update may move a few of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for network in networks:
        weights = Fingerprint()
        for name, weight in chain(network.named_parameters(), network.named_buffers()):
            if not weight.requires_grad:
                weights.add(name.replace(".base_layer.", ".").replace(".table.", "."), weight)
        digest.update(weights.content())
    return digest.hexdigest()


class Fingerprint:
    """The :func:`fingerprint` of one network, whose weights come one at a time, in any order."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}

    def add(self, name: str, weight: Tensor) -> None:
        values = weight.detach()
        if values.is_floating_point():
            if values.numel() > WHOLE:
                chosen = torch.arange(0, values.numel(), values.numel() // SAMPLED)
                values = values[torch.unravel_index(chosen.to(values.device), values.shape)]
            values = values.float()
        content = hashlib.blake2b(tensor_bytes(values.contiguous()), digest_size=16)
        shape = f"{name} {tuple(weight.shape)}\n".encode()
        self._parts[name] = shape + content.digest()

    def content(self) -> bytes:
        """What is said of the weights so far."""
        return b"".join(part for _, part in sorted(self._parts.items()))

    def hexdigest(self) -> str:
        return hashlib.blake2b(self.content(), digest_size=16).hexdigest()


def optimizer_state(
    adapter: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """The tensors that ``optimizer`` keeps for each parameter of ``adapter``, by its name."""
    return {
        name: {k: v for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
        for name, parameter in adapter.items()
        if parameter in optimizer.state
    }


def restore_optimizer(
    adapter: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    states: Mapping[str, dict[str, Tensor]],
) -> None:
    """Give ``optimizer`` the state that :func:`optimizer_state` gave."""
    state = {i: states[name] for i, name in enumerate(adapter) if name in states}
    # Through the optimizer: it knows which entries belong on the parameter's device.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class History:
    """``history.jsonl``: one JSON object a step, appended as the steps are done."""

    def __init__(self, path: Path, step: int) -> None:
        """Open the log to continue after ``step``; lines of later steps are cut off.

        Raises:
            InputError: Lines up to ``step`` are missing.
        """
        lines = logged_lines(path, step)
        if len(lines) > step or not path.exists():
            write_text(path, b"".join(lines[:step]).decode("utf-8"))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        write_all(self._descriptor, line.encode("utf-8"))

    def flush(self) -> None:
        """Have the lines on the disk; before a checkpoint is, so that it never runs ahead."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> History:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def logged_lines(path: Path, step: int) -> list[bytes]:
    """The lines of a log, with what may be torn of a last one.

    Raises:
        InputError: Lines up to ``step`` are missing.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) < step or not all(line.endswith(b"\n") for line in lines[:step]):
        raise InputError(
            f"{path} has {len(lines)} lines, but the checkpoint beside it is of step {step}; "
            f"{_REMEDY}"
        )
    return lines


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, in the order of the steps."""
    lines = read_text(path, "output: ").splitlines()
    return [
        parse_object(line, f"output: line {number} of {path}")
        for number, line in enumerate(lines, start=1)
    ]


SAMPLED = 64  # about as many values of each large weight tensor go into a fingerprint
WHOLE = 1 << 14  # elements; scales of int8 codes have fewer

_REMEDY = "delete the run folder to start again, or put an intact copy in its place"


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """BLAKE2b over names, dtypes, shapes and bytes, and over the text."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
