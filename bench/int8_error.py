"""How far int8 layers are from float32 ones, layer by layer and at the end of the U-Net.

    python -m bench.int8_error {tiny,sd15} [--resolution 256] [--json FILE]

Per layer: each linear layer and convolution of the float32 U-Net computes as it is and on its int8
weights, from the same input: the distance of the results over the norm of the float32 one. End to
end: the same of the noise that the whole U-Net on int8 weights predicts. Both with weights alone
quantized ("float") and with activations too ("int8"). All numbers that are not int8 are float32.

Kernels: with "int8" against the float64 result of the same quantized numbers, which integer sums
make exact but for the rounding of their scaling, and beside it PyTorch's float32 result of them:
the largest distance of an element over the largest element. "same bits": layers whose every bit is
that of the reference, whose sums of integers are exact.

``tiny`` has trained weights, four timesteps and pictures of its own; ``sd15`` the full-size
architecture with seeded random weights, at one timestep.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from tqdm import tqdm

from bench.generated import RESULTS
from bench.int8_codes_tiny import subject
from sopt.cache import build_cache
from sopt.data import load_pictures
from sopt.files import write_json
from sopt.memory import MemoryRecorder
from sopt.models import Model, open_model
from sopt.models.storage import Int8Storage
from sopt.quantization import Int8Layer, Int8Weight, quantizable_layers, quantize_weight
from sopt.steps.noise_floor import evenly
from sopt_kernels import int8_conv2d, int8_linear, noise, stream_id
from sopt_kernels._int8_layers import forward_reference, quantize_pixels

ACTIVATIONS = ("float", "int8")
WORST = 10
SAMPLES = {"tiny": 4, "sd15": 1}


def inputs(model: Model, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents of pictures, their timesteps, and an encoded prompt for each."""
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryRecorder(torch.device("cpu")) as memory,
    ):
        pictures = load_pictures(*subject(0, Path(folder), count))
        cache = build_cache(model, pictures, [side], torch.float32, memory)
    shape = (count, *cache.encoded[side][0].mean.shape[1:])
    drawn = zip(cache.encoded[side], noise(shape, 0, stream_id("latent")), strict=True)
    clean = torch.cat([moments.sample(z[None]) for moments, z in drawn])
    timesteps = torch.tensor(evenly(range(model.num_train_timesteps), count))
    noisy = model.noise_scheduler().add_noise(clean, noise(shape, 0, stream_id("noise")), timesteps)
    (prompt,) = {picture.caption for picture in pictures}
    return noisy, timesteps, cache.prompts[prompt].tokens.expand(count, -1, -1)


def distance(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


def largest(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).abs().max() / exact.abs().max())


class Comparison:
    """Compares each layer of a float32 network while it computes."""

    def __init__(self, network: nn.Module) -> None:
        self.layers: dict[str, dict[str, Any]] = {}
        found = quantizable_layers(network)
        self._progress = tqdm(total=len(found), desc="layers")
        for path, layer in found.items():
            layer.register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        def compare(layer: Any, given: tuple[Tensor, ...], exact: Tensor) -> None:
            weight, (x,) = quantize_weight(layer.weight), given
            options = {}
            if isinstance(layer, nn.Conv2d):
                options = {"stride": layer.stride[0], "padding": layer.padding[0]}
            operator: Any = int8_conv2d if options else int8_linear
            row: dict[str, Any] = {}
            for activations in ACTIVATIONS:
                y = operator(x, *weight, layer.bias, activations=activations, **options)
                row[activations] = distance(y, exact)
            self.layers[path] = row | compare_kernels(layer, x, weight, y)
            self._progress.update()

        return compare


def compare_kernels(layer: Any, x: Tensor, weight: Int8Weight, y: Tensor) -> dict[str, Any]:
    """``y`` of quantized activations beside float64 and float32 results of the same numbers."""
    codes, scales = weight
    convolution = isinstance(layer, nn.Conv2d)
    image = x.permute(0, 2, 3, 1) if convolution else x.reshape(1, 1, -1, x.shape[-1])
    q, pixel_scales = quantize_pixels(image)
    found = []
    for dtype in (torch.float64, torch.float32):
        known = q.to(dtype) * pixel_scales.to(dtype)
        dequantized = codes.to(dtype) * scales.to(dtype).view(-1, *[1] * (codes.dim() - 1))
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if convolution:
            known, dequantized = known.permute(0, 3, 1, 2), dequantized.permute(0, 3, 1, 2)
            found.append(conv2d(known, dequantized, bias, layer.stride, layer.padding))
        else:
            found.append(linear(known, dequantized, bias).view(y.shape))
    exact, single = found
    stride, padding = (layer.stride[0], layer.padding[0]) if convolution else (1, 0)
    kernel = codes if convolution else codes[:, None, None]
    sums = forward_reference(image, kernel, scales, layer.bias, stride, padding, "int8")
    reference = sums.permute(0, 3, 1, 2) if convolution else sums.view(y.shape)
    return {
        "kernel": largest(y, exact),
        "float32": largest(single, exact),
        "same bits": torch.equal(y, reference),
    }


@torch.no_grad()
def measure(name: str, resolution: int | None) -> dict[str, Any]:
    model = open_model("tiny" if name == "tiny" else f"random:{name}")
    side = resolution or model.native_resolution
    given = inputs(model, side, SAMPLES[name])
    network = model.load("unet")
    comparison = Comparison(network)
    exact = network(*given).sample
    layers = comparison.layers
    del network, comparison
    network = model.load("unet", Int8Storage(torch.float32))
    end = {}
    for activations in ACTIVATIONS:
        for layer in network.modules():
            if isinstance(layer, Int8Layer):
                layer.activations = activations
        end[activations] = distance(network(*given).sample, exact)
    return {
        "model": model.name,
        "resolution": side,
        "timesteps": given[1].tolist(),
        "layers": len(layers),
        "end to end": end,
        "median of layers": {
            a: statistics.median(row[a] for row in layers.values()) for a in ACTIVATIONS
        },
        "worst layers": {
            a: [
                {"layer": path, "error": row[a]}
                for path, row in sorted(layers.items(), key=lambda item: -item[1][a])[:WORST]
            ]
            for a in ACTIVATIONS
        },
        "kernels": {
            "largest": max(row["kernel"] for row in layers.values()),
            "largest of float32": max(row["float32"] for row in layers.values()),
            "same bits": sum(row["same bits"] for row in layers.values()),
        },
    }


def report(found: dict[str, Any]) -> str:
    kernels, lines = found["kernels"], [f"{found['model']} at {found['resolution']} pixels"]
    for activations, error in found["end to end"].items():
        worst = found["worst layers"][activations]
        lines += [
            f"activations {activations}: {error:.3%} end to end, a layer's median "
            f"{found['median of layers'][activations]:.3%}, the worst {len(worst)}:",
            *(f"  {row['error']:.3%}  {row['layer']}" for row in worst),
        ]
    lines.append(
        f"int8 kernels against float64 of the same quantized numbers: {kernels['largest']:.2g} at "
        f"most, PyTorch's float32 {kernels['largest of float32']:.2g}; the bits of exact integer "
        f"sums in {kernels['same bits']} of {found['layers']} layers"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=list(SAMPLES))
    parser.add_argument("--resolution", type=int, help="pixels; the model's own if not given")
    parser.add_argument("--json", type=Path, default=RESULTS / "int8_error.json")
    arguments = parser.parse_args()
    found = measure(arguments.model, arguments.resolution)
    print(report(found))
    known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    write_json(arguments.json, known | {arguments.model: found})


if __name__ == "__main__":
    main()
