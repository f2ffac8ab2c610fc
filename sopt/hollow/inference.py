"""Sampling with an adapter that was trained on a hollowed network: two paths a step.

The first path, with the adapter off, is the pristine network up to the end of the hole; the second,
with the adapter on, is what the cut leaves, and gets there what the first path said. One after the
other, with one copy of the weights. An ordinary forward with the adapter on is an approximation:
the hole then sees features that it never saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..export import HOLLOW_KEY
from ..files import load_metadata
from ..models.adapter import check_fit, factors_of_some_layers
from ..models.batches import replace_forward
from ..sampling import adapter_file
from ..streaming.network import Inputs, UnitNetwork, Weights
from ..streaming.units import Unit, list_units
from .cuts import Cut, find_cut, list_cuts


def apply(pipe: Any, adapter: Any) -> None:
    """Load a hollowed adapter into a pipeline of diffusers and have it sample by two paths.

    The pictures are those of :func:`sopt.generate`. A step costs what it did, and the layers before
    the hole once more.

    Args:
        pipe: A loaded ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``; changed.
        adapter: The run's folder, its diffusers file, or what ``sopt.train`` returned.

    Raises:
        InputError: The adapter is missing, was not trained hollowed, or is of another model.

    Source:
        Hollowed Net, arXiv 2411.01179. That the adapter is off in the first path is our reading.

    Example:
        >>> pipe = diffusers.StableDiffusionPipeline.from_pretrained("model")
        >>> sopt.hollow.apply(pipe, "runs/dog")
        >>> pipe("a sks dog on the beach").images[0].save("dog.png")
    """
    file = adapter_file(adapter)
    name = cut_name(file)
    if name is None:
        raise InputError(
            f"adapter: {file} was not trained hollowed; load it with pipe.load_lora_weights"
        )
    check_fit(file, pipe.unet)
    units = list_units(pipe.unet)
    cut = find_cut(name, list_cuts(pipe.unet, units))
    with factors_of_some_layers():
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    run_by_units(pipe.unet, units, cut=cut)


def cut_name(file: Path) -> str | None:
    """The cut that an adapter was trained with, by its metadata; None for an ordinary adapter.

    Raises:
        InputError: The file is damaged.
    """
    text = load_metadata(file).get(HOLLOW_KEY)
    try:
        return None if text is None else json.loads(text)["cut"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"adapter: {file} is damaged: its {HOLLOW_KEY} names no cut") from error


def run_by_units(
    unet: Any,
    units: Sequence[Unit],
    weights: Weights | None = None,
    cut: Cut | None = None,
    one_at_a_time: bool = False,
) -> None:
    """Have a pipeline's U-Net be run unit by unit, in place.

    Args:
        cut: Of the adapter, for two paths.
        one_at_a_time: The elements of a batch go through each unit one after the other.
    """
    replace_forward(unet, partial(_predict, units, weights, cut, one_at_a_time))


@torch.no_grad()
def _predict(
    units: Sequence[Unit],
    weights: Weights | None,
    cut: Cut | None,
    one_at_a_time: bool,
    unet: Any,
    sample: Tensor,
    timestep: Any,
    text: Tensor,
    added: Mapping[str, Tensor] | None,
) -> Tensor:
    size = 1 if one_at_a_time else len(sample)
    inputs = [
        Inputs(
            sample[i : i + size],
            timestep,
            text[i : i + size],
            {name: x[i : i + size] for name, x in added.items()} if added else None,
        )
        for i in range(0, len(sample), size)
    ]
    whole = UnitNetwork(unet, units, weights)
    if cut is None:
        return torch.cat([state.hidden for state in whole.run(inputs, whole.order)])
    return torch.cat(two_paths(whole, cut, inputs))


def two_paths(whole: UnitNetwork, cut: Cut, inputs: Sequence[Inputs]) -> list[Tensor]:
    """The predictions for some inputs, by both paths."""
    whole.unet.disable_lora()
    try:
        states = whole.run(inputs, range(cut.hole.stop), kept=cut.hole)
    finally:
        whole.unet.enable_lora()
    rest = UnitNetwork(whole.unet, whole.units, whole.weights, hole=cut.hole)
    given = [
        replace(each, central=state.hidden) for each, state in zip(inputs, states, strict=True)
    ]
    return [state.hidden for state in rest.run(given, rest.order)]
