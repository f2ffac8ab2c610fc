"""What a run leaves of trained int8 weights: a small difference, and a whole int8 model.

The difference is a safetensors file that has, of each layer whose codes changed, ``changed``
(uint8, a bit for each code in row-major order, the first one lowest; the layer's inputs are last)
and ``codes`` (int8, the new values of those that changed, in this order), or of each layer whose
scales changed ``scales`` (float32, whole), all by the name ``unet.<layer>.<kind>``. Its header says
of which base it is, by :class:`~.tensors.CodesFingerprint`.

The model is a folder in diffusers' layout whose U-Net is a file of :mod:`sopt.models.int8_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import load_metadata, save_tensors, write_json
from ..models import Model
from ..models.folder import INT8_FILE
from ..models.int8_file import read_int8
from ..models.weights import SafetensorsFile
from ..quantization import Int8Layer, Int8Weight, quantizable_layers
from .tensors import CodesFingerprint

DIFFERENCE = "unet_int8_difference.safetensors"
MODEL_FOLDER = "int8_model"
KEY = "sopt_int8_difference"  # in the file's metadata
_VERSION = 1


def save_difference(file: Path, model: Model, trained: dict[str, Tensor]) -> None:
    """Write how codes or scales, by canonical name, differ from the model's own.

    There is never a second set of codes: the model's are read one layer at a time, and the
    difference takes the memory of ``trained``, which is empty afterwards.
    """
    tensors: dict[str, Tensor] = {}
    base = CodesFingerprint()
    for layer, weight in _base(model):
        base.add(layer, *weight)
        codes = trained.pop(name := f"unet.{layer}.codes", None)
        if codes is not None and not torch.equal(codes, weight.codes):
            changed = codes != weight.codes
            bits = np.packbits(changed.numpy(), bitorder="little")
            tensors[f"unet.{layer}.changed"] = torch.from_numpy(bits)
            values = codes[changed]
            tensors[name] = codes.view(-1)[: len(values)].copy_(values)
        scales = trained.pop(name := f"unet.{layer}.scales", None)
        if scales is not None and not torch.equal(scales, weight.scales):
            tensors[name] = scales
    about = json.dumps({"version": _VERSION, "base": base.hexdigest()}, sort_keys=True)
    save_tensors(file, tensors, {"format": "pt", KEY: about})


def save_int8_model(folder: Path, model: Model, trained: Mapping[str, Tensor]) -> None:
    """Write a model whose U-Net has these codes or scales; all that they do not replace is the
    model's own, in float32, and so are text encoders, VAE and tokenizers, as they are stored."""
    skeleton = model.skeleton("unet")
    source = model.source("unet", skeleton)
    layers = quantizable_layers(skeleton)
    tensors = {name.removeprefix("unet."): tensor for name, tensor in trained.items()}
    for name, weight in skeleton.named_parameters():
        layer, _, leaf = name.rpartition(".")
        if layer not in layers or leaf != "weight":
            tensors[name] = torch.empty(weight.shape)
            source.read(name, tensors[name])
            continue
        base = read_int8(source, layer, weight)
        for kind, tensor in zip(Int8Weight._fields, base, strict=True):
            tensors.setdefault(f"{layer}.{kind}", tensor)
    save_tensors(folder / "unet" / INT8_FILE, tensors, {"format": "pt"})
    del tensors
    index: dict[str, Any] = {"_class_name": model.kind.pipeline.__name__}
    for component, made in model.kind.components.items():
        if component != "unet":
            model.weights.write(component, folder / component)
        if component in model.configs:
            write_json(folder / component / "config.json", dict(model.configs[component]))
        index[component] = [made.__module__.partition(".")[0], made.__name__]
    write_json(folder / "scheduler" / "scheduler_config.json", dict(model.configs["scheduler"]))
    index["scheduler"] = ["diffusers", model.scheduler_class]
    write_json(folder / "model_index.json", index)  # the last: there is no model before it


@dataclass(frozen=True)
class Difference:
    """A file of :func:`save_difference`."""

    file: Path
    base: str  # fingerprint of the int8 weights that it is for

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
        return cls(file, content["base"])

    def apply(self, unet: nn.Module) -> None:
        """Put the trained codes or scales into a U-Net on int8 weights, in place.

        Raises:
            InputError: The U-Net is another one than the difference is from.
        """
        if CodesFingerprint.of(unet) != self.base:
            raise InputError(
                f"adapter: {self.file} is of another model: it is the difference from int8 weights "
                "that are not those of this model's U-Net"
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
                layer.codes[mask] = stored.read(name).to(layer.codes.device)


def _base(model: Model) -> Iterator[tuple[str, Int8Weight]]:
    """The int8 weights of a model's U-Net, one layer after the other."""
    skeleton = model.skeleton("unet")
    source = model.source("unet", skeleton)
    for layer, owner in quantizable_layers(skeleton).items():
        yield layer, read_int8(source, layer, owner.weight)
