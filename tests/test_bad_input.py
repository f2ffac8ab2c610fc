"""Bad input to ``sopt.train``: one clear sentence, before long work, and nothing is written."""

import json
import os
import shutil

import pytest
import torch
from pipelines import micro_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sopt
from sopt import InputError
from sopt.models import inject_lora


def cut_index(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))


def cut_folder(folder):
    shutil.rmtree(folder / "unet")


def cut_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def poison(component, value):
    def fault(folder):
        (path,) = (folder / component).glob("*.safetensors")
        tensors = load_file(path)
        name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[3]
        tensors[name].view(-1)[1] = value
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata)

    return fault


def drop_index(folder):
    (folder / "model_index.json").unlink()


def make_inpainting(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))


def give_edm_scheduler(folder):
    from diffusers import EDMEulerScheduler

    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "fault, message",
    [
        (cut_index, "has no UNet"),
        (cut_folder, "has no UNet"),
        (cut_weights, "cannot load its UNet"),
        (poison("unet", float("nan")), "cannot load its UNet.* weights must be finite.* has NaN"),
        (poison("vae", float("inf")), "cannot load its VAE.* weights must be finite"),
        (
            poison("text_encoder", float("nan")),
            "cannot load its text encoder.* must be finite",
        ),
        (drop_index, "is not a diffusers pipeline"),
        (make_inpainting, "4 latent channels, got one with 9"),
        (give_edm_scheduler, "must count timesteps, as DDPM does, got one of EDM"),
    ],
)
def test_a_model_that_will_not_do(settings, micro_folder, tmp_path, fault, message):
    folder = tmp_path / "model"
    shutil.copytree(micro_folder, folder)
    fault(folder)
    with pytest.raises(InputError, match=message) as raised:
        sopt.train(**settings | {"model": str(folder)})
    assert "\n" not in str(raised.value)
    assert not os.path.exists(settings["output"])


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"images": "nowhere"}, "nowhere"),
        ({"model": "./nowhere"}, "there is no such folder"),
        ({"model": 3}, "model must be a name"),
        ({"resolution": 30}, "resolution must be a multiple of 8 "),
        # The VAE's factor 4 divides it, but diffusers would not draw the samples after training.
        ({"resolution": 36}, "resolution must be a multiple of 8 "),
        ({"resolution": 4}, "and at least 8, got 4"),
        (
            {"low_res_ratio": 0.7},
            r"=0.7 makes pictures of 22 pixels.* 0.625 \(side 20\) or 0.75 \(side 24\)",
        ),
        ({"low_res_ratio": 0.1}, r"at least 8: 0.25 \(side 8\) would fit"),
        ({"rank": 100_000}, "rank must be at most 16, the width of the model's widest layers"),
        ({"device": "tpu"}, "device must be one of cpu.* got 'tpu'"),
        ({"device": "cuda:99"}, "device must be one of cpu"),
        (
            {"schedule": lambda step, timestep: 2},
            r"schedule\(1, \d+\) must be a number in \[0, 1\]",
        ),
        ({"steps": 0}, "steps must be"),
        ({"output": "/proc/self/run"}, "must be writable"),
    ],
)
def test_settings_that_will_not_do(settings, bad, message):
    with pytest.raises(InputError, match=message) as raised:
        sopt.train(**settings | bad)
    assert "\n" not in str(raised.value)
    assert not os.path.exists(settings["output"])


def test_a_corrupt_picture_is_found_before_anything_is_written(settings, tmp_path, pictures):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"1\.png"):
        sopt.train(**settings | {"images": str(folder)})
    assert not os.path.exists(settings["output"])


def test_a_hub_id_that_cannot_be_had_is_an_input_error(settings, monkeypatch):
    import huggingface_hub

    def offline(*arguments, **options):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        InputError, match=r"model 'some/model': cannot get it .*: We couldn't connect to the hub.$"
    ):
        sopt.train(**settings | {"model": "some/model"})
    assert not os.path.exists(settings["output"])


def test_a_pipeline_with_a_lora_loaded_is_refused(settings):
    pipeline = micro_pipeline()
    inject_lora(pipeline.unet, 2, 0)
    with pytest.raises(InputError, match="has a LoRA loaded"):
        sopt.train(**settings | {"model": pipeline})
    assert not os.path.exists(settings["output"])


def test_weights_on_several_devices_and_int8_pipelines(settings):
    pipeline = micro_pipeline()
    pipeline.text_encoder.register_buffer("elsewhere", torch.ones(1, device="meta"))
    with pytest.raises(InputError, match="text encoder on several devices, cpu and meta: put it"):
        sopt.train(**settings | {"model": pipeline})
    pipeline = micro_pipeline()
    sopt.quantize(pipeline.unet)
    with pytest.raises(InputError, match=r"weights='float32' does not go with model .* is int8"):
        sopt.train(**settings | {"model": pipeline})
    del settings["schedule"], settings["weights"]
    codes = {"model": pipeline, "train": "codes", "method": "zeroth-order"}
    with pytest.raises(InputError, match="is on int8 weights already"):
        sopt.train(**settings | codes)
    assert not os.path.exists(settings["output"])


@pytest.mark.parametrize("train", ["codes", "scales"])
def test_weights_that_are_not_finite_are_not_quantized(settings, micro_folder, tmp_path, train):
    folder = shutil.copytree(micro_folder, tmp_path / "model")
    poison("unet", float("nan"))(folder)
    del settings["schedule"], settings["weights"]
    changes = {"model": str(folder), "train": train, "method": "zeroth-order"}
    with pytest.raises(InputError, match=r"cannot load its UNet.* must be finite.* has NaN"):
        sopt.train(**settings | changes)
    assert not os.path.exists(settings["output"])
