"""Settings: checked once, named alike everywhere, nearest name suggested."""

from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from sopt import InputError
from sopt.config import TrainConfig

NEEDED = {"images": "dog", "prompt": "a sks dog", "output": "run"}


def create(**settings):
    return TrainConfig.create(**(NEEDED | settings))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"metod": "selective"}, "unknown setting 'metod': did you mean 'method'?"),
        ({"method": "selektive"}, "unknown method 'selektive': did you mean 'selective'?"),
        ({"method": 3}, "unknown method 3: known are selective"),
        ({"schedule": "dtab"}, "unknown schedule 'dtab', .*: did you mean 'dtap'?"),
        ({"schedule": 1.5}, r"a schedule that is a number must be in \[0, 1\], got 1.5"),
        ({"schedule": "nan"}, r"must be in \[0, 1\], got 'nan'"),
        ({"schedule": None}, "unknown schedule None"),
        ({"schedule": True}, r"must be in \[0, 1\], got True"),
        ({"noise": "gausian"}, "did you mean 'gaussian'?"),
        ({"resume": "newer"}, "did you mean 'never'?"),
        ({"rank": 0}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"steps": 0}, r"steps must be a whole number in \[1, 4294967296\), got 0"),
        ({"steps": -5}, "steps must be a whole number"),
        ({"steps": 2.0}, "steps must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"num_perturbations": 0}, "num_perturbations must be a whole number"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number"),
        ({"resolution": 0}, "resolution must be a whole number"),
        ({"low_res_ratio": 0}, r"low_res_ratio must be in \(0, 1\], got 0"),
        ({"low_res_ratio": 1.01}, r"low_res_ratio must be in \(0, 1\]"),
        ({"low_res_ratio": float("nan")}, "low_res_ratio must be a finite number"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"eps": -1e-3}, "eps must be above 0"),
        ({"eps": "autos"}, "unknown eps 'autos': did you mean 'auto'"),
        ({"zo_lr": float("inf")}, "zo_lr must be a finite number"),
        ({"zo_lr": "fast"}, "zo_lr must be a finite number, got 'fast'"),
        ({"prompt": "  "}, "prompt must be a text that is not empty"),
        ({"output": ""}, "output must be the path of a folder"),
        ({"images": []}, "images must name at least one picture"),
        ({"prior_images": []}, "prior_images must name at least one picture"),
        ({"prior_prompt": "a dog"}, "prior_prompt='a dog' does not go without prior_images"),
        ({"prior_prompt": " ", "prior_images": "x"}, "prior_prompt must be a text that is not"),
        ({"prior_weight": 0}, "prior_weight must be above 0, got 0"),
        ({"min_snr": 0}, "min_snr must be above 0, got 0"),
        ({"min_snr": "five"}, "min_snr must be a finite number, got 'five'"),
        ({"device": 0}, "device must be a name"),
        ({"method": "backprop-low", "schedule": "dtap"}, "schedule='dtap' does not go with method"),
        ({"method": "backprop-high", "low_res_ratio": 0.5}, "low_res_ratio=0.5 does not go with"),
    ],
)
def test_a_bad_setting_is_one_sentence_with_name_value_and_rule(settings, message):
    with pytest.raises(InputError, match=message) as raised:
        create(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", NEEDED)
def test_a_setting_without_default_is_asked_for(missing):
    with pytest.raises(InputError, match=f"{missing} is missing"):
        TrainConfig.create(**{name: value for name, value in NEEDED.items() if name != missing})


@pytest.mark.parametrize(
    "method, schedule, low_res_ratio",
    [
        ("selective", "dtap", 0.5),
        ("backprop-high", 0.0, 1.0),
        ("backprop-low", 0.0, 0.5),
        ("zeroth-order", 1.0, 0.5),
    ],
)
def test_methods_are_schedules_and_resolutions(method, schedule, low_res_ratio):
    config = create(method=method)
    assert (config.schedule, config.low_res_ratio) == (schedule, low_res_ratio)
    again = create(method=method, schedule=schedule, low_res_ratio=low_res_ratio)
    assert again == config  # what config.yaml holds is accepted


def test_yaml_gives_the_same_settings_back(tmp_path):
    config = create(
        images=[Path("a.png"), "b.png"],
        lr=1e-5,
        zo_lr=-3.3e-7,
        seed=2**64 - 1,
        prompt="ein Hündchen",
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = TrainConfig.from_yaml(tmp_path / "config.yaml")
    assert again.to_dict() == config.to_dict()
    assert TrainConfig.from_yaml(tmp_path / "config.yaml", steps=7).steps == 7


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text("images: a\nprompt: b\noutput: c\nlr: 1e-3\nschedule: '0.5'\n")
    config = TrainConfig.from_yaml(tmp_path / "c.yaml")
    assert (config.lr, config.schedule) == (1e-3, 0.5)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [", "", "!!python/object:os.system {}", "lr: 2026-13-01"]
)
def test_a_file_that_is_not_a_mapping_is_an_input_error(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        TrainConfig.from_yaml(tmp_path / "c.yaml")


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*c\.yaml"):
        TrainConfig.from_yaml(tmp_path / "c.yaml")


def test_objects_are_described_in_yaml():
    config = create(images=[Image.new("RGB", (4, 5))], schedule=lambda step, timestep: 0.5)
    assert "a picture of 4 x 5 pixels given as an object" in config.to_yaml()
    assert "the callable test_config" in config.to_yaml()


def test_the_settings_of_every_run_come_first():
    names = list(create().to_dict())
    assert names[:5] == ["images", "prompt", "output", "model", "method"]
    assert sorted(names) == sorted(each.name for each in fields(TrainConfig))


def test_output_checkpoints_and_resume_do_not_change_the_bits():
    assert create().bits() == create(output="b", checkpoint_every=1, resume="never").bits()
    changed = [
        {"steps": 2}, {"seed": 1}, {"rank": 2}, {"lr": 1}, {"zo_lr": 1}, {"eps": 1},
        {"num_perturbations": 1}, {"noise": "rademacher"}, {"low_res_ratio": 1}, {"prompt": "x"},
        {"model": "x"}, {"schedule": "tap"}, {"resolution": 8}, {"device": "cpu"}, {"min_snr": 5},
        {"prior_images": "x"}, {"prior_weight": 2},
    ]  # fmt: skip
    assert all(create().bits() != create(**settings).bits() for settings in changed)


def test_every_setting_has_a_help_text_and_a_rule():
    config = create()
    for setting in fields(TrainConfig):
        assert setting.metadata["help"]
        assert create(**{setting.name: getattr(config, setting.name)}) == config
