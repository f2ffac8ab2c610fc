"""torch.set_default_dtype and set_default_device, which other programs set, change nothing here."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_models import Training, same

import sopt
import sopt_kernels
from sopt.optim import precision_report
from sopt.quantization.layers import quantize_weight
from sopt_kernels._registry import OPS

ROOT = Path(__file__).parents[1]
NAMES = "arange as_tensor empty eye full linspace ones rand randint randn randperm tensor zeros"
FACTORIES = {f"torch.{name}" for name in NAMES.split()}
# What serves programs that have defaults of their own; a run of sopt's begins with torch's.
FILES = [
    path
    for folder in ("sopt_kernels", "sopt/optim", "sopt/quantization", "sopt/steps")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_new_tensors_say_their_dtype_and_device(path):
    made = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FACTORIES
    ]
    silent = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in made
        if not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
    ]
    assert not silent


@contextmanager
def defaults(dtype, device):
    """Those of another program."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


AMBIENT = pytest.mark.parametrize(
    "dtype, device", [(torch.bfloat16, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")]
)


def tensors_of(values):
    """All tensors among ``values``, which may be lists of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from tensors_of(value)


@AMBIENT
@pytest.mark.parametrize("body", ["native", "reference"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_bodies_of_the_ops(op, body, dtype, device):
    run = op.implementations("cpu")[body]
    if not callable(run):
        pytest.skip(f"{body}: {run}")
    expected = [[run(*sample), *sample] for sample in op.samples("cpu")]
    with defaults(dtype, device):
        found = [[run(*sample), *sample] for sample in op.samples("cpu")]
    for x, y in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert (x.dtype, x.device) == (y.dtype, y.device)
        assert torch.equal(*(z.flatten().view(torch.uint8) for z in (x, y)))


@AMBIENT
def test_functions_of_the_kernels(dtype, device):
    def results():
        drawn = sopt_kernels.noise((4, 8), 1, "drawn")
        added = sopt_kernels.add_noise_(base.clone(), [1, 2], [0.1, 0.7], streams="w")
        codes, scales = quantize_weight(added)
        clamped = sopt_kernels.clamp_codes_(codes, 8)
        return [drawn, added, codes, scales, clamped, sopt_kernels.philox4x32([1] * 4, [2, 3])]

    base = torch.linspace(-1, 1, 32).view(4, 8)
    expected = results()
    with defaults(dtype, device):
        found = results()
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@AMBIENT
@pytest.mark.parametrize("options", [
    {}, {"restore": "blocks", "estimator": "one-sided"}, {"rounding": "stochastic"},
], ids=["copy", "blocks", "stochastic"])  # fmt: skip
def test_a_training_and_its_replay(options, dtype, device, tmp_path):
    """Losses are tensors, and numbers: their difference must not be that of rounded ones."""

    def run(training):
        results = [str(precision_report(training.optimizer))]
        for step in range(4):
            convert = float if step % 2 else torch.Tensor.clone
            loss = training.optimizer.step(lambda s=step, c=convert: c(training.loss(s)))
            results.append((loss.item(), loss.dtype, loss.device))
        return results

    plain = Training(**options)
    expected = run(plain)
    ambient, replayed = Training(**options, log=tmp_path / "log"), Training()
    named = {**dict(replayed.model.named_parameters()), "codes": replayed.codes}
    with defaults(dtype, device):
        assert run(ambient) == expected
        sopt.replay(named, tmp_path / "log", scales={"codes": replayed.scales})
    assert same(ambient.state(), plain.state())
    assert same(replayed.state(), plain.state())
