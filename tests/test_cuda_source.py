"""The CUDA sources where there is no GPU: run on the CPU with emulated thread indices, which must
give the bits of libsopt_cpu, and compiled by nvcc for every GPU that the build names."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sopt_kernels import _native, _native_add_noise
from sopt_kernels._arguments import DTYPES
from sopt_kernels._native import DEVICE, DTYPE_CODE, HOST, TensorEntry
from sopt_kernels._noise import KINDS
from sopt_kernels._noise import noise as reference_noise
from sopt_kernels._reference import write_sum
from sopt_kernels._registry import OPS

ROOT = Path(__file__).parents[1]
TILE = 4096  # kTile of csrc/cuda/tile.cuh: elements of a block of threads
SIZES = [1, 3, 4, 5, 127, 128, 129, TILE - 1, TILE, TILE + 1, 3 * TILE + 77]
NVCC = shutil.which("nvcc", path=os.environ["PATH"] + ":/usr/local/cuda/bin")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """libsopt_cuda, compiled by the C++ compiler, for pointers to host memory."""
    path = tmp_path_factory.mktemp("emulated") / "libsopt_cuda.so"
    compiler = shutil.which("c++") or pytest.skip("needs c++")
    folder = ROOT / "tests" / "emulated_cuda"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    flags += ["-fno-strict-aliasing", "-shared", "-fPIC", f"-I{folder}", f"-I{ROOT}/csrc/include"]
    # A vector at an address that is no multiple of 16 ends the process, as it would the kernel.
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    flags += ["-fno-sanitize=pointer-overflow"]  # of tensors that are not wholly there
    subprocess.run([compiler, *flags, folder / "library.cpp", "-o", path], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.sopt_last_error.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def emulated(library):
    """A function that calls one of ``library`` on pointers, raising its errors."""

    def call(name, *arguments):
        function = getattr(library, name)
        function.argtypes = _native.SIGNATURES[name]
        if function(*arguments, None):  # the default stream
            raise RuntimeError(library.sopt_last_error().decode())

    return call


@pytest.fixture
def setting(library):
    """A function that changes a variable of tests/emulated_cuda/cuda_runtime.h for one test."""
    changed = []

    def change(name: str, value: int) -> None:
        variable = ctypes.c_int.in_dll(library, name)
        changed.append((variable, variable.value))
        variable.value = value

    yield change
    for variable, before in reversed(changed):
        variable.value = before


def add_noise(emulated, out, base, seeds, coefficients, streams, kind, decay, memory=(HOST, HOST)):
    terms = (seeds.data_ptr(), memory[0], coefficients.data_ptr(), memory[1], len(seeds))
    table = _native.tensor_table(out, base, streams)
    emulated("sopt_add_noise_cuda", table, len(out), *terms, KINDS.index(kind), decay)


def terms_of(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(k)
    return numbers * 0x1234_5678_9ABC_DEF1 - 5, (0.3 - 0.01 * numbers).float()


def on_cpu(op, *arguments):
    """The body of this op that is best on the CPU: native, where there is a compiler."""
    return next(iter(OPS[op].backends("cpu").values()))(*arguments)


@pytest.mark.parametrize("memory", [(HOST, HOST), (HOST, DEVICE), (DEVICE, DEVICE)])
@pytest.mark.parametrize("op", ["add_noise_", "write_noisy_"])
def test_samples(emulated, op, memory):
    for sample in OPS[op].samples("cpu"):
        expected, actual = copy.deepcopy(sample), copy.deepcopy(sample)
        *arguments, round_after, rounding_seeds = actual
        if round_after or rounding_seeds is not None:
            continue  # not of this kernel
        on_cpu(op, *expected)
        lists = arguments[:-5] * (1 if op == "write_noisy_" else 2)
        add_noise(emulated, *lists, *arguments[-5:], memory)
        assert all(map(torch.equal, actual[0], expected[0]))
        assert all(map(torch.equal, actual[-8], expected[-8])), "write_noisy_ changed its base"


@pytest.mark.parametrize("op", ["add_noise_", "write_noisy_"])
def test_only_what_the_kernel_rounds_reaches_it(emulated, library, monkeypatch, op):
    """The rest goes to a body that knows all roundings; here the reference, which runs anywhere."""

    def cuda(*arguments):
        emulated("sopt_add_noise_cuda", *arguments[:-1])

    others = []
    monkeypatch.setattr(_native_add_noise, "_cuda", cuda)
    monkeypatch.setattr(_native_add_noise, "current_stream", lambda: None)
    monkeypatch.setattr(
        _native_add_noise,
        "_with_roundings",
        lambda *arguments: others.append(write_sum(*arguments)),
    )
    chosen = set()
    for sample in OPS[op].samples("cpu"):
        expected, actual = copy.deepcopy(sample), copy.deepcopy(sample)
        OPS[op].reference(*expected)
        others.clear()
        before = ctypes.c_int.in_dll(library, "emulated_launches").value
        OPS[op].native["cuda"](*actual)
        launches = ctypes.c_int.in_dll(library, "emulated_launches").value - before
        *_, round_after, rounding_seeds = sample
        nearest = not round_after and rounding_seeds is None
        assert (launches, len(others)) == ((1, 0) if nearest else (0, 1))
        assert all(map(torch.equal, actual[0], expected[0]))
        chosen.add((bool(round_after), rounding_seeds is not None))
    assert chosen == {(False, False), (False, True), (True, False), (True, True)}


def test_the_body_with_all_roundings_is_triton_where_it_is_installed(monkeypatch):
    if callable(OPS["add_noise_"].triton):
        assert _native_add_noise._with_roundings.__module__ == "sopt_kernels._triton_add_noise"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _native_add_noise._body_with_roundings() is write_sum


def test_ops_without_a_cuda_kernel_say_so(monkeypatch):
    monkeypatch.delitem(_native.UNAVAILABLE, "cuda", raising=False)
    native = {name: op.implementations("cuda")["native"] for name, op in OPS.items()}
    missing = {name for name, found in native.items() if found == "not written for cuda"}
    assert missing == {"restore_accumulate_", "perturb_int8_", "update_int8_"}


def test_known_words_and_samples(emulated):
    for counters, key in OPS["philox4x32"].samples("cpu"):
        words = torch.full_like(counters.view(torch.int32), -1).view(torch.uint32)
        pointers = counters.data_ptr(), len(counters), key.data_ptr(), words.data_ptr()
        emulated("sopt_philox4x32_10_cuda", *pointers)
        assert torch.equal(words, on_cpu("philox4x32", counters, key))
    every_start = torch.arange(0, 2**32, 2**20 - 1)  # of all lengths of the logarithm and the angle
    corners = torch.tensor([0, 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
    words = torch.cat([torch.cartesian_prod(corners, corners).flatten(), every_start])
    words = words[: len(words) // 2 * 2].to(torch.int32).view(torch.uint32)
    samples = torch.full((len(words),), float("nan"))
    emulated("sopt_box_muller_cuda", words.data_ptr(), len(words) // 2, samples.data_ptr())
    assert torch.equal(samples, on_cpu("box_muller", words))


@pytest.mark.parametrize("terms", [0, 1, 3, 16, 17, 256])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_cpu_at_any_size_and_address(emulated, dtype, kind, terms):
    """And nothing outside of the tensors is written. 17 terms take the larger arguments."""
    for size in SIZES if terms < 4 else (129,):
        for before in (0, 1, 4, 7):  # elements: of these addresses, vectors may use the first
            expected = torch.linspace(-2, 2, before + size + 9).to(dtype)
            actual = expected.clone()
            ours, theirs = (x[before : before + size] for x in (actual, expected))
            rest = (*terms_of(terms), [-3], kind, 0.9)
            memory = (HOST, DEVICE) if before == 1 else (HOST, HOST)
            add_noise(emulated, [ours], [ours], *rest, memory)
            on_cpu("add_noise_", [theirs], *rest)
            assert torch.equal(actual, expected), (size, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_is_kept_and_rounding_is_to_nearest_even(emulated, dtype):
    """The GPU has instructions for this; here it is what stands in for them that is tested."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    for decay in (1.0, 0.99, 1.001, 2.0**-9, 3.0 * 2.0**-14):
        x = every.clone()
        add_noise(emulated, [x], [x], *terms_of(0), [0], "gaussian", decay)
        expected = (every.float() * torch.tensor(decay)).to(dtype)
        assert torch.equal(x.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(x.isnan(), every.isnan())


@pytest.mark.parametrize("count, launches", [(16, 1), (17, 1), (512, 1), (513, 2), (1100, 3)])
def test_a_list_takes_one_launch_for_512_tensors(emulated, library, count, launches):
    sizes = [(k * 37) % 300 + 1 + TILE * (k % 50 == 7) for k in range(count)]
    sizes[1:1] = [0, 0]  # empty ones take no place
    base = [torch.linspace(-1, 1, n).to(DTYPES[k % 3]) for k, n in enumerate(sizes)]
    streams = [k * 0x0F1E_2D3C_4B5A_6978 % 2**63 - 2**62 for k in range(len(sizes))]
    actual, expected = [[x.clone() for x in base] for _ in range(2)]
    before = ctypes.c_int.in_dll(library, "emulated_launches").value
    rest = (*terms_of(2), streams, "rademacher", 1.0)
    add_noise(emulated, actual, actual, *rest)
    assert ctypes.c_int.in_dll(library, "emulated_launches").value - before == launches
    on_cpu("add_noise_", expected, *rest)
    assert all(map(torch.equal, actual, expected))


def test_nothing_is_launched_for_nothing(emulated, library):
    before = ctypes.c_int.in_dll(library, "emulated_launches").value
    empty = torch.zeros(0)
    for tensors in ([], [empty], [empty] * 600):
        add_noise(emulated, tensors, tensors, *terms_of(1), [0] * len(tensors), "gaussian", 1.0)
    emulated("sopt_philox4x32_10_cuda", None, 0, None, None)
    emulated("sopt_box_muller_cuda", None, 0, None)
    assert ctypes.c_int.in_dll(library, "emulated_launches").value == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("begin", [2**31, 2**32, 2**39])
def test_indices_past_two_to_the_32(emulated, setting, begin, dtype, kind):
    """Without the memory: the emulation starts at the last blocks. 2**39: counters past 2**32."""
    n = TILE + 130
    tail = torch.zeros(n, dtype=dtype)
    start = (tail.data_ptr() - begin * tail.element_size()) % 2**64
    table = (TensorEntry * 1)((start, start, begin + n, 2, DTYPE_CODE[dtype]))
    seeds, coefficients = torch.tensor([1]), torch.ones(1)
    terms = (seeds.data_ptr(), HOST, coefficients.data_ptr(), HOST, 1)
    setting("emulated_first_block", begin // TILE)
    emulated("sopt_add_noise_cuda", table, 1, *terms, KINDS.index(kind), 1.0)
    expected = reference_noise(kind, 1, 2, begin, begin + n, torch.device("cpu"))
    assert torch.equal(tail, expected.to(dtype))


def test_more_tiles_than_a_grid_has_blocks_take_two_launches(emulated, library, setting):
    """Of two tensors without the memory, the last 130 elements."""
    begin, n = 2**30 * TILE, 130
    tails = [torch.zeros(n), torch.zeros(n)]
    starts = [(x.data_ptr() - 4 * begin) % 2**64 for x in tails]
    table = (TensorEntry * 2)(*((p, p, begin + n, k, 0) for k, p in enumerate(starts)))
    seeds, coefficients = torch.tensor([1]), torch.ones(1)
    terms = (seeds.data_ptr(), HOST, coefficients.data_ptr(), HOST, 1)
    setting("emulated_first_block", 2**30)
    before = ctypes.c_int.in_dll(library, "emulated_launches").value
    emulated("sopt_add_noise_cuda", table, 2, *terms, 0, 1.0)
    assert ctypes.c_int.in_dll(library, "emulated_launches").value - before == 2
    for stream, tail in enumerate(tails):
        cpu = torch.device("cpu")
        expected = reference_noise("gaussian", 1, stream, begin, begin + n, cpu)
        assert torch.equal(tail, expected)


def test_errors_name_the_argument_and_change_nothing(emulated, setting):
    x, one, seed = torch.zeros(1), torch.ones(300), torch.zeros(300, dtype=torch.int64)
    good, odd, negative, huge = (
        (TensorEntry * 1)((x.data_ptr(), x.data_ptr(), numel, 0, dtype))
        for numel, dtype in ((1, 0), (1, 9), (-1, 0), (2**62, 0))
    )
    host = (seed.data_ptr(), HOST, one.data_ptr(), HOST)
    mixed = (seed.data_ptr(), DEVICE, one.data_ptr(), HOST)
    other = (seed.data_ptr(), HOST, one.data_ptr(), DEVICE)
    for arguments, words in (
        ((odd, 1, *host, 1, 0, 1.0), "unknown dtype 9 of tensor 0"),
        ((negative, 1, *host, 1, 0, 1.0), "numel of tensor 0 must be >= 0, got -1"),
        ((huge, 1, *host, 1, 0, 1.0), "blocks are more than a GPU takes"),
        ((good, -1, *host, 1, 0, 1.0), "count must be >= 0, got -1"),
        ((good, 1, *host, -1, 0, 1.0), "terms must be >= 0, got -1"),
        ((good, 1, *host, 257, 0, 1.0), "terms in host memory must be <= 256, got 257"),
        ((good, 1, *mixed, 257, 0, 1.0), "terms in host memory must be <= 256, got 257"),
        ((good, 1, *other, 257, 0, 1.0), "terms in host memory must be <= 256, got 257"),
        ((good, 1, *host, 1, 2, 1.0), "unknown kind 2"),
    ):
        with pytest.raises(RuntimeError, match=words):
            emulated("sopt_add_noise_cuda", *arguments)
    for function, arguments in (
        ("sopt_philox4x32_10_cuda", (None, -1, None, None)),
        ("sopt_box_muller_cuda", (None, -1, None)),
    ):
        with pytest.raises(RuntimeError, match="must be >= 0, got -1"):
            emulated(function, *arguments)
    setting("emulated_error", 719)
    with pytest.raises(RuntimeError, match="sopt_add_noise_cuda: unspecified launch failure"):
        emulated("sopt_add_noise_cuda", good, 1, *host, 1, 0, 1.0)
    assert x.item() == 0


def test_more_terms_than_a_launch_carries_come_from_the_device(emulated):
    x, y = torch.zeros(200), torch.zeros(200)
    rest = (*terms_of(300), [1], "gaussian", 1.0)
    add_noise(emulated, [x], [x], *rest, (DEVICE, DEVICE))
    on_cpu("add_noise_", [y], *rest)
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "driver, words",
    [(0, "there is no CUDA driver"), (12080, "the CUDA driver is for CUDA 12.8"), (13010, "")],
)
def test_the_driver_is_checked(library, setting, driver, words):
    setting("emulated_driver", driver)
    assert bool(library.sopt_cuda_check()) == bool(words)
    if words:
        assert words in library.sopt_last_error().decode()


def nvcc(*arguments) -> str:
    if NVCC is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT}/csrc/include", "--Werror=all-warnings"]
    done = subprocess.run(
        [NVCC, *flags, *arguments, ROOT / "csrc/cuda/add_noise.cu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "target",
    ["sm_90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100"))],
)
def test_compiles_and_keeps_everything_in_registers(tmp_path, target):
    report = nvcc(f"-arch={target}", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "cubin")
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", report)
    assert len(kernels) == 4
    assert {compiled_for for _, compiled_for in kernels} == {target}
    used = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    assert used == ["0"] * 12, report


def test_no_operation_may_be_fused_or_approximated(tmp_path):
    """Each float operation carries .rn: ptxas fuses only multiplications and sums without it."""
    nvcc("-arch=sm_90", "-ptx", "-o", tmp_path / "ptx")
    ptx = (tmp_path / "ptx").read_text()
    operations = re.findall(r"\b((?:mul|add|sub|fma|sqrt|div|ex2|lg2|sin|cos)\.[\w.]*f32)\b", ptx)
    assert "sqrt.rn.f32" in operations
    assert [o for o in operations if ".rn" not in o or ".ftz" in o or "approx" in o] == []
    # Of 32 elements, each pair takes 11 fma for the radius, 4 for the sine, 4 for the cosine, and
    # each element one for the sum; one more would be a fusion that nobody asked for.
    bodies = 2 * len(DTYPES)
    assert operations.count("fma.rn.f32") == bodies * (16 * (11 + 4 + 4) + 32) + bodies * 32
