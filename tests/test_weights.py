"""Weights into networks one tensor at a time, and frozen layers that forget their inputs."""

import json

import pytest
import torch
from pipelines import micro_pipeline
from torch import nn
from torch.nn import functional

from sopt import InputError
from sopt.frozen import forget_inputs_of_frozen_convolutions
from sopt.memory import LiveStorage
from sopt.models import open_model


@pytest.fixture
def saved(tmp_path):
    """A function that saves a micro pipeline and gives the pipeline and its folder."""

    def save(**options):
        pipeline = micro_pipeline()
        pipeline.save_pretrained(tmp_path / "model", **options)
        return pipeline, tmp_path / "model"

    return save


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}, {"variant": "fp16"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_layout_of_files_gives_the_weights(saved, options, dtype):
    pipeline, folder = saved(**options)
    if "max_shard_size" in options:
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    model = open_model(folder)
    for component in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline, component).state_dict()
        loaded = model.load(component, dtype).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name].to(dtype)) for name in expected)


def test_loading_takes_the_weights_and_one_piece(saved):
    _, folder = saved()
    model = open_model(folder)
    with LiveStorage() as live:
        before = live.bytes
        unet = model.load("unet", torch.bfloat16)
        weights = sum(p.untyped_storage().nbytes() for p in unet.parameters())
        largest = max(p.numel() for p in unet.parameters())
        # The tensor that is read in float32, its finiteness, and what isfinite computes with.
        assert live.peak - before <= weights + 12 * largest


def test_dropped_parts_are_checked_but_never_kept(saved):
    _, folder = saved()
    vae = open_model(folder).load("vae", dropped=("decoder", "post_quant_conv"))
    assert not any(name.startswith("decoder") for name, _ in vae.named_parameters())
    posterior = vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist
    assert posterior.mean.shape == (1, 4, 4, 4)


def test_names_of_older_files_are_understood(saved):
    from safetensors.torch import load_file, save_file

    pipeline, folder = saved()
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new, was in old.items():
            name = name.replace(new, was)
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path, {"format": "pt"})
    expected = pipeline.vae.state_dict()
    loaded = open_model(folder).load("vae").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named(saved):
    _, folder = saved(max_shard_size="100KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
    (folder / "unet" / shard).unlink()
    with pytest.raises(InputError, match=f"cannot load its UNet: the file .*{shard}.* is missing"):
        open_model(folder).load("unet")


def test_pickles_are_not_read(saved):
    _, folder = saved()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(InputError, match=r"found diffusion_pytorch_model.bin, a pickle"):
        open_model(folder).load("unet")


@pytest.mark.parametrize("stride, padding, groups", [(1, 1, 1), (2, 1, 1), (2, 0, 2), (1, 0, 1)])
def test_a_frozen_convolution_has_the_same_values_and_gradient(stride, padding, groups):
    layer = nn.Conv2d(4, 6, 3, stride, padding, groups=groups).requires_grad_(False)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    plain = functional.conv2d(x, layer.weight, layer.bias, stride, padding, 1, groups)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    network = nn.Sequential(layer)
    forget_inputs_of_frozen_convolutions(network)
    found = network(x)
    assert torch.equal(found, plain)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.equal(gradient, expected)


def test_a_frozen_convolution_keeps_nothing_for_the_backward_pass():
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    network.requires_grad_(False)
    x = torch.randn(1, 4, 32, 32, requires_grad=True)
    size = x.numel() * 4

    def kept():
        with LiveStorage() as live:
            before = live.bytes
            result = network(x)
            return live.bytes - before, result

    plain, _ = kept()
    assert plain >= 3 * size  # the inputs of the second and the third, and the result
    forget_inputs_of_frozen_convolutions(network)
    assert kept()[0] == size
