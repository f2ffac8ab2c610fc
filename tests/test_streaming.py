"""U-Nets run unit by unit: the bits of the plain forward, with few weights in memory."""

import errno
import functools
import os
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from pipelines import family_pipeline, micro_pipeline, save_micro_pipeline

from sopt import InputError
from sopt.checkpoint import fingerprint
from sopt.frozen import forget_inputs_of_frozen_convolutions
from sopt.models import inject_lora, open_model
from sopt.models.forwards import speed_up_forwards
from sopt.models.gates import recompute_gates
from sopt.models.quantized import Spool
from sopt.models.storage import Int8Storage
from sopt.streaming import (
    UnitNetwork,
    list_units,
    network_fingerprint,
    open_network,
    open_text_encoder,
)
from sopt.streaming.units import own_tensors

FAMILIES = ("sd15", "sd21", "sdxl", "ssd1b")
MODELS = (*FAMILIES, "micro", "tiny")
INT8 = Int8Storage(torch.bfloat16)


@functools.cache
def open_reduced(name):
    """A model whose weights are in memory, or tiny from its files."""
    if name == "tiny":
        return open_model("tiny")
    return open_model(micro_pipeline() if name == "micro" else family_pipeline(name))


@pytest.fixture(scope="module", autouse=True)
def reduced_models_go():
    """Else they would count in the tests that measure memory; also in modules that import this."""
    yield
    open_reduced.cache_clear()


def inputs_of(model, side=None, batch=1, dtype=torch.float32):
    """What the U-Net takes, random."""
    config = model.configs["unet"]
    side = side or config["sample_size"]
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    added = None
    if model.takes_sizes:
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        added = {
            "text_embeds": draw(batch, pooled),
            "time_ids": torch.tensor([[64.0, 48, 0, 3, 64, 64]] * batch),
        }
    return {
        "sample": draw(batch, config["in_channels"], side, side),
        "timestep": torch.tensor([321]),
        "encoder_hidden_states": draw(batch, 16, config["cross_attention_dim"]),
        "added_cond_kwargs": added,
    }


def randomize(adapter):
    """Random A and B, so that the adapter does something."""
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.values():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def streamed_network(model, dtype=torch.float32):
    network = open_network(model, dtype, torch.device("cpu"), stream=True)
    return network, network.weights


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_belongs_to_one_unit(name):
    unet = open_reduced(name).skeleton("unet")
    names = [own[0] for unit in list_units(unet) for own in own_tensors(unet, unit.modules)]
    assert sorted(names) == sorted(name for name, _ in unet.named_parameters())


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("name", ("sd21", "sdxl", "ssd1b", "tiny"))
def test_unit_by_unit_is_the_plain_forward_to_the_bit(name, odd):
    model = open_reduced(name)
    unet = model.load("unet")
    randomize(inject_lora(unet, 2, 0))
    given = inputs_of(model, side=model.configs["unet"]["sample_size"] + 3 * odd, batch=2)
    with torch.no_grad():
        assert torch.equal(UnitNetwork(unet)(**given)[0], unet(**given, return_dict=False)[0])


@pytest.mark.parametrize(
    "name, dtype",
    [(name, torch.float32) for name in ("sd15", "ssd1b", "tiny")] + [("sdxl", torch.bfloat16)],
)
def test_streamed_weights_give_the_bits_of_resident_ones(name, dtype):
    model = open_reduced(name)
    unet = model.load("unet", dtype)
    network, reader = streamed_network(model, dtype)
    randomize(inject_lora(unet, 2, 0))
    randomize(inject_lora(network.unet, 2, 0))
    speed_up_forwards(unet)  # in bfloat16, convolutions whose weights are in another order
    speed_up_forwards(network.unet)
    given = inputs_of(model, dtype=dtype)
    weights = sum(p.numel() * p.element_size() for p in unet.parameters() if not p.requires_grad)
    with torch.no_grad():
        expected = unet(**given, return_dict=False)[0]
        for _ in range(2):
            assert torch.equal(network(**given)[0], expected)
    assert reader.bytes < weights / 2
    reader.close()


@pytest.mark.parametrize("name", ("sd21", "sdxl", "tiny"))
def test_streamed_int8_weights_give_the_bits_of_resident_ones(name, tmp_path):
    model = open_reduced(name)
    plain = model.load("unet", INT8)
    spooled = replace(model, spool=Spool(tmp_path, plain))
    network = open_network(spooled, INT8, torch.device("cpu"), stream=True)
    assert not list(tmp_path.iterdir())  # its file has no name
    given = inputs_of(model, dtype=torch.bfloat16)
    results = []
    for unet, run in ((plain, plain), (network.unet, network)):
        adapter = inject_lora(unet, 2, 0)
        randomize(adapter)
        for _ in range(2):
            prediction = run(**given, return_dict=False)[0]
            prediction.float().square().mean().backward()
        results.append([prediction, *(parameter.grad for parameter in adapter.values())])
    assert any(gradient.abs().max() > 0 for gradient in results[0][1:])
    assert all(map(torch.equal, *results))
    codes = sum(x.numel() for x in plain.state_dict().values() if x.dtype == torch.int8)
    assert network.weights.bytes < codes / 2
    network.weights.close()


@pytest.mark.parametrize("name", ("sd15", "sdxl", "micro"))
def test_backward_through_streamed_weights_gives_the_bits_of_plain_autograd(name):
    model = open_reduced(name)
    plain = model.load("unet")
    network, reader = streamed_network(model)
    given = inputs_of(model)
    gradients = []
    for unet, run in ((plain, plain), (network.unet, network)):
        adapter = inject_lora(unet, 2, 0)
        randomize(adapter)
        if unet is network.unet:
            forget_inputs_of_frozen_convolutions(unet)
            recompute_gates(unet)
        for _ in range(2):
            run(**given, return_dict=False)[0].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in adapter.items()})
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        assert torch.equal(gradients[1][key], gradient), key
    reader.close()


@pytest.mark.parametrize("name, dtype", [("sdxl", torch.float32), ("sdxl", INT8), ("tiny", INT8)])
def test_streamed_text_encoders_give_the_bits_of_resident_ones(name, dtype):
    model = open_reduced(name)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    for component in model.kind.tokenizers:
        whole = model.load(component, dtype)
        streamed = open_text_encoder(model, component, dtype, torch.device("cpu"))
        with torch.no_grad():
            expected = whole(ids, output_hidden_states=True)
            for _ in range(2):
                found = streamed(ids, output_hidden_states=True)
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found.hidden_states[-2], expected.hidden_states[-2])


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_the_fingerprint_read_by_units_is_that_of_the_network(name):
    model = open_reduced(name)
    for dtype in (torch.float32, torch.bfloat16, INT8):
        expected = fingerprint(model.load("unet", dtype))
        assert network_fingerprint(model, dtype, torch.device("cpu")) == expected


@pytest.mark.parametrize("dtype, where", [(torch.float32, " of its unet"), (INT8, "")])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, where):
    pipeline = micro_pipeline()
    pipeline.unet.up_blocks[0].resnets[0].conv1.weight.data[0, 0, 0, 0] = float("inf")
    pipeline.save_pretrained(tmp_path)
    message = f"up_blocks.0.resnets.0.conv1.weight{where} has NaN or infinite values"
    with pytest.raises(InputError, match=message):
        network_fingerprint(open_model(tmp_path), dtype, torch.device("cpu"))


def test_a_file_that_shrinks_meanwhile_stops_the_run(tmp_path):
    model = open_model(save_micro_pipeline(tmp_path))
    network, _ = streamed_network(model)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match="was cut off while it was in use"), torch.no_grad():
        network(**inputs_of(model))


def test_a_full_disk_is_told_where_int8_weights_are_kept(tmp_path, monkeypatch):
    network = open_reduced("micro").skeleton("unet", dtype=INT8)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: Namespace(free=0))
        with pytest.raises(InputError, match=r"is too full for \d+ MiB of int8 weights"):
            Spool(tmp_path, network)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool(tmp_path, network)
    monkeypatch.setattr(spool._file, "write", full, raising=False)
    source = spool.over(open_reduced("micro").source("unet", network))
    with pytest.raises(InputError, match="is too full for"):
        source.read("conv_in.codes", torch.empty_like(network.conv_in.codes, device="cpu"))


def test_int8_weights_are_read_once_and_kept(tmp_path):
    read = []

    class Ones:
        def read(self, name, out, row=None):
            read.append(name)
            out.fill_(1)

    spool = Spool(tmp_path, torch.nn.Linear(2, 3))
    for _ in range(2):
        for name in ("a.codes", "b.codes"):
            out = torch.zeros(5, dtype=torch.int8)
            spool.over(Ones()).read(name, out)
            assert out.tolist() == [1] * 5
    assert read == ["a.codes", "b.codes"]
