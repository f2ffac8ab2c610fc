"""Networks on int8 weights: what becomes int8, what it costs, files, training."""

from __future__ import annotations

import pytest
import torch
from pipelines import act_at_loss, crash
from torch import Tensor, nn

import sopt
from sopt.errors import InputError
from sopt.memory import LiveStorage
from sopt.models import inject_lora, open_model, quantized
from sopt.models.int8_file import load_quantized, save_quantized
from sopt.models.kinds import build_on_meta
from sopt.models.storage import Int8Storage
from sopt.quantization import (
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    Quantization,
    quantizable_layers,
    quantize,
    quantize_weight,
)

BFLOAT16 = Int8Storage(torch.bfloat16)


def test_codes_are_the_nearest_and_scales_the_least_that_reach():
    weight = torch.randn(7, 5, 3, 3)
    weight[2] = 0
    codes, scales = quantize_weight(weight)
    assert codes.shape == (7, 3, 3, 5)
    assert codes.dtype == torch.int8
    assert codes.flatten(1).abs().amax(1).tolist() == [127, 127, 0, 127, 127, 127, 127]
    back = (codes * scales[:, None, None, None]).movedim(-1, 1)
    half = scales[:, None, None, None] / 2 * (1 + 2.0**-16)  # 127 quotients, each rounded
    assert ((back - weight).abs() <= half).all()


def test_large_weights_are_quantized_in_pieces():
    weight = torch.randn(33, 70_000).bfloat16()
    codes, scales = quantize_weight(weight)
    for row in (0, 14, 15, 32):
        one = quantize_weight(weight[row : row + 1])
        assert torch.equal(one.codes[0], codes[row])
        assert one.scales[0] == scales[row]


def test_a_network_in_place(micro_model):
    """Embeddings and norms stay; nothing is float any more where a layer was."""
    unet = micro_model.load("unet")
    before = sum(weight.numel() for weight in unet.parameters())
    norms = {n: w.clone() for n, w in unet.named_parameters() if "norm" in n}
    layers = quantizable_layers(unet)
    assert quantize(unet) == Quantization.of(unet)
    found = Quantization.of(unet)
    assert found.parameters == before
    assert found.layers == len(layers) > 0
    assert quantizable_layers(unet) == {}
    assert {type(layer) for layer in layers.values()} == {Int8Linear, Int8Conv2d}
    assert all(torch.equal(dict(unet.named_parameters())[n], w) for n, w in norms.items())
    assert found.share == sum(layer.codes.numel() for layer in layers.values()) / before


def test_share_of_sd15_is_that_of_the_paper():
    """96.4 % of all three networks (ZOODiP): by shapes alone."""
    model = open_model("random:sd15")
    quantized = total = 0
    for component in ("unet", "text_encoder", "vae"):
        network = build_on_meta(model.kind, component, model.configs[component])
        quantized += sum(layer.weight.numel() for layer in quantizable_layers(network).values())
        total += sum(weight.numel() for weight in network.parameters())
    assert quantized / total == pytest.approx(0.964, abs=5e-4)


@pytest.mark.parametrize("activations, most", [("float", 0.03), ("int8", 0.06)])
def test_output_is_close_to_that_of_the_float_network(micro_model, activations, most):
    exact, unet = micro_model.load("unet"), micro_model.load("unet")
    quantize(unet, activations)
    side = micro_model.configs["unet"]["sample_size"]
    x = torch.randn(1, micro_model.configs["unet"]["in_channels"], side, side)
    text = torch.randn(1, 7, micro_model.configs["unet"]["cross_attention_dim"])
    with torch.no_grad():
        expected, actual = (network(x, 10, text).sample for network in (exact, unet))
    error = float((actual - expected).norm() / expected.norm())
    print(f"{activations}: {error:.2%} of the output")
    assert 0 < error < most


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_streamed_from_files_as_quantized_in_memory(micro_model, component):
    streamed = micro_model.load(component, BFLOAT16)
    whole = micro_model.load(component)
    quantize(whole, BFLOAT16.activations(component))
    whole.to(torch.bfloat16)
    others = streamed.state_dict()
    assert others.keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert others[name].dtype == value.dtype, name  # scales and biases stay float32
        assert torch.equal(others[name], value), name
    kinds = [layer.activations for layer in streamed.modules() if isinstance(layer, Int8Layer)]
    assert set(kinds) == {"int8" if component == "unet" else "float"}


def test_the_float_model_never_stands_in_memory(micro_model, monkeypatch):
    """Nor does one layer of it, but for some rows."""
    monkeypatch.setattr(quantized, "_ELEMENTS", 256)
    floats = micro_model.load("unet")
    whole = max(weight.numel() for weight in floats.parameters())
    row = max(weight[0].numel() for weight in floats.parameters())
    int8 = micro_model.load("unet", BFLOAT16)
    size = sum(x.nbytes for x in int8.state_dict().values())
    del floats, int8
    with LiveStorage(found=False) as live:
        micro_model.load("unet", BFLOAT16)
    # Beside the result: rows in float32, pieces of them twice, and their codes
    assert live.peak <= size + max(row, 256) * (4 + 8 + 1) + 2**13
    assert max(row, 256) * (4 + 8 + 1) + 2**13 < 4 * whole  # so a whole layer would be seen


def test_saved_and_loaded(micro_model, tmp_path):
    unet = micro_model.load("unet", BFLOAT16)
    save_quantized(unet, tmp_path / "a.safetensors")
    made = build_on_meta(micro_model.kind, "unet", micro_model.configs["unet"])
    loaded = load_quantized(made, tmp_path / "a.safetensors")
    expected = unet.state_dict()
    assert {n: x.dtype for n, x in loaded.state_dict().items()} == {
        n: x.dtype for n, x in expected.items()
    }
    assert all(torch.equal(x, expected[n]) for n, x in loaded.state_dict().items())
    save_quantized(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_bad_files(micro_model, tmp_path):
    file = tmp_path / "a.safetensors"

    def made(component: str) -> nn.Module:
        return build_on_meta(micro_model.kind, component, micro_model.configs[component])

    with pytest.raises(InputError, match="there is no file"):
        load_quantized(made("unet"), file)
    unet = micro_model.load("unet", BFLOAT16)
    save_quantized(unet, file)
    with pytest.raises(InputError, match=r"is of another model: .* and in this one"):
        load_quantized(made("vae"), file)
    unet.conv_in.scales[1] = float("nan")
    save_quantized(unet, file)
    with pytest.raises(InputError, match=r"conv_in.scales has NaN or infinite values"):
        load_quantized(made("unet"), file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="is cut off"):
        load_quantized(made("unet"), file)


def test_bad_networks_are_left_as_they_were():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        network[1].weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"must be finite, but 1.weight has NaN"):
        quantize(network)
    assert type(network[0]) is nn.Linear
    for odd in ({"groups": 2}, {"dilation": 2}, {"stride": (1, 2)}, {"padding": "same"}):
        with pytest.raises(InputError, match="must be a convolution of one group"):
            quantize(nn.Sequential(nn.Conv2d(4, 4, 3, **odd)))
    for network, message in (
        (nn.Linear(8, 65537), "between 1 and 65536 inputs and outputs, got .* shape"),
        (nn.Linear(0, 4), "between 1 and 65536"),
        (nn.Conv2d(4, 4, 3, stride=65), "none of them above 64"),
        (nn.Linear(4, 4).double(), "must be float32, bfloat16 or float16, got torch.float64"),
        (nn.MultiheadAttention(8, 2), "reads its weights itself"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta")), "got cpu and meta"),
    ):
        with pytest.raises(InputError, match=message):
            quantize(network)
    with pytest.raises(InputError, match=r"activations must be one of .* got 'int4'"):
        quantize(nn.Linear(4, 4), "int4")


def test_lora_on_int8_projections_has_the_gradients_of_the_float_ones(micro_model):
    """Weight-only in float32, against the dequantized network: gradients of A and B."""
    gradients: list[dict[str, Tensor]] = []
    for int8 in (True, False):
        unet = micro_model.load("unet")
        quantize(unet, "float")
        if not int8:
            _dequantize(unet)
        adapter = inject_lora(unet, 4, seed=3)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in adapter.values():
                weight.add_(torch.randn_like(weight) / 8)
        side = micro_model.configs["unet"]["sample_size"]
        x = torch.randn(1, micro_model.configs["unet"]["in_channels"], side, side)
        text = torch.randn(1, 7, micro_model.configs["unet"]["cross_attention_dim"])
        unet(x, 10, text).sample.square().mean().backward()
        gradients.append({name: weight.grad for name, weight in adapter.items()})
    ours, expected = gradients
    assert ours.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32
        # float32 through some 50 layers
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * largest)


def _dequantize(network: nn.Module) -> None:
    for layer in list(network.modules()):
        if isinstance(layer, Int8Layer):
            shape = (-1, *[1] * (layer.codes.dim() - 1))
            weight = (layer.codes * layer.scales.view(shape)).movedim(-1, 1)
            bias = layer.bias
            layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
            for name in ("codes", "scales", "bias"):
                delattr(layer, name)
            layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize("method", ["selective", "backprop-low"])
@pytest.mark.usefixtures("quick")
def test_training_on_int8_weights(settings, method):
    if method != "selective":
        del settings["schedule"]
    run = sopt.train(**settings | {"weights": "int8", "method": method})
    assert [step["step"] for step in run.history] == list(range(1, 7))
    assert all(step["loss"] is not None for step in run.history)


@pytest.mark.usefixtures("quick")
def test_a_crashed_run_on_int8_weights_continues_to_the_same_bits(settings, tmp_path, monkeypatch):
    settings |= {"weights": "int8", "checkpoint_every": 1}
    unbroken = sopt.train(**settings | {"output": str(tmp_path / "unbroken" / "run")})
    act_at_loss(monkeypatch, 5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    act_at_loss(monkeypatch, 0, None)
    assert sopt.train(**settings).adapter.read_bytes() == unbroken.adapter.read_bytes()


def test_plans_know_int8_weights(settings):
    """Of the same simulated network: a weight of n values takes n bytes instead of 2 n."""
    model = open_model(settings["model"])
    network = build_on_meta(model.kind, "unet", model.configs["unet"])
    saved = sum(layer.weight.numel() for layer in quantizable_layers(network).values())
    known = {"method": "backprop-low", "checkpointing": True}
    peaks = [
        sopt.plan(settings["model"], weights=weights, **known)[0].phases["train-bp"]
        for weights in ("int8", "bfloat16")
    ]
    assert 0.5 * saved < peaks[1] - peaks[0] < saved
