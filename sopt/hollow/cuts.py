"""Cuts: which central part of a U-Net is left out, so that no skip lacks its other end.

The encoder stacks one skip after the other and the decoder takes them off, the newest first. The
cut of depth d leaves out the middle block, the d newest skips with what makes them, and the d
decoder stages that take them; an upsampler goes with the last stage of its level. The published
networks of three downsamplings have twelve skips, numbered from 0, and a cut is called by the last
that is left: a11 is the middle block alone, a8 the whole lowest level. Other networks count the
same way from their middle: a11, a10, ... whatever the number of their skips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError, nearest
from ..models.model import Model
from ..streaming.units import Kind, Unit, list_units, own_tensors

_FIRST, _LAST = 11, 5  # a11 ... a5


@dataclass(frozen=True)
class Cut:
    """A cut of one U-Net; units are positions in its list of units."""

    name: str
    encoder: range  # before the hole, with the embedding of the timestep and the first convolution
    hole: range
    decoder: range  # behind it
    parameters: int  # in the hole
    fraction: float  # of all parameters


def list_cuts(unet: nn.Module, units: Sequence[Unit]) -> list[Cut]:
    """The cuts of a network, from the middle block alone to the largest hole that leaves attention
    to train."""
    pushing = [i for i, unit in enumerate(units) if unit.pushes]
    popping = [i for i, unit in enumerate(units) if unit.pops]
    sizes = [sum(x.numel() for *_, x in own_tensors(unet, unit.modules)) for unit in units]
    cuts = []
    for depth in range(min(_FIRST - _LAST + 1, len(pushing))):
        # The hole begins behind the newest skip that stays, and ends before the stage taking it.
        begin, end = pushing[len(pushing) - depth - 1] + 1, popping[depth]
        parameters = sum(sizes[begin:end])
        cut = Cut(
            name=f"a{_FIRST - depth}",
            encoder=range(begin),
            hole=range(begin, end),
            decoder=range(end, len(units)),
            parameters=parameters,
            fraction=parameters / sum(sizes),
        )
        check_skips(units, cut)
        left = (units[i].kind for i in (*cut.encoder, *cut.decoder))
        if cut.hole and Kind.LAYER in left:
            cuts.append(cut)
    return cuts


def check_skips(units: Sequence[Unit], cut: Cut) -> None:
    """Raise InputError unless every skip that a unit left takes is made by a unit left, at the
    same place in the stack as in the whole network."""
    stack: list[int] = []
    for i, unit in enumerate(units):
        if unit.pops and (stack.pop() in cut.hole) != (i in cut.hole):
            raise InputError(
                f"hollow={cut.name!r} must leave each decoder block the skip that it takes, but "
                f"parts {units[i].name} from its own"
            )
        if unit.pushes:
            stack.append(i)
    if any(units[i].kind in (Kind.TIME, Kind.FIRST, Kind.LAST) for i in cut.hole):
        raise InputError(f"hollow={cut.name!r} must leave the first and the last layers")


def find_cut(hollow: str | float, cuts: Sequence[Cut]) -> Cut:
    """The cut of a name, or the one whose share of the parameters is nearest to a number.

    Raises:
        InputError: The network has no such cut.

    Source:
        The cuts are reconstructed: the paper (arXiv 2411.01179) names a share of 39.2 %, to which
        a8 of SD2.1 comes nearest, and no layers.
    """
    if isinstance(hollow, str):
        names = [cut.name for cut in cuts]
        if hollow not in names:
            raise InputError(f"hollow={hollow!r} is no cut of this model: {nearest(hollow, names)}")
        return cuts[names.index(hollow)]
    return min(cuts, key=lambda cut: abs(cut.fraction - hollow))


def cut_of(hollow: str | float, model: Model) -> Cut:
    """The cut of a model's U-Net that a setting means.

    Raises:
        InputError: There is no such cut.
    """
    unet = model.skeleton("unet")
    return find_cut(hollow, list_cuts(unet, list_units(unet)))


def hole_modules(units: Sequence[Unit], cut: Cut) -> list[str]:
    """Paths of the modules in the hole."""
    return [path for i in cut.hole for path in units[i].modules]


def describe(cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    """Name, parameters and fraction of each cut, as plain values."""
    return [{"cut": c.name, "parameters": c.parameters, "fraction": c.fraction} for c in cuts]
