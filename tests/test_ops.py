"""Every body of every registered op against its reference, and every registration."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sopt_kernels
from sopt_kernels._registry import OPS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Triton's interpreter runs on the CPU, where the addresses of a GPU mean nothing.
DEVICES = ["cpu"] + ["cuda"] * (torch.cuda.is_available() and not INTERPRETED)
BACKENDS = ["native", "triton", "reference"]


def _cases():
    for op in OPS.values():
        for k, sample in enumerate(op.samples("meta" if "philox" not in op.name else "cpu")):
            yield pytest.param(op, k, id=f"{op.name}-{k}-{_describe(sample)}")


def _describe(sample) -> str:
    first = sample[0]
    if isinstance(first, torch.Tensor):
        return "x".join(map(str, first.shape))
    dtypes = sorted({str(x.dtype).removeprefix("torch.") for x in first})
    kind = [a for a in sample if isinstance(a, str)]  # of noise, if there is any
    return "-".join([*kind, "+".join(dtypes)])


def comparable(x: torch.Tensor) -> torch.Tensor:
    """NaN equals NaN, and uint32, which few operations know on GPUs, is int32."""
    return x.view(torch.int32) if x.dtype == torch.uint32 else x.nan_to_num(12345.0)


def assert_same(op, sample, actual: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
    """Bit for bit; but Triton's interpreter has no fma, and truncates float32 to bfloat16 (3.9).

    Then a sum of noise below 8 differs by 2 ulp of each term, one of the sum, one of the dtype for
    each rounding to nearest. Integers come out the same all the same.
    """
    if op.name == "attention_forward":
        # Weights, and the result of each body, rounded once: a unit is eps / 2; and float32 sums of
        # up to 300 terms, of products and of weights.
        units = 1.5 * torch.finfo(actual.dtype).eps + 600 * torch.finfo(torch.float32).eps
        atol = units * float(sample[2].abs().max()) if actual.numel() else 0.0
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)
        return
    if op.name == "add_low_rank_":
        # One rounding of the result, and float32 sums of up to 640 products of numbers below 1,
        # of which 260 are summed again, each within the bound of a sum in any order.
        single = torch.finfo(torch.float32).eps
        rtol = torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=320 * single * 260)
        return
    if op.name.startswith("int8"):
        exact = exact and "int8" in sample
        if not exact:
            torch.testing.assert_close(actual, expected, rtol=0.0, atol=int8_error(sample, actual))
            return
    if exact or not actual.is_floating_point():
        assert torch.equal(comparable(actual), comparable(expected))
        return
    terms = 1.0
    if op.name != "box_muller":
        given = [a for a in sample if isinstance(a, torch.Tensor) and a.is_floating_point()]
        terms = sum(float(coefficients.abs().sum()) for coefficients in given)
    eps = torch.finfo(torch.float32).eps
    atol = 8 * eps * (2 * terms + 1)
    rtol = 0.0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps
    if op.name in ("add_noise_", "write_noisy_"):
        atol += 8 * rtol * len(sample[-2])  # roundings on the way
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def int8_error(sample, actual: torch.Tensor) -> float:
    """Of sums of n products, each term rounded to the dtype at most, and of the result's rounding.

    A quantized element is off by no more; that of the gradient is rounded after it met its scale.
    """
    x, codes, scales = sample[:3]
    if actual.numel() == 0:
        return 0.0
    n = codes.numel() // min(codes.shape[0], codes.shape[-1])
    largest = float(x.float().abs().max() * scales.max()) * 127 * n
    units = torch.finfo(actual.dtype).eps + n * torch.finfo(torch.float32).eps
    return 2 * units * largest


@pytest.fixture
def large_programs(monkeypatch):
    """The interpreter takes the same time for a program of any size: make do with few."""
    if INTERPRETED:
        from sopt_kernels import _triton_lists

        monkeypatch.setattr(_triton_lists, "ELEMENTS", 8192)


@pytest.mark.usefixtures("poisoned_empty", "large_programs")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op, index", list(_cases()))
def test_backend_equals_reference(op, index, device, backend):
    body = op.implementations(device)[backend]
    if not callable(body):
        pytest.skip(f"{device} {backend}: {body}")  # counted, and shown by -ra
    sample = list(op.samples(device))[index]
    expected, actual = copy.deepcopy(sample), copy.deepcopy(sample)
    results = op.reference(*expected), body(*actual)

    exact = backend != "triton" or device != "cpu"
    pairs = [results] if results[0] is not None else []
    for a, b in zip(expected, actual, strict=True):
        if isinstance(a, list):
            pairs += [(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, torch.Tensor)]
        elif isinstance(a, torch.Tensor):
            assert torch.equal(comparable(a), comparable(b)), (
                "an argument that the schema does not mutate was changed"
            )
    for reference, result in pairs:
        assert result.dtype == reference.dtype
        assert_same(op, sample, result, reference, exact)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op, index", list(_cases()))
def test_registration(op, index, device):
    """Schema, mutation, fake kernel and AOT dispatch agree with the real kernel."""
    overload = getattr(torch.ops.sopt, op.name).default
    torch.library.opcheck(overload, list(op.samples(device))[index])


@pytest.mark.skipif(INTERPRETED, reason="this is the process that the test starts")
def test_interpreted_kernels():
    """TRITON_INTERPRET is read when kernels are defined: they need a process of their own."""
    if not callable(OPS["add_noise_"].triton):
        pytest.skip("Triton is not installed")
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "triton and not attention and not low_rank",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, here / "test_ops.py", here / "test_known_answers.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


def test_backends_lists_every_body_with_a_reason_or_none():
    table = sopt_kernels.backends()
    assert {b.op for b in table} == set(OPS)
    for op in OPS:
        rows = [b for b in table if b.op == op and b.device_type == "cpu"]
        assert [b.backend for b in rows] == BACKENDS
        assert [b.selected for b in rows].count(True) == 1
        assert all(b.reason == "" for b in rows if b.selected)


@pytest.mark.parametrize(
    "backend, words", [("reference", "reference"), ("cobol", "no such backend")]
)
def test_sopt_backend_forces_one_or_fails(backend, words):
    code = "import sopt_kernels as s; print({b.backend for b in s.backends() if b.selected})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SOPT_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (backend == "reference")
    assert words in done.stdout + done.stderr
