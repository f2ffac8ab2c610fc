"""Settings of trained int8 weights: what they imply, and what does not go with them."""

import pytest

from sopt import InputError
from sopt.config import TrainConfig

NEEDED = {"images": "dog", "prompt": "a dog", "output": "run"}


def test_int8_weights_mean_the_only_method_that_trains_them():
    for train in ("codes", "scales"):
        assert TrainConfig.create(**NEEDED, train=train).method == "zeroth-order"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"method": "selective"},
            "train='codes' does not go with method='selective': int8 weights are trained by",
        ),
        ({"method": "backprop-low"}, "train='codes' does not go with method='backprop-low'"),
        ({"method": "textual-inversion"}, "train='codes' does not go with method='textual-inv"),
        ({"weights": "bfloat16"}, "weights='bfloat16' does not go with"),
        ({"rank": 8}, "rank=8 does not go with train='codes'"),
        ({"hollow": "a8"}, "hollow='a8' does not go with train='codes'"),
        ({"offload": "stream"}, "offload='stream' does not go with"),
        ({"token": "<x>"}, "token='<x>' does not go without train='tok"),
        ({"headroom": 65}, r"headroom must be a whole number in \[1, 65"),
        ({"zo_clip": 0}, "zo_clip must be above 0, got 0"),
        ({"layers": "to_v,"}, "layers must be 'all', or parts of layers"),
        ({"train": "lora", "layers": "to_v"}, "layers='to_v' does not go with train='lora'"),
        ({"train": "scales", "headroom": 4}, "headroom=4 does not go wi"),
        ({"train": "lora", "zo_clip": 1.0}, "zo_clip=1.0 does not go with train='lora'"),
        ({"train": "code"}, "unknown train 'code': did you mean 'codes'?"),
    ],
)  # fmt: skip
def test_settings_that_will_not_do(changes, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.create(**NEEDED | {"train": "codes"} | changes)


def test_what_config_yaml_holds_means_the_same():
    for train in ("codes", "scales"):
        config = TrainConfig.create(**NEEDED, train=train, method="zeroth-order")
        assert config.weights == "int8"
        assert TrainConfig.create(**config.to_dict()) == config
