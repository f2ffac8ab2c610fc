"""Adapter files: every layout, loaded by stock diffusers, changes the U-Net as the formula says."""

import copy
import json
import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from diffusers.utils import logging as diffusers_logging
from pipelines import micro_pipeline
from safetensors import safe_open

from sopt.export import DIFFUSERS_FILE, save_diffusers_lora, save_kohya_lora
from sopt.files import load_tensors
from sopt_kernels import noise, stream_id

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK, ALPHA = 3, 5.0
KOHYA = {
    "prompt": "a sks dog",
    "resolution": 32,
    "prediction_type": "epsilon",
    "family": "sd15",
}


@pytest.fixture(scope="module")
def unet():
    return micro_pipeline().unet


@pytest.fixture(scope="module")
def adapter(unet):
    """Random A and B for every attention projection, both of the size of the weights."""
    factors = {}
    for path, module in unet.named_modules():
        if path.endswith(TARGETS):
            out_features, in_features = module.weight.shape
            for part, shape in [("A", (RANK, in_features)), ("B", (out_features, RANK))]:
                name = f"unet.{path}.lora_{part}.weight"
                factors[name] = noise(shape, 1, stream_id(name)) * 0.5
    assert len(factors) == 2 * 4 * 2 * 7  # factors, projections, attentions, transformer blocks
    return factors


def predict(unet, dtype=torch.float32):
    latents = noise((2, 4, 8, 8), 2, 0).to(dtype)
    text = noise((2, 16, 16), 3, 0).to(dtype)
    with torch.no_grad():
        return unet(latents, torch.tensor([100, 900]), text).sample.double()


def with_formula(unet, adapter, alpha, dtype):
    """A copy of the U-Net with ``W + alpha / rank * B A`` for each adapted weight ``W``."""
    merged = copy.deepcopy(unet).to(dtype)
    weights = dict(merged.named_parameters())
    for name, a in adapter.items():
        if name.endswith(".lora_A.weight"):
            b = adapter[name.replace("lora_A", "lora_B")]
            weight = weights[name.removeprefix("unet.").replace(".lora_A", "")]
            weight.data += alpha / RANK * b.to(dtype) @ a.to(dtype)
    return merged


def save_diffusers(folder, adapter, alpha=ALPHA):
    save_diffusers_lora(folder / DIFFUSERS_FILE, adapter, RANK, alpha, TARGETS)
    return folder / DIFFUSERS_FILE


def save_kohya(folder, adapter, alpha=ALPHA, **changes):
    save_kohya_lora(folder / "dog_kohya.safetensors", adapter, RANK, alpha, **(KOHYA | changes))
    return folder / "dog_kohya.safetensors"


@pytest.mark.parametrize("save", [save_diffusers, save_kohya])
@pytest.mark.parametrize("alpha", [ALPHA, RANK])
def test_stock_diffusers_loads_the_function_that_was_trained(
    tmp_path, unet, adapter, save, alpha, caplog
):
    pipeline = micro_pipeline()
    diffusers_logging.enable_propagation()  # else pytest does not see what the loader warns about
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(tmp_path, weight_name=save(tmp_path, adapter, alpha).name)
    diffusers_logging.disable_propagation()
    # The text encoder has no LoRA, which the loader mentions; missing and unexpected keys are told
    # in the same way and would not name it.
    told = [record.message for record in caplog.records]
    assert all("CLIPTextModel" in message for message in told), told

    truth = predict(with_formula(unet, adapter, alpha, torch.float64), torch.float64)
    rounding = (predict(with_formula(unet, adapter, alpha, torch.float32)) - truth).abs().max()
    effect = (predict(unet) - truth).abs().max()
    assert effect > 1e4 * rounding  # otherwise a factor that is a little off would pass
    # the loader keeps B A apart from W: as many products, rounded in another order
    assert (predict(pipeline.unet) - truth).abs().max() <= 8 * rounding


def test_the_diffusers_file_is_what_its_own_writer_writes(tmp_path, adapter):
    own = tmp_path / "own"
    layers = {name.removeprefix("unet."): tensor for name, tensor in adapter.items()}
    StableDiffusionPipeline.save_lora_weights(
        own,
        unet_lora_layers=convert_state_dict_to_diffusers(layers),
        unet_lora_adapter_metadata={
            "r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(TARGETS),
        },
    )  # fmt: skip
    expected, expected_metadata = load_tensors(own / DIFFUSERS_FILE)
    tensors, metadata = load_tensors(save_diffusers(tmp_path, adapter))
    assert metadata == expected_metadata
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    some = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1."
    assert {some + "to_q.lora.down.weight", some + "to_out.0.lora.up.weight"} <= tensors.keys()
    assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"] == ALPHA


def test_the_kohya_file_is_what_the_converter_of_diffusers_gives_where_alpha_is_the_rank(
    tmp_path, adapter
):
    expected = convert_state_dict_to_kohya(dict(adapter))
    tensors, _ = load_tensors(save_kohya(tmp_path, adapter, alpha=RANK))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor.to(tensors[name].dtype)), name


def test_the_kohya_file_has_its_true_alpha_as_a_scalar_of_each_module(tmp_path, adapter):
    tensors, _ = load_tensors(save_kohya(tmp_path, adapter))
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    assert len(alphas) == len(adapter) / 2
    assert all(alpha.shape == () and alpha == ALPHA for alpha in alphas.values())
    assert all(name.count(".") == 1 for name in alphas)


def test_the_kohya_header_says_what_programs_look_for(tmp_path, adapter):
    _, metadata = load_tensors(save_kohya(tmp_path, adapter))
    assert metadata == {
        "format": "pt",
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "5.0",
        "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "a sks dog",
        "modelspec.trigger_phrase": "a sks dog",
        "modelspec.resolution": "32x32",
        "modelspec.prediction_type": "epsilon",
    }


@pytest.mark.parametrize(
    ("family", "prediction_type", "base", "architecture", "modelspec_prediction"),
    [
        ("sd21", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora", "epsilon"),
        ("sd21", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "v"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "epsilon"),
    ],
)
def test_the_kohya_header_names_the_base_model(
    tmp_path, adapter, family, prediction_type, base, architecture, modelspec_prediction
):
    file = save_kohya(tmp_path, adapter, family=family, prediction_type=prediction_type)
    _, metadata = load_tensors(file)
    assert metadata["ss_v2"] == str(family == "sd21")
    assert metadata["ss_base_model_version"] == base
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.prediction_type"] == modelspec_prediction


@pytest.mark.parametrize("save", [save_diffusers, save_kohya])
def test_the_same_adapter_gives_the_same_bytes(tmp_path, adapter, save):
    first = save(tmp_path, adapter).read_bytes()
    backwards = dict(reversed(adapter.items()))
    assert save(tmp_path, backwards).read_bytes() == first
    header = first[8 : 8 + int.from_bytes(first[:8], "little")].decode()
    assert str(tmp_path) not in header
    assert list(json.loads(header)) == sorted(json.loads(header))


@pytest.mark.parametrize("save", [save_diffusers, save_kohya])
def test_the_safetensors_library_reads_the_files(tmp_path, adapter, save):
    with safe_open(str(save(tmp_path, adapter)), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
