"""Properties of ``int8_linear`` and ``int8_conv2d`` that one comparison of bodies does not show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from sopt_kernels import int8_conv2d, int8_linear
from sopt_kernels._int8_layers import quantize_pixels
from sopt_kernels._registry import OPS

LEVELS = ["sse42", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "neon", "neon_dot", "generic"]


def random_layer(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    return codes, torch.rand(shape[0]) / 100 + 0.001, torch.randn(shape[0])


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """In float64; a convolution's in the order of PyTorch."""
    weight = codes.double() * scales.double().view(-1, *[1] * (codes.dim() - 1))
    return weight.movedim(-1, 1)


def test_largest_error_against_the_same_quantized_numbers_in_float64():
    """Integers are exact: what is left is the rounding of 9 sums, 3 factors and the result."""
    x = torch.randn(1, 320, 12, 9)
    codes, scales, bias = random_layer(70, 3, 3, 320)
    q, s = quantize_pixels(x.permute(0, 2, 3, 1))
    known = (q.double() * s.double()).permute(0, 3, 1, 2)
    expected = conv2d(known, dequantized(codes, scales), bias.double(), padding=1)
    actual = int8_conv2d(x, codes, scales, bias, padding=1)
    largest = float((actual - expected).abs().max() / expected.abs().max())
    print(f"largest error relative to the largest result: {largest:.2g}")
    size = conv2d(known.abs(), dequantized(codes, scales).abs(), padding=1)
    assert ((actual - expected).abs() <= 13 * 2.0**-24 * (size + bias.abs()[:, None, None])).all()


def test_pixels_are_quantized_by_a_quotient_that_is_rounded_once():
    """Not by 127 times a rounded reciprocal, which is another number for a third of all scales."""
    most = torch.rand(4096, 1) + 0.5
    halves = (torch.randint(0, 127, most.shape) + 0.5) / 127 * most  # where a last bit decides
    q, scales = quantize_pixels(torch.cat([most, halves], 1)[None])
    assert torch.equal(q[0, :, :1], torch.full_like(most, 127))
    assert torch.equal(q[0, :, 1:], (halves * (127 / most.double()).float()).round())
    assert torch.equal(scales[0], (most.double() / 127).float())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("extreme", [127, -127])
def test_extreme_codes_do_not_saturate(level, extreme, cpu_level):
    cpu_level(level)
    x = torch.ones(3, 4096)
    x[1], x[2, ::2] = -1, -1
    codes = torch.full((33, 4096), extreme, dtype=torch.int8)
    y = int8_linear(x, codes, torch.ones(33))
    assert torch.equal(y, torch.tensor([4096.0, -4096, 0])[:, None].expand(3, 33) * extreme)


@pytest.mark.parametrize("level", LEVELS)
def test_float_activations_on_every_level(level, cpu_level):
    """Weight-only and gradients: sums in an order of each level's own."""
    from test_ops import int8_error

    cpu_level(level)
    for name in ("int8_linear", "int8_conv2d", "int8_linear_backward", "int8_conv2d_backward"):
        for sample in OPS[name].samples("cpu"):
            if "int8" not in sample:
                actual, expected = OPS[name].native["cpu"](*sample), OPS[name].reference(*sample)
                atol = int8_error(sample, actual)
                torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_threads_and_strides_change_no_bit(activations):
    x = torch.randn(2, 48, 21, 18, dtype=torch.bfloat16)
    layer = random_layer(130, 3, 3, 48)
    run = {"padding": 1, "activations": activations}
    expected = int8_conv2d(x, *layer, **run)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(int8_conv2d(x, *layer, **run), expected)
    finally:
        torch.set_num_threads(before)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(int8_conv2d(last, *layer, **run), expected)
    wide = torch.randn(2, 48, 21, 36, dtype=torch.bfloat16)
    wide[..., ::2] = x
    assert torch.equal(int8_conv2d(wide[..., ::2], *layer, **run), expected)


def test_a_pixel_that_is_not_finite_shows_where_it_is_read_and_nowhere_else():
    x = torch.randn(1, 16, 8, 8)
    layer = random_layer(8, 3, 3, 16)
    clean = int8_conv2d(x, *layer, padding=1)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[0, 5, 3, 4] = bad
        y = int8_conv2d(x, *layer, padding=1)
        assert y[..., 2:5, 3:6].isnan().all()
        y[..., 2:5, 3:6] = clean[..., 2:5, 3:6]
        assert torch.equal(y, clean)


def test_rows_of_zeros_and_of_tiny_numbers():
    codes, scales, bias = random_layer(5, 32)
    x = torch.stack([torch.zeros(32), torch.full((32,), 2.0**-120), torch.full((32,), 2.0**-99)])
    y = int8_linear(x, codes, scales, bias)
    assert torch.equal(y[:2], bias.expand(2, 5))
    exact = linear(x[2].double(), dequantized(codes, scales), bias.double())
    torch.testing.assert_close(y[2].double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_that_of_the_dequantized_layer(dtype, activations):
    x = torch.randn(2, 40, 9, 10, dtype=dtype, requires_grad=True)
    codes, scales, bias = random_layer(24, 3, 3, 40)
    y = int8_conv2d(x, codes, scales, bias, stride=2, padding=1, activations=activations)
    gradient = torch.randn_like(y)
    (actual,) = torch.autograd.grad(y, x, gradient)
    known = x.detach().double().requires_grad_()
    z = conv2d(known, dequantized(codes, scales), stride=2, padding=1)
    (expected,) = torch.autograd.grad(z, known, gradient.double())
    # The largest gradient sums 24 * 4 products of at most 0.011 * 127 and a few.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=eps, atol=96 * eps)

    rows = torch.randn(3, 5, 40, dtype=dtype, requires_grad=True)
    y = int8_linear(rows, codes[:, 0, 0].contiguous(), scales, activations=activations)
    (actual,) = torch.autograd.grad(y.sum(), rows)
    expected = dequantized(codes[:, 0, 0], scales).sum(0).expand(rows.shape)
    torch.testing.assert_close(actual.double(), expected, rtol=eps, atol=24 * eps)


def test_autograd_keeps_codes_and_scales_only():
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    codes, scales, bias = random_layer(4, 3, 3, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        int8_conv2d(x, codes, scales, bias, padding=1)
    assert {t.data_ptr() for t in kept} == {codes.data_ptr(), scales.data_ptr()}


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "x must be float32"),
        ({"x": torch.zeros(2, 4)}, ValueError, "x must have 3 channels"),
        ({"codes": torch.zeros(5, 3)}, TypeError, "codes must be int8"),
        ({"codes": torch.zeros(3, 5, dtype=torch.int8).T}, ValueError, "codes must be contiguous"),
        ({"codes": torch.zeros(3, dtype=torch.int8)}, ValueError, r"codes must be \(outputs"),
        ({"scales": torch.ones(4)}, ValueError, r"scales must be contiguous, one per row .* \(5\)"),
        ({"scales": torch.ones(5).double()}, TypeError, "scales must be float32"),
        ({"bias": torch.ones(4)}, ValueError, "bias must be contiguous, one per row"),
        ({"activations": "int4"}, ValueError, "activations must be one of .* got 'int4'"),
        ({"scales": torch.ones(5, requires_grad=True)}, RuntimeError, "scales requires grad"),
    ],
)
def test_bad_arguments_of_linear_layers(change, error, words):
    good = {"x": torch.zeros(2, 3), "codes": torch.ones(5, 3, dtype=torch.int8)}
    good |= {"scales": torch.ones(5), "bias": torch.ones(5)}
    with pytest.raises(error, match=words):
        int8_linear(**good | change)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x must be \(batch, channels, height, width\)"),
        ({"x": torch.zeros(1, 3, 2, 4)}, "x must have a side of at least 3, got 2"),
        ({"stride": 0}, r"stride must be in \[1, 64\], got 0"),
        ({"padding": -1}, r"padding must be in \[0, 64\], got -1"),
    ],
)
def test_bad_arguments_of_convolutions(change, words):
    good = {"x": torch.zeros(1, 3, 4, 4), "codes": torch.ones(5, 3, 3, 3, dtype=torch.int8)}
    with pytest.raises(ValueError, match=words):
        int8_conv2d(**good | {"scales": torch.ones(5)} | change)
