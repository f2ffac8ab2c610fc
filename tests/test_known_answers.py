"""Known answers through every body: Random123's vectors of Philox4x32-10, kat/gaussian.txt and
kat/golden.txt.

The last two never change in version 1 of the noise: a failure here is an error of the code.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from golden import golden, names

from sopt_kernels import philox4x32
from sopt_kernels._philox import MASK32
from sopt_kernels._registry import OPS

KAT = Path(__file__).parents[1] / "kat"
BACKENDS = ["native", "triton", "reference"]
# Triton's interpreter runs on the CPU, where the addresses of a GPU mean nothing.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] + ["cuda"] * (torch.cuda.is_available() and not INTERPRETED)
LEVELS = ["sse42", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "neon", "neon_dot", "generic"]


def rows(name):
    lines = (KAT / name).read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


VECTORS = [[int(word, 16) for word in row] for row in rows("philox4x32_10.txt")]
PAIRS = [row[1:] for row in rows("gaussian.txt") if row[0] == "pair"]
STREAMS: list[tuple[int, int, int, list[float]]] = []  # seed, stream, first element, samples
for row in rows("gaussian.txt"):
    if row[0] == "stream":
        STREAMS.append((*(int(word, 16) for word in row[1:]), []))
    elif row[0] != "pair":
        STREAMS[-1][-1].extend(map(float.fromhex, row))
GOLDEN = {tuple(line): hash_ for *line, hash_ in rows("golden.txt")}


def body(op, device, backend):
    found = OPS[op].implementations(device)[backend]
    return found if callable(found) else pytest.skip(f"{device} {backend}: {found}")


def uint32(words) -> torch.Tensor:
    words = torch.as_tensor(words)
    return words.sub(words >> 31 << 32).to(torch.int32).view(torch.uint32)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def assert_samples(actual, expected, backend):
    """Exactly; 2 ulp of max(abs(z), 2**-10) for Triton's interpreter, which has no fma."""
    actual, expected = actual.cpu(), torch.tensor(expected)
    if backend != "triton" or not INTERPRETED:
        assert torch.equal(actual, expected)
        return
    size = expected.abs().clamp_min(2.0**-10).log2().floor()
    ulps = (actual - expected).abs() / torch.exp2(size - 23)
    assert ulps.max() <= 2


def test_the_files_are_complete():
    corners = {"00000000", "7fffffff", "80000000", "ffffffff"}
    assert {(a, b) for a, b, _, _ in PAIRS} == {(a, b) for a in corners for b in corners}
    assert sum(len(samples) for *_, samples in STREAMS) == 4096
    assert len(VECTORS) == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_philox_vectors(device, backend):
    philox = body("philox4x32", device, backend)
    for *counter, k0, k1, w0, w1, w2, w3 in VECTORS:
        words = philox(uint32([counter]).to(device), uint32([k0, k1]))
        assert words.tolist() == [[w0, w1, w2, w3]]


def test_public_philox_takes_integers_and_tensors():
    *counter, k0, k1, w0, w1, w2, w3 = VECTORS[2]
    assert philox4x32(counter, (k0, k1)).tolist() == [w0, w1, w2, w3]
    block = uint32([[counter], [counter]])  # (2, 1, 4)
    assert philox4x32(block, uint32([k0, k1])).tolist() == [[[w0, w1, w2, w3]]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_of_the_corner_words(device, backend):
    words = uint32([int(w, 16) for w0, w1, *_ in PAIRS for w in (w0, w1)]).to(device)
    expected = [float.fromhex(z) for *_, z0, z1 in PAIRS for z in (z0, z1)]
    assert_samples(body("box_muller", device, backend)(words), expected, backend)


@pytest.mark.parametrize("index", range(len(STREAMS)))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_streams_from_counters(index, device, backend):
    """Also the blocks past 2**32, which no tensor of a test reaches."""
    seed, stream, first, expected = STREAMS[index]
    block = torch.arange(first // 4, (first + len(expected)) // 4)
    low, high = (torch.full_like(block, part & MASK32) for part in (stream, stream >> 32))
    counters = uint32(torch.stack([block & MASK32, block >> 32, low, high], dim=1)).to(device)
    words = body("philox4x32", device, backend)(counters, uint32([seed & MASK32, seed >> 32]))
    samples = body("box_muller", device, backend)(words.view(-1))
    assert_samples(samples, expected, backend)


def add_to_zeros(launch, index, device):
    seed, stream, first, expected = STREAMS[index]
    x = torch.zeros(first + len(expected), device=device)
    terms = torch.tensor([signed(seed)]), torch.ones(1)
    launch([x], *terms, [signed(stream)], "gaussian", 1.0, [], None)
    return x[first:], expected


@pytest.mark.parametrize("index", [k for k, s in enumerate(STREAMS) if s[2] < 2**20])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_gaussian_streams(index, device, backend):
    samples, expected = add_to_zeros(body("add_noise_", device, backend), index, device)
    assert_samples(samples, expected, backend)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_of_the_processor(level, cpu_level):
    cpu_level(level)
    test_philox_vectors("cpu", "native")
    test_gaussian_of_the_corner_words("cpu", "native")
    for index, (_, _, first, _) in enumerate(STREAMS):
        test_gaussian_streams_from_counters(index, "cpu", "native")
        if first < 2**20:
            test_gaussian_streams(index, "cpu", "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("device", DEVICES)
def test_signs_are_the_bits_of_the_words(device, backend):
    *counter, k0, k1, w0, w1, w2, w3 = VECTORS[0]
    assert counter == [0, 0, 0, 0]
    x = torch.zeros(128, device=device)
    launch = body("add_noise_", device, backend)
    terms = torch.tensor([signed(k0 | k1 << 32)]), torch.ones(1)
    launch([x], *terms, [0], "rademacher", 1.0, [], None)
    bits = (x.cpu() < 0).view(4, 32).long() << torch.arange(32)
    assert bits.sum(dim=1).tolist() == [w0, w1, w2, w3]


def test_the_golden_file_has_every_line():
    assert list(GOLDEN) == names()


@pytest.mark.parametrize("line", GOLDEN, ids="-".join)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_golden_hashes(backend, line):
    assert golden(*line, partial(body, device="cpu", backend=backend)) == GOLDEN[line]


@pytest.mark.parametrize("level", LEVELS)
def test_golden_hashes_of_every_level(level, cpu_level):
    cpu_level(level)
    native = partial(body, device="cpu", backend="native")
    assert {line: golden(*line, native) for line in GOLDEN} == GOLDEN


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_golden_hashes_of_interpreted_triton(dtype):
    """Those of signs: the interpreter has no fma, and truncates float32 to bfloat16 (3.9)."""
    triton = partial(body, device="cpu", backend="triton")
    for line in GOLDEN:
        if line[1:] == (dtype, "rademacher") and (dtype != "bfloat16" or "stochastic" in line[0]):
            assert golden(*line, triton) == GOLDEN[line], line
