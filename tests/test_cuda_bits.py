"""The CUDA bodies give the bits of the CPU: on a GPU, and their source on the CPU everywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from cuda_bodies import Bodies, on_cpu, terms_of
from golden import golden
from test_known_answers import GOLDEN
from test_ops import assert_same

from sopt_kernels import _native_cuda
from sopt_kernels._arguments import DTYPES
from sopt_kernels._native import DEVICE
from sopt_kernels._noise import KINDS
from sopt_kernels._registry import OPS

TILE = 4096  # kTile of csrc/cuda/tile.cuh: elements of a block of threads
SIZES = [1, 3, 4, 5, 127, 128, 129, TILE - 1, TILE, TILE + 1, 3 * TILE + 77]
OFFSETS = (0, 1, 4, 7)  # elements: of these addresses, vectors may use the first
HALVES = [torch.bfloat16, torch.float16]
ROUNDINGS = [([], None), ([], [9]), ([1, 2], None), ([1, 2], [9, -8, 7])]


@pytest.fixture(params=["emulated"] + ["native", "triton"] * torch.cuda.is_available())
def bodies(request, monkeypatch):
    if request.param != "emulated":
        return Bodies(request.param, "cuda")
    request.getfixturevalue("emulated").replace_gpu(monkeypatch)
    return Bodies("emulated", "cpu")


def moved(arguments, device):
    """A copy of the arguments of an op, with all tensors of lists, and no others, on ``device``."""
    lists = [[x.to(device) for x in a] if is_list(a) else a for a in arguments]
    return copy.deepcopy(lists)


def is_list(a) -> bool:
    return isinstance(a, list) and all(isinstance(x, torch.Tensor) for x in a)


@pytest.fixture
def in_device_memory(bodies, monkeypatch):
    """A function after which numbers lie there, also where a GPU is emulated."""

    def change() -> None:
        if bodies.backend == "emulated":
            monkeypatch.setattr(_native_cuda, "HOST", DEVICE)

    return change


def tensor(seeds: list[int] | None) -> torch.Tensor | None:
    return None if seeds is None else torch.tensor(seeds)


@pytest.mark.parametrize("memory", ["host", "device"])
@pytest.mark.parametrize("op", [op for op in OPS if "cuda" in OPS[op].native])
def test_samples(emulated, monkeypatch, op, memory):
    """On a GPU, test_ops.py has them."""
    emulated.replace_gpu(monkeypatch)
    if memory == "device":
        monkeypatch.setattr(_native_cuda, "HOST", DEVICE)
    for sample in OPS[op].samples("cpu"):
        expected, actual = copy.deepcopy(sample), copy.deepcopy(sample)
        before = emulated.launches
        results = on_cpu(op, *expected), OPS[op].native["cuda"](*actual)
        assert emulated.launches - before <= (2 if "int8" in sample else 1)  # pixels are quantized
        for a, b in zip(expected, actual, strict=True):
            if is_list(a):
                assert all(map(torch.equal, b, a))
            elif isinstance(a, torch.Tensor):
                assert torch.equal(b, a)
        if results[0] is not None:
            assert_same(OPS[op], sample, results[1], results[0], exact=True)


@pytest.mark.parametrize("line", GOLDEN, ids="-".join)
def test_golden_hashes(bodies, line):
    assert golden(*line, bodies.__getitem__, bodies.device) == GOLDEN[line]


@pytest.mark.parametrize("terms", [0, 1, 3, 16, 17, 256, 300])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_any_size_and_address(bodies, in_device_memory, dtype, kind, terms):
    """And nothing outside of the tensors is written. 17 terms take the larger arguments, and 300
    do not fit into a launch."""
    if terms > _native_cuda.MAX_HOST_TERMS:
        in_device_memory()
    for size in SIZES if terms < 4 else (129,):
        for before in OFFSETS:
            expected = torch.linspace(-2, 2, before + size + 9).to(dtype)
            actual = expected.to(bodies.device, copy=True)
            ours, theirs = (x[before : before + size] for x in (actual, expected))
            rest = (*terms_of(terms), [-3], kind, 0.9, [], None)
            bodies["add_noise_"]([ours], *rest)
            on_cpu("add_noise_", [theirs], *rest)
            assert torch.equal(actual.cpu(), expected), (size, before)


@pytest.mark.parametrize("cuts, seeds", ROUNDINGS[1:])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_roundings_of_any_size_and_address(bodies, dtype, kind, cuts, seeds):
    for size in SIZES:
        for before in OFFSETS[:2]:
            expected = torch.linspace(-2, 2, before + size + 9).to(dtype)
            actual = expected.to(bodies.device, copy=True)
            ours, theirs = (x[before : before + size] for x in (actual, expected))
            rest = (*terms_of(3), [-3], kind, 0.9, cuts, tensor(seeds))
            bodies["add_noise_"]([ours], *rest)
            on_cpu("add_noise_", [theirs], *rest)
            assert torch.equal(actual.cpu(), expected), (size, before)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("roundings", [16, 17, 256, 257, 600])
def test_any_number_of_roundings(bodies, in_device_memory, roundings, stochastic):
    """Also more than a launch has room for; the base of write_noisy_ is read in the first alone."""
    terms = 2 * roundings + 1
    if terms > _native_cuda.MAX_HOST_TERMS:
        in_device_memory()
    base = torch.linspace(-2, 2, 300).bfloat16()
    actual, expected = (torch.full_like(base, 7.0, device=d) for d in (bodies.device, "cpu"))
    rounding = torch.arange(roundings + 1) * 3 - 100 if stochastic else None
    rest = (*terms_of(terms), [8], "rademacher", 0.999, list(range(2, terms, 2)), rounding)
    bodies["write_noisy_"]([actual], [base.to(bodies.device)], *rest)
    on_cpu("write_noisy_", [expected], [base], *rest)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_value_is_kept_and_rounded(bodies, dtype, stochastic):
    """On a GPU by instructions; emulated, by what stands in for them."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    rounding = torch.tensor([5]) if stochastic else None
    for decay in (1.0, 0.99, 1.001, 2.0**-9, 3.0 * 2.0**-14):  # to subnormals and infinity
        actual, expected = every.to(bodies.device, copy=True), every.clone()
        rest = (*terms_of(0), [0], "gaussian", decay, [], rounding)
        bodies["add_noise_"]([actual], *rest)
        if stochastic:
            on_cpu("add_noise_", [expected], *rest)
        else:
            expected = (every.float() * torch.tensor(decay)).to(dtype)
        assert torch.equal(actual.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(actual.cpu().isnan(), every.isnan())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_restores_of_any_size_and_address(bodies, dtype, grad_dtype, kind):
    for size in SIZES:
        for before in OFFSETS[:2]:
            whole = torch.linspace(-2, 2, before + size + 9)
            expected = whole.to(dtype), whole.cos().to(grad_dtype)
            actual = [x.to(bodies.device, copy=True) for x in expected]
            ours, theirs = ([x[before : before + size] for x in y] for y in (actual, expected))
            rest = (torch.tensor([-7]), torch.tensor([-0.3]), torch.tensor([1.7]), [-3], kind)
            bodies["restore_accumulate_"](ours[:1], ours[1:], *rest)
            on_cpu("restore_accumulate_", theirs[:1], theirs[1:], *rest)
            for a, b in zip(actual, expected, strict=True):
                assert torch.equal(a.cpu(), b), (size, before)


@pytest.mark.parametrize("rows", ["one", "each", "odd"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_any_size_address_and_rows(bodies, kind, rows):
    """Codes of all values: perturbations wrap, updates clamp. 17 terms, the larger arguments."""
    for size in SIZES:
        count = {"one": 1, "each": size, "odd": next(k for k in (11, 3, 1) if size % k == 0)}[rows]
        scales = torch.linspace(0.02, 0.9, count)
        for before in OFFSETS:
            for terms in (1, 3) if size != 129 else (0, 1, 3, 17):
                seeds, coefficients = terms_of(terms)
                factor = -600 if terms == 3 else -9  # the first clamps whatever moves
                whole = (torch.arange(before + size + 9) * 37 % 256 - 128).to(torch.int8)
                perturb = (seeds, 9 * coefficients, [-3], kind, 64, torch.tensor([-7]))
                directions = (seeds * 3 + 1, torch.tensor([0.4]))
                update = (
                    seeds,
                    factor * coefficients,
                    [-3],
                    kind,
                    8,
                    torch.tensor([11]),
                    *directions,
                )
                for op, rest in (("perturb_int8_", perturb), ("update_int8_", update)):
                    expected, actual = whole.clone(), whole.to(bodies.device, copy=True)
                    counts = [torch.tensor(5, device=d) for d in (bodies.device, "cpu")]
                    ours, theirs = ((c,) if op == "update_int8_" else () for c in counts)
                    part = slice(before, before + size)
                    bodies[op]([actual[part]], [scales.to(bodies.device)], *rest, *ours)
                    on_cpu(op, [expected[part]], [scales], *rest, *theirs)
                    assert torch.equal(actual.cpu(), expected), (op, size, before, terms)
                    assert counts[0].item() == counts[1].item()


def test_long_lists_of_mixed_dtypes(bodies):
    sizes = [(k * 37) % 300 + TILE * (k % 50 == 7) for k in range(1100)]  # some are empty
    expected = [torch.linspace(-1, 1, n).to(DTYPES[k % 3]) for k, n in enumerate(sizes)]
    grads = [torch.linspace(-1, 1, n).to(DTYPES[k % 2]) for k, n in enumerate(sizes)]
    streams = [k * 0x0F1E_2D3C_4B5A_6978 % 2**63 - 2**62 for k in range(1100)]
    codes = [(x * 100).to(torch.int8) for x in expected]
    scales = [torch.full((1,), 0.1)] * 1100
    one = torch.tensor([1])
    for op, arguments in (
        ("add_noise_", (expected, *terms_of(2), streams, "gaussian", 1.0, [], None)),
        ("add_noise_", (expected, *terms_of(2), streams, "rademacher", 1.0, [1], None)),
        ("restore_accumulate_", (expected, grads, one, -one.float(), one / 2, streams, "gaussian")),
        ("perturb_int8_", (codes, scales, *terms_of(2), streams, "gaussian", 8, one)),
    ):
        here, there = moved(arguments, "cpu"), moved(arguments, bodies.device)
        on_cpu(op, *here)
        bodies[op](*there)
        for a, b in zip(here, there, strict=True):
            if is_list(a):
                assert all(torch.equal(x, y.cpu()) for x, y in zip(a, b, strict=True))
