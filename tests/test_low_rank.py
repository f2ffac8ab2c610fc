"""Properties of ``add_low_rank_``: errors against float64, pairs, threads, bad input; and the LoRA
layer that it is in."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn

from sopt.models.forwards import ForwardLora, speed_up_forwards
from sopt.models.lora import inject_lora
from sopt_kernels import add_low_rank_

LEVELS = ["sse42", "avx2", "avx512", "avx512_bf16", "neon", "neon_dot", "generic"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = torch.finfo(torch.float32).eps


def inputs(
    rows: int, width: int, size: int, rank: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, x = torch.randn(rows, size).to(dtype), torch.randn(rows, width).to(dtype)
    return y, x, torch.randn(rank, width), torch.randn(size, rank)


def assert_exact(result: Tensor, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float):
    """Within half a unit of the dtype, and the bound of float32 sums in any order: n eps of the
    sum of the products' magnitudes."""
    given, down, up = x.double(), a.double(), b.double()
    expected = y.double() + scale * given @ down.T @ up.T
    magnitudes = abs(scale) * given.abs() @ down.abs().T @ up.abs().T + y.double().abs()
    rounding = torch.finfo(y.dtype).eps / 2 * expected.abs()
    terms = x.shape[-1] + len(a) + 2
    assert ((result.double() - expected).abs() <= rounding + terms * EPS * magnitudes).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tail(dtype, level, cpu_level):
    """Of blocks of 32 rows, tiles of 4 rows and 4 ranks, packs of up to 16 and columns of 64."""
    cpu_level(level)
    shapes = [(rows, 9, 5, 2) for rows in (*range(1, 7), 31, 32, 33, 65)]
    shapes += [(3, width, 5, 2) for width in range(1, 34)]
    shapes += [(3, 9, size, 2) for size in (*range(1, 34), 63, 64, 65, 130)]
    shapes += [(6, 9, 5, rank) for rank in (*range(1, 10), 256)]
    for shape in shapes:
        y, x, a, b = inputs(*shape, dtype)
        result = y.clone()
        assert add_low_rank_(result, x, a, b, scale=0.7) is result
        assert_exact(result, y, x, a, b, 0.7)


def test_threads_do_not_change_the_bits():
    y, x, a, b = inputs(1000, 320, 320, 4, torch.bfloat16)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(add_low_rank_(y.clone(), x, a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_lists_and_leading_dimensions():
    y, x, a, b = inputs(24, 40, 30, 4, torch.bfloat16)
    expected = add_low_rank_(y.clone(), x, a, b)
    cube = y.clone().view(2, 3, 4, 30)
    add_low_rank_(cube, x.view(2, 3, 4, 40), a, b)
    assert torch.equal(cube.view(24, 30), expected)
    halves = list(y.clone().split(12))
    add_low_rank_(halves, list(x.split(12)), [a, 2 * a], [b, b])
    assert torch.equal(halves[0], expected[:12])
    assert torch.equal(halves[1], add_low_rank_(y[12:].clone(), x[12:], 2 * a, b))


def test_bad_input_changes_nothing():
    y, x, a, b = inputs(3, 8, 6, 2, torch.bfloat16)
    before = y.clone()
    cases = [
        ((y, x.float(), a, b), {}, TypeError, "x must have the dtype of y"),
        ((y, x, a.bfloat16(), b), {}, TypeError, r"a\[0\] must be float32"),
        ((y, x, b, a), {}, ValueError, "got shapes"),
        ((y, x[:2], a, b), {}, ValueError, "got shapes"),
        ((y, x, a[:0], b[:, :0]), {}, ValueError, "got shapes"),
        (([y], [x], [a], []), {}, ValueError, "b must have as many tensors as y, got 0, 1"),
        ((y.T, x, a, b), {}, ValueError, r"y\[0\] must be contiguous"),
        ((y, x, a, b), {"scale": math.nan}, ValueError, "scale must be finite, got nan"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            add_low_rank_(*arguments, **options)
    leaf = y.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="requires"):
        add_low_rank_(leaf, x, a, b)
    assert torch.equal(y, before)


class Block(nn.Module):
    """What of a U-Net the adapter and the fast forwards touch."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(64, 48)
        self.conv = nn.Conv2d(4, 4, 3)
        self.dtype, self.device = torch.bfloat16, torch.device("cpu")

    def set_attn_processor(self, processor: object) -> None:
        pass


def test_a_lora_layer_without_gradient_computes_what_peft_does():
    block = Block().to(torch.bfloat16)
    for parameter in inject_lora(block, 4, 0).values():
        nn.init.normal_(parameter)
    x = torch.randn(2, 10, 64).bfloat16()
    with torch.no_grad():
        expected = block.to_q(x)
    speed_up_forwards(block)
    assert type(block.to_q) is ForwardLora
    with torch.no_grad():
        result = block.to_q(x)
    # Each rounds once at the end; peft's base result is rounded before too, as here.
    torch.testing.assert_close(result, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-4)
    assert not torch.equal(result, block.to_q.base_layer(x))
    with torch.no_grad():
        block.to_q.scaling["default"] = 0.0
        assert torch.equal(block.to_q(x), block.to_q.base_layer(x))
    with_gradient = block.to_q(x)
    assert with_gradient.requires_grad


@pytest.mark.parametrize("option", ["use_dora", "lora_bias"])
def test_adapters_of_another_kind_stay_as_peft_computes_them(option):
    block = Block().to(torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["to_q"], **{option: True})
    inject_adapter_in_model(config, block)
    block.to_q.lora_A.float()
    block.to_q.lora_B.float()
    speed_up_forwards(block)
    assert type(block.to_q) is lora.Linear


def test_float32_keeps_the_layers_of_peft():
    block = Block()
    block.dtype = torch.float32
    inject_lora(block, 4, 0)
    speed_up_forwards(block)
    assert type(block.to_q) is lora.Linear
    assert block.conv.weight.is_contiguous()
