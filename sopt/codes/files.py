"""What a run leaves of trained int8 weights: a small difference, and a whole int8 model.

The difference is a safetensors file that has, of each layer whose codes changed, ``changed``
(uint8, a bit for each code in row-major order, the first one lowest; the layer's inputs are last)
and ``codes`` (int8, the new values of those that changed, in this order), or of each layer whose
scales changed ``scales`` (float32, whole), all by the name ``unet.<layer>.<kind>``. Its header says
of which base it is, by :class:`~.tensors.CodesFingerprint`, and which room it has for moves.

The model is a folder in diffusers' layout whose U-Net is a file of :mod:`sopt.models.int8_file`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import load_metadata, save_tensors
from ..models import Model
from ..models.adapter import of_another_model
from ..models.folder import INT8_FILE, write_folder
from ..models.storage import Int8Storage
from ..models.weights import SafetensorsFile
from ..quantization import Int8Layer
from .tensors import CodesFingerprint, Room, base_weights, make_room

DIFFERENCE = "unet_int8_difference.safetensors"
MODEL_FOLDER = "int8_model"
KEY = "sopt_int8_difference"  # in the file's metadata
_VERSION = 2


def save_difference(file: Path, model: Model, trained: dict[str, Tensor], room: Room) -> None:
    """Write how codes and scales, by canonical name, differ from the model's own.

    There is never a second set of codes: the model's are read one layer at a time, and the
    difference takes the memory of ``trained``, which is empty afterwards.

    Args:
        room: That codes were trained with.
    """
    tensors: dict[str, Tensor] = {}
    base = CodesFingerprint()
    for layer, weight in base_weights(model, room):
        base.add(layer, *weight)
        codes = trained.pop(name := f"unet.{layer}.codes")
        if not torch.equal(codes, weight.codes):
            changed = (codes != weight.codes).numpy()
            bits = np.packbits(changed, bitorder="little")
            tensors[f"unet.{layer}.changed"] = torch.from_numpy(bits)
            # By numpy: torch would make four int64 indices for each value.
            values = torch.from_numpy(codes.numpy()[changed])
            tensors[name] = codes.view(-1)[: len(values)].copy_(values)
        scales = trained.pop(name := f"unet.{layer}.scales")
        if not torch.equal(scales, weight.scales):
            tensors[name] = scales
    content = {"version": _VERSION, "base": base.hexdigest(), "room": asdict(room)}
    about = json.dumps(content, sort_keys=True)
    save_tensors(file, tensors, {"format": "pt", KEY: about})


def rehearse_difference(model: Model, trained: dict[str, Tensor], room: Room) -> None:
    """Have in memory what :func:`save_difference` has at most, by the shapes alone."""
    masks = []
    for layer, weight in base_weights(model, room):
        changed = torch.empty_like(weight.codes, dtype=torch.bool)
        masks.append(torch.empty(-(-changed.numel() // 8), dtype=torch.uint8))
        values = torch.empty_like(trained[f"unet.{layer}.codes"])
        del weight, changed, values


def save_int8_model(folder: Path, model: Model, trained: Mapping[str, Tensor]) -> None:
    """Write a model whose U-Net has these codes and scales; all that they do not replace is the
    model's own, one tensor at a time, in float32, and so are text encoders, VAE and tokenizers, as
    they are stored."""
    skeleton = model.skeleton("unet", dtype=Int8Storage(torch.float32))
    source = model.source("unet", skeleton)
    weights = skeleton.state_dict()

    def read(name: str) -> Tensor:
        if (own := trained.get(f"unet.{name}")) is not None:
            return own
        layer, _, leaf = name.rpartition(".")
        if leaf == "scales":  # they come first in the file, and of the source with the codes
            source.read(f"{layer}.codes", torch.empty_like(weights[f"{layer}.codes"], device="cpu"))
        source.read(name, value := torch.empty_like(weights[name], device="cpu"))
        return value

    def write_unet(unet: Path) -> None:
        save_tensors(unet / INT8_FILE, weights, {"format": "pt"}, read)

    write_folder(model, folder, write_unet)


@dataclass(frozen=True)
class Difference:
    """A file of :func:`save_difference`."""

    file: Path
    base: str  # fingerprint of the int8 weights that it is for
    room: Room  # that these have

    @classmethod
    def open(cls, file: Path) -> Difference | None:
        """None if the file is something else, such as a LoRA.

        Raises:
            InputError: The file is damaged, or of another version.
        """
        about = load_metadata(file).get(KEY)
        if about is None:
            return None
        content = json.loads(about)
        if content.get("version") != _VERSION:
            raise InputError(f"adapter: {file} is of another version of sopt: {about}")
        return cls(file, content["base"], Room(**content["room"]))

    def apply(self, unet: nn.Module, model: Model) -> None:
        """Put the trained codes or scales into a model's U-Net on int8 weights, in place.

        Raises:
            InputError: The U-Net is another one than the difference is from.
        """
        make_room(unet, model, self.room)
        if CodesFingerprint.of(unet) != self.base:
            raise of_another_model(
                self.file,
                "it is the difference from int8 weights that are not those of this model's U-Net",
            )
        stored = SafetensorsFile(self.file)
        for path, layer in unet.named_modules():
            if not isinstance(layer, Int8Layer):
                continue
            if (name := f"unet.{path}.scales") in stored.shapes:
                layer.scales.copy_(stored.read(name))
            if (name := f"unet.{path}.codes") in stored.shapes:
                bits = stored.read(f"unet.{path}.changed").numpy()
                count = layer.codes.numel()
                changed = torch.from_numpy(np.unpackbits(bits, count=count, bitorder="little"))
                mask = changed.bool().to(layer.codes.device).view(layer.codes.shape)
                layer.codes.masked_scatter_(mask, stored.read(name).to(layer.codes.device))
