"""Hollowed networks: cuts, and what they compute beside the whole network."""

import functools
import itertools

import pytest
import torch
from test_streaming import MODELS, inputs_of, open_reduced, reduced_models_go  # noqa: F401  a fixture

from sopt import InputError
from sopt.hollow.cuts import Cut, check_skips, find_cut, hole_modules, list_cuts
from sopt.models import inject_lora, open_model
from sopt.streaming import UnitNetwork, list_units
from sopt.streaming.network import Inputs

# Millions of parameters in the hole of SD2.1, and their share, by cut: reconstructed in papers.
SD21 = {
    "a11": (97.7, 11.28),
    "a10": (178.0, 20.56),
    "a9": (258.3, 29.83),
    "a8": (336.96, 38.91),
    "a7": (488.1, 56.4),
    "a6": (632.7, 73.1),
    "a5": (727.5, 84.0),
}


@functools.cache
def cuts_of(name):
    model = open_model(f"random:{name}") if name.endswith("full") else open_reduced(name)
    unet = model.skeleton("unet")
    return list_cuts(unet, list_units(unet))


def test_cuts_of_sd21_have_the_reconstructed_sizes():
    unet = open_model("random:sd21").skeleton("unet")
    units = list_units(unet)
    cuts = list_cuts(unet, units)
    assert [cut.name for cut in cuts] == list(SD21)
    for cut in cuts:
        millions, percent = SD21[cut.name]
        assert cut.parameters / 1e6 == pytest.approx(millions, abs=0.05)
        assert 100 * cut.fraction == pytest.approx(percent, abs=0.06)
    a8 = cuts[3]
    assert {units[i].name for i in a8.hole if "mid" not in units[i].name} == {
        "down_blocks.2.downsamplers.0",
        "down_blocks.3.resnets.0",
        "down_blocks.3.resnets.1",
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
        "up_blocks.0.resnets.2",
        "up_blocks.0.upsamplers.0",
    }
    assert find_cut(0.392, cuts) is a8
    assert find_cut("a11", cuts) is cuts[0]


@pytest.mark.parametrize("name", MODELS)
def test_cuts_are_nested_and_leave_something(name):
    cuts = cuts_of(name)
    assert cuts[0].name == "a11"
    for smaller, larger in itertools.pairwise(cuts):
        assert larger.hole.start < smaller.hole.start
        assert larger.hole.stop > smaller.hole.stop
        assert 0 < smaller.fraction < larger.fraction < 1
    if name != "micro":
        assert {"a11", "a10", "a9", "a8"} <= {cut.name for cut in cuts}


def test_a_cut_that_parts_a_skip_is_refused():
    unet = open_reduced("sd21").skeleton("unet")
    units = list_units(unet)
    a8 = list_cuts(unet, units)[3]
    hole = range(a8.hole.start, a8.hole.stop + 1)  # one decoder ResNet more, its skip is made
    with pytest.raises(InputError, match=r"parts up_blocks\.1\.resnets\.0 from its own"):
        check_skips(units, Cut("a8", a8.encoder, hole, a8.decoder, 0, 0.0))


def test_cuts_that_are_not_there_are_refused():
    with pytest.raises(InputError, match=r"hollow='a4' is no cut of this model"):
        find_cut("a4", cuts_of("sd15"))


@pytest.mark.parametrize(
    "name, odd", [*((name, False) for name in MODELS), ("sd21", True), ("sdxl", True)]
)
def test_without_an_adapter_every_cut_is_the_whole_network_to_the_bit(name, odd):
    model = open_reduced(name)
    given = inputs_of(model, side=model.configs["unet"]["sample_size"] + 3 * odd)
    inputs = Inputs(*given.values())
    whole = model.load("unet")
    units = list_units(whole)
    network = UnitNetwork(whole, units)
    with torch.no_grad():
        expected = whole(**given, return_dict=False)[0]
        for cut in cuts_of(name):
            (state,) = network.run([inputs], range(cut.hole.stop), kept=cut.hole)
            assert all(skip.is_meta for skip in state.skips)  # of others only the size is kept
            hollowed = model.load("unet", dropped=hole_modules(units, cut))
            rest = UnitNetwork(hollowed, units, hole=cut.hole)
            assert torch.equal(rest(**given, central=state.hidden)[0], expected), cut.name


@pytest.mark.parametrize("name", ("sdxl", "tiny"))
def test_the_hollowed_network_has_only_what_the_cut_leaves(name):
    model = open_reduced(name)
    units = list_units(model.skeleton("unet"))
    whole = sum(p.numel() for p in model.skeleton("unet").parameters())
    for cut in cuts_of(name):
        left = model.load("unet", dropped=hole_modules(units, cut))
        assert sum(p.numel() for p in left.parameters()) == whole - cut.parameters
        adapter = inject_lora(left, 2, 0)
        assert adapter
        assert not any(path in key for key in adapter for path in hole_modules(units, cut))
