"""Properties of ``attention_forward``: errors against float64, strides, threads, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sopt_kernels import _native, attention_forward
from sopt_kernels._registry import OPS

LEVELS = ["sse42", "avx2", "avx512", "avx512_bf16", "neon", "neon_dot", "generic"]
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [8, 40, 64, 72, 80, 160, 256]
OP = OPS["attention_forward"]

needs_cpu_library = pytest.mark.skipif(
    "cpu" not in _native.LIBRARIES, reason=_native.UNAVAILABLE.get("cpu", "")
)


def random_heads(batch: int, heads: int, rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """As a linear layer leaves them: the heads of a row side by side."""
    return torch.randn(batch, rows, heads, d).to(dtype).transpose(1, 2)


def inputs(n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(random_heads(2, 3, rows, d, dtype) for rows in (n, m, m))


def exact(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    q, k, v = (x.double() for x in (query, key, value))
    return torch.softmax(q @ k.mT * (scale or query.shape[-1] ** -0.5), -1) @ v


def assert_as_exact_as_torch(result: Tensor, *arguments: Tensor, scale: float | None = None):
    """Root mean square error at most 1.1 times that of PyTorch's kernel in 16 bits, which rounds
    weights and result too; 2.5 times in float32, where a score is one sum in order and not of
    several parts."""
    expected = exact(*arguments, scale=scale)
    theirs = scaled_dot_product_attention(*arguments, scale=scale)
    own, other = ((x.double() - expected).norm().item() for x in (result, theirs))
    ratio = 2.5 if result.dtype == torch.float32 else 1.1
    assert own <= ratio * other + torch.finfo(torch.float32).eps * expected.norm().item()


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", SIZES)
def test_error_is_that_of_pytorch(d, dtype, level, cpu_level):
    cpu_level(level)
    for n, m in ((64, 64), (33, 77), (5, 130), (130, 257)):
        arguments = inputs(n, m, d, dtype)
        assert_as_exact_as_torch(attention_forward(*arguments), *arguments)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_keys_and_queries(dtype, level, cpu_level):
    """Each tail of tiles of 8 keys and 32 queries and of blocks of 128; d = 8, 640 queries: two
    blocks of 512."""
    cpu_level(level)
    cases = [(3, m) for m in (*range(1, 18), 127, 128, 129)] + [(n, 9) for n in range(1, 34)]
    for n, m in [*cases, (640, 3)]:
        arguments = inputs(n, m, 8, dtype)
        u = torch.finfo(dtype).eps / 2
        # Of weights and result, each rounded once, and in float32 of the sums of d and m terms
        tolerance = (2 * u + 40 * torch.finfo(torch.float32).eps) * arguments[2].abs().max().item()
        result = attention_forward(*arguments).double()
        assert (result - exact(*arguments)).abs().max().item() <= tolerance, (n, m)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_far_apart(dtype, level, cpu_level):
    """Weights that vanish, maxima that rise late or lie far below zero."""
    cpu_level(level)
    query, key, value = inputs(40, 300, 40, dtype)
    for factor in (1.0, -1.0):
        rising = (key * torch.linspace(0, 30, 300).view(-1, 1) * factor).to(dtype)
        assert_as_exact_as_torch(attention_forward(query, rising, value), query, rising, value)
    ones = torch.ones_like(query)
    low = (-20 * torch.rand(key.shape) - 40).to(dtype)
    assert_as_exact_as_torch(attention_forward(ones, low, value), ones, low, value)


@needs_cpu_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_a_number_stays_in_its_row(dtype):
    query, key, value = inputs(40, 50, 40, dtype)
    query[1, 2, 7, 5] = math.nan
    result = attention_forward(query, key, value)
    assert result[1, 2, 7].isnan().all()
    assert result.isnan().sum() == 40
    query[1, 2, 7, 5], value[0, 0, 3, 2] = 0.0, math.inf
    result = attention_forward(query, key, value)
    assert (result[0, 0, :, 2] == math.inf).all()
    assert result.isfinite().sum() == result.numel() - 40


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_strides_of_any_kind_give_the_same(dtype):
    batch, heads, n, d = 2, 3, 40, 40
    joint = torch.randn(batch, n, 3, heads, d).to(dtype)  # one linear layer for all three
    views = [joint[:, :, i].transpose(1, 2) for i in range(3)]
    expected = attention_forward(*(x.contiguous() for x in views))
    assert torch.equal(attention_forward(*views), expected)
    shared = [x[:1, :1].expand(batch, heads, n, d) for x in views]  # strides of zero
    assert torch.equal(
        attention_forward(*shared), attention_forward(*(x.contiguous() for x in shared))
    )
    apart = [x.mT.contiguous().mT for x in views]  # elements of a row are not adjacent
    assert_as_exact_as_torch(attention_forward(*apart), *views)


@needs_cpu_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_the_bits(dtype):
    arguments = inputs(600, 200, 64, dtype)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(attention_forward(*arguments))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_scale_and_layout():
    arguments = inputs(20, 30, 40, torch.float32)
    result = attention_forward(*arguments, scale=0.7)
    assert_as_exact_as_torch(result, *arguments, scale=0.7)
    assert result.transpose(1, 2).is_contiguous()
    assert torch.equal(attention_forward(*arguments), attention_forward(*arguments, scale=40**-0.5))


def test_nothing_to_do():
    assert attention_forward(*(torch.empty(0, 2, 3, 8),) * 3).shape == (0, 2, 3, 8)
    keys = torch.zeros(1, 2, 3, 8)
    assert attention_forward(torch.empty(1, 2, 0, 8), keys, keys).shape == (1, 2, 0, 8)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic):
    def block(hidden: Tensor) -> Tensor:
        heads = hidden.view(2, -1, 4, 40).transpose(1, 2)
        return attention_forward(heads, heads, heads).transpose(1, 2).reshape(hidden.shape) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for n in (12, 20):
        hidden = torch.randn(2, n, 160)
        assert torch.equal(compiled(hidden), block(hidden))


X = torch.zeros(2, 3, 4, 8)


@pytest.mark.parametrize(
    "arguments, scale, error, words",
    [
        ((X.double(), X, X), None, TypeError, "query must be float32, .*, got torch.float64"),
        ((X, X.bfloat16(), X), None, TypeError, "key must have the dtype and device of query"),
        ((X, X, X.to("meta")), None, TypeError, "value must have the dtype and device of query"),
        ((X[0], X, X), None, ValueError, r"query must be \(batch, heads, n, d\)"),
        ((X[..., :0], X, X), None, ValueError, "d >= 1"),
        ((X, X[:, :2], X), None, ValueError, r"key must be .*got shapes \(2, 2, 4, 8\)"),
        ((X, X, X[..., :4]), None, ValueError, "value must be .* the other sizes of query"),
        ((X, X[:, :, :0], X), None, ValueError, "key must be .* m >= 1"),
        ((X, X[:, :, :2], X), None, ValueError, "as many rows, got 2 and 4"),
        ((X, X, X), 0.0, ValueError, "scale must be positive and finite, got 0.0"),
        ((X, X, X), math.inf, ValueError, "scale must be positive and finite, got inf"),
        ((X, X, X), math.nan, ValueError, "scale must be positive and finite, got nan"),
        ((X, X, X.clone().requires_grad_()), None, RuntimeError, "value requires grad"),
    ],
)
def test_bad_input(arguments, scale, error, words):
    with pytest.raises(error, match=words):
        attention_forward(*arguments, scale=scale)


def test_no_gradient_is_needed_without_grad_mode():
    x = X.clone().requires_grad_()
    with torch.no_grad():
        assert not attention_forward(x, x, x).requires_grad


@needs_cpu_library
def test_errors_of_the_library():
    function = _native.LIBRARIES["cpu"].sopt_attention_forward_cpu
    x, address = _native.rows(X), X.data_ptr()
    for numbers, words in (
        ((-1, 1, 1, 1, 8, 1.0, 0), "batch, heads and queries must be >= 0, got -1, 1 and 1"),
        ((1, 1, 1, 0, 8, 1.0, 0), "keys must be >= 1, got 0"),
        ((1, 1, 1, 1, 12, 1.0, 0), "size must be a multiple of 8 between 8 and 256, got 12"),
        ((1, 1, 1, 1, 264, 1.0, 0), "got 264"),
        ((1, 1, 1, 1, 8, -1.0, 0), "scale must be positive and finite, got -1"),
        ((1, 1, 1, 1, 8, 1.0, 2), "dtype must be float32 or bfloat16, got 2"),
    ):
        with pytest.raises(RuntimeError, match=words):
            function(x, x, x, address, *numbers)
    with pytest.raises(ValueError, match="adjacent"):
        _native.rows(X.mT)
