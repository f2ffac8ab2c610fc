"""Reduced pipelines of each family load in every way they are saved."""

from __future__ import annotations

import pytest
import torch
from pipelines import family_pipeline, save_family_pipeline
from single_file import save_single_file

import sopt
from sopt import InputError
from sopt.models import open_model

FAMILIES = ("sd15", "sd21", "sdxl", "ssd1b")
VARIANTS = {
    "shards": (torch.float32, {"max_shard_size": "100KB"}),
    "fp16": (torch.float16, {"variant": "fp16"}),
    "fp16 shards": (torch.float16, {"variant": "fp16", "max_shard_size": "50KB"}),
}


def networks(pipeline):
    return {n: m for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}


def same_weights(network, loaded):
    weights, others = network.state_dict(), loaded.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads(family, variant, tmp_path):
    dtype, options = VARIANTS[variant]
    folder = save_family_pipeline(tmp_path, family, dtype, **options)
    pipeline, model = family_pipeline(family, dtype), open_model(folder)
    for name, network in networks(pipeline).items():
        files = len(list((folder / name).glob("*.safetensors")))
        assert (files > 1) == variant.endswith("shards")
        assert same_weights(network, model.load(name, dtype))
    for name in model.kind.tokenizers.values():
        ids = getattr(pipeline, name)("a dog", padding="max_length").input_ids
        assert model.tokenizer(name)("a dog", padding="max_length").input_ids == ids
    assert model.prediction_type == ("v_prediction" if family == "sd21" else "epsilon")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_diffusers_reads_a_single_file_as_the_tests_write_it(family, tmp_path):
    pipeline = family_pipeline(family, torch.float16)
    path = save_single_file(pipeline, tmp_path / "model.safetensors")
    folder = save_family_pipeline(tmp_path / "folder", family, torch.float16)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()  # configuration and tokenizers come from the folder, weights from the file
    loaded = type(pipeline).from_single_file(
        str(path), config=str(folder), torch_dtype=torch.float16, local_files_only=True
    )
    for name, network in networks(pipeline).items():
        assert same_weights(network, getattr(loaded, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_loads(family, tmp_path, monkeypatch):
    pipeline = family_pipeline(family, torch.float16)
    folder = save_family_pipeline(tmp_path / family, family, torch.float16)
    monkeypatch.setattr("sopt.models.single_file.CONFIGS", tmp_path)  # of the reduced sizes
    path = save_single_file(pipeline, folder / "model.safetensors")  # beside the tokenizers
    if family == "sd21":
        (folder / "model.yaml").write_text("model: {params: {parameterization: v}}")
    model = open_model(path)
    for name, network in networks(pipeline).items():
        loaded = model.load(name, torch.float16)
        assert same_weights(network, loaded)
        assert not any(p.requires_grad for p in loaded.parameters())
    assert model.prediction_type == ("v_prediction" if family == "sd21" else "epsilon")
    for name in model.kind.tokenizers.values():
        ids = getattr(pipeline, name)("a dog", padding="max_length").input_ids
        assert model.tokenizer(name)("a dog", padding="max_length").input_ids == ids


def test_a_single_file_of_version_2_needs_its_settings(tmp_path):
    path = save_single_file(family_pipeline("sd21"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not say what its UNet predicts"):
        open_model(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_draws(family, pictures, tmp_path):
    folder = save_family_pipeline(tmp_path / "model", family)
    run = sopt.train(
        model=folder,
        images=str(pictures),
        prompt="a dog",
        output=tmp_path / "run",
        steps=4,
        schedule=0.5,
        low_res_ratio=1.0,
        weights="bfloat16",
        num_perturbations=1,
    )
    assert {entry["branch"] for entry in run.history} == {"bp", "zo"}
    assert all(0 < entry["loss"] < 100 for entry in run.history)
    (picture,) = sopt.generate(folder, run.adapter, prompt="a dog", steps=2)
    assert picture.size == (64, 64)
