"""The command in a report repeats the run, whatever the run's defaults were."""

import shlex
from dataclasses import MISSING

import pytest

from sopt import InputError, cli
from sopt.config import METHODS, TrainConfig, settings
from sopt.report.repeating import repeat_command

GIVEN = {"images": "photos", "prompt": "a <s>", "output": "runs/x"}
TOKEN = {"token": "<s>", "initializer": "dog"}
OWN = {"lora": {}, "token": TOKEN, "codes": {}, "scales": {}}  # what each kind must be given
KINDS = [
    (method, train)
    for method in METHODS
    for train in OWN
    if train in ("lora", "token") or method == "zeroth-order"
    if (method == "textual-inversion") <= (train == "token")
    if (method == "hollowed") <= (train == "lora")
]
# None is left out: it means that the run finds out the value, and config.yaml has what it found.
DEFAULTS = {each.name: each.default for each in settings() if each.default not in (MISSING, None)}
OFTEN_OTHERS = ("eps", "estimator", "steps", "zo_lr", "subspace", "num_perturbations")


def again(config, family="sd15"):
    """The settings of the run that the command does."""
    words = shlex.split(repeat_command(config.to_dict()))
    assert words[:2] == ["sopt", "train"]
    options = vars(cli._parse(words[1:]))
    assert options.pop("command") == "train"
    if len(options["images"]) == 1:  # as ``sopt train`` reads them
        (options["images"],) = options["images"]
    return TrainConfig.create(family=family, **options).to_dict()


def same(config):
    return config.to_dict() | {"output": f"{config.output}-again"}


def test_the_command_repeats_the_run():
    given = {
        "images": ["a b.png", "c.png"], "prompt": "a 'sks' dog; $HOME\n", "output": "runs/x",
        "method": "backprop-low", "steps": 7, "lr": 3e-4, "samples": False, "device": "cpu",
        "memory_budget": "2GiB", "checkpointing": True, "weights": "float32", "resolution": 64,
    }  # fmt: skip
    config = TrainConfig.create(**given)
    assert again(config) == same(config)
    assert "--rank" not in repeat_command(config.to_dict())  # which is as it would be anyway


@pytest.mark.parametrize(("method", "train"), KINDS)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_every_kind_of_run_is_repeated(method, train, family):
    kind = GIVEN | OWN[train] | {"method": method, "train": train}
    runs = [{}, {name: DEFAULTS[name] for name in OFTEN_OTHERS}] + [
        {name: value} for name, value in DEFAULTS.items()
    ]
    checked = 0
    for given in runs:
        try:
            config = TrainConfig.create(family=family, **given | kind)
        except InputError:  # a default of others, which this kind refuses
            continue
        assert again(config, family) == same(config)
        checked += 1
    assert checked > len(runs) / 2


def test_a_preset_is_repeated():
    config = TrainConfig.create(**GIVEN, **TOKEN, method="textual-inversion", preset="script")
    assert again(config) == same(config)


@pytest.mark.parametrize(
    "given",
    [
        {"images": "-x"},
        {"prompt": "--steps"},
        {"prompt": "-a dog"},
        {"output": "-o"},
        {"zo_lr": -1},
    ],
)
def test_values_that_look_like_options_are_repeated(given):
    config = TrainConfig.create(**GIVEN | given)
    assert again(config) == same(config)


def test_files_that_look_like_options_are_repeated():
    config = TrainConfig.create(**GIVEN | {"images": ["a", "--steps"]})
    assert again(config)["images"] == ["a", "./--steps"]


def test_of_a_run_of_another_version_every_value_is_in_the_command():
    assert "--rank 4" in repeat_command(GIVEN | {"method": "of-later", "rank": 4})
