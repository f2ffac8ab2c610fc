"""Reduced pipelines of each family load in every way they are saved."""

from __future__ import annotations

import pytest
import torch
from pipelines import family_pipeline, save_family_pipeline
from single_file import save_single_file

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
