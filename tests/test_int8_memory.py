"""No weight is dequantized in memory: what the layers of SD1.5 allocate while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sopt.models import open_model
from sopt.quantization import quantizable_layers
from sopt_kernels import _native, int8_conv2d, int8_linear

FLOOR = 48 * 1024  # bytes of scratch that layers may take whose eighth is less
LARGE = 8 * FLOOR  # bytes of a float weight from which on the eighth is what counts
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # sopt_dtype
ELEMENTS = {"float": 0, "int8": 1}  # sopt_elements

pytestmark = pytest.mark.skipif("cpu" not in _native.LIBRARIES, reason="libsopt_cpu is missing")


class Layer(NamedTuple):
    """A layer and the image that it gets; a linear layer's rows are one of height 1."""

    codes: tuple[int, ...]  # (outputs, kernel height, kernel width, inputs)
    stride: int
    padding: int
    image: tuple[int, ...]  # (batch, height, width, channels)

    @property
    def weight(self) -> int:
        """Bytes of the weight in float32."""
        return 4 * torch.Size(self.codes).numel()

    @property
    def result(self) -> tuple[int, ...]:
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.image[1:3], self.codes[1:3], strict=True)
        )
        return self.image[0], height, width, self.codes[0]


@cache
def layers_of_sd15() -> dict[Layer, str]:
    """The distinct layers of U-Net, VAE and text encoder at 512 pixels, each with one's name."""
    model = open_model("random:sd15")
    found: dict[Layer, str] = {}

    def watch(name: str, layer: nn.Linear | nn.Conv2d) -> None:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (x,) = inputs
            if isinstance(layer, nn.Conv2d):
                outputs, channels, height, width = layer.weight.shape
                codes, image = (outputs, height, width, channels), (*x.shape[:1], *x.shape[2:])
                geometry = (int(layer.stride[0]), int(layer.padding[0]))
            else:
                outputs, channels = layer.weight.shape
                codes, image = (outputs, 1, 1, channels), (1, 1, x.numel() // channels)
                geometry = (1, 0)
            found.setdefault(Layer(codes, *geometry, (*image, channels)), name)

        layer.register_forward_pre_hook(see)

    networks = {name: model.skeleton(name) for name in ("unet", "vae", "text_encoder")}
    for component, network in networks.items():
        for path, layer in quantizable_layers(network).items():
            watch(f"{component}.{path}", layer)
    with torch.device("meta"), torch.no_grad():
        networks["unet"](torch.empty(1, 4, 64, 64), torch.tensor(1), torch.empty(1, 77, 768))
        networks["vae"].decode(networks["vae"].encode(torch.empty(1, 3, 512, 512)).latent_dist.mean)
        networks["text_encoder"](torch.zeros(1, 77, dtype=torch.long))
    return found


def scratch(layer: Layer, threads: int) -> Iterator[int]:
    """Bytes that the library asks for, in each precision, forward and backward."""
    from sopt_kernels._native_int8_layers import _backward_scratch, _forward_scratch

    def image(shape: tuple[int, ...]) -> object:
        return _native.image_entry(torch.empty(()).expand(shape))

    codes = torch.empty((), dtype=torch.int8).expand(layer.codes)
    entry = _native.Int8LayerEntry(None, None, None, *codes.shape[:1], layer.codes[3])
    entry.kernel_height, entry.kernel_width = layer.codes[1:3]
    entry.stride, entry.padding = layer.stride, layer.padding
    one = (_native.Int8LayerEntry * 1)(entry)
    for dtype in DTYPES.values():
        for elements in ELEMENTS.values():
            yield _forward_scratch(one, image(layer.image), dtype, elements, threads)
        yield _backward_scratch(one, image(layer.result), *layer.image[1:3], dtype, threads)


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_scratch_of_every_layer_of_sd15_at_512_pixels(threads):
    """An eighth of the weight. But for the few whose weight is small, at the ends of the networks
    and between two narrow levels of the VAE: 48 KiB, less than an eighth of any other layer."""
    small = {}
    for layer, name in layers_of_sd15().items():
        most = max(scratch(layer, threads))
        if layer.weight >= LARGE:
            assert 0 < most <= layer.weight / 8, (name, layer)
        else:
            small[name] = most
            assert 0 < most <= FLOOR, (name, layer, most)
    print({name: f"{most / 1024:.1f} KiB" for name, most in small.items()})
    assert len(small) == 10
    assert all(".conv_" in name or "quant_conv" in name for name in small)


def observed(call: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What a call gives, and the bytes of each block that PyTorch's allocator gives out meanwhile,
    inside operators too; libsopt has no other memory than what it is given."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return result, [event.nbytes() for event in events if event.nbytes() > 0]


def one_of_each() -> list[tuple[str, Layer]]:
    """A layer of each weight, with a small image: what is allocated is known by the test above."""
    found = {}
    for layer, name in layers_of_sd15().items():
        side = 1 if layer.image[1] == 1 else 8
        width = min(layer.image[2], 77 if side == 1 else 8)
        found[layer.codes, layer.stride] = (
            name,
            layer._replace(image=(1, side, width, layer.codes[3])),
        )
    return list(found.values())


@pytest.mark.parametrize("activations", ELEMENTS)
def test_nothing_else_is_allocated(activations):
    """The result, and the scratch: for a layer of every weight, and for its gradient."""
    for name, layer in one_of_each():
        _, height, width, inputs = layer.image
        codes = torch.ones(layer.codes, dtype=torch.int8)
        vectors = torch.ones(len(codes)), torch.ones(len(codes))
        if height == 1:
            x = torch.ones(1, width, inputs, dtype=torch.bfloat16, requires_grad=True)
            forward = partial(int8_linear, x, codes[:, 0, 0], *vectors)
        else:
            x = torch.ones(1, inputs, height, width, dtype=torch.bfloat16, requires_grad=True)
            geometry = {"stride": layer.stride, "padding": layer.padding}
            forward = partial(int8_conv2d, x, codes, *vectors, **geometry)
        y, found = observed(partial(forward, activations=activations))
        (gradient,), of_backward = observed(partial(torch.autograd.grad, y, x, torch.ones_like(y)))
        for result, blocks in ((y, found), (gradient, of_backward)):
            blocks.remove(result.nbytes)
            assert max(blocks) <= max(layer.weight / 8, FLOOR), (name, layer, blocks)
