"""The C library and its border with Python: header, symbols, levels, threads, errors."""

from __future__ import annotations

import copy
import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sopt_kernels import _native, _native_add_noise, _native_cuda
from sopt_kernels._int8_layers import ACTIVATIONS, MOST_CHANNELS
from sopt_kernels._native import DTYPE_CODE
from sopt_kernels._noise import KINDS
from sopt_kernels._noise import noise as reference_noise
from sopt_kernels._registry import OPS
from sopt_kernels.ops.add_low_rank.native import MAX_RANK
from sopt_kernels.ops.attention_forward.native import MAX_SIZE

HEADER = Path(__file__).parents[1] / "csrc" / "include" / "sopt.h"
# C function -> its parameter list, as text
PROTOTYPES = dict(re.findall(r"SOPT_API [\w *]*?(sopt_\w+)\(([^)]*)\)", HEADER.read_text()))
C_TYPES = {
    "const sopt_tensor*": ctypes.c_void_p,
    "const sopt_codes*": ctypes.c_void_p,
    "const sopt_rows*": ctypes.c_void_p,
    "const sopt_int8_layer*": ctypes.c_void_p,
    "const sopt_image*": ctypes.c_void_p,
    "sopt_elements": ctypes.c_int,
    "const int64_t*": ctypes.c_void_p,
    "int64_t*": ctypes.c_void_p,
    "const uint32_t*": ctypes.c_void_p,
    "uint32_t*": ctypes.c_void_p,
    "const uint64_t*": ctypes.c_void_p,
    "const float*": ctypes.c_void_p,
    "float*": ctypes.c_void_p,
    "sopt_parallel_for": ctypes.c_void_p,
    "sopt_noise": ctypes.c_int,
    "sopt_dtype": ctypes.c_int,
    "sopt_memory": ctypes.c_int,
    "void*": ctypes.c_void_p,
    "const void*": ctypes.c_void_p,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
}
MEMBERS = {"void*": ctypes.c_void_p, "const void*": ctypes.c_void_p, "uint64_t": ctypes.c_uint64}
MEMBERS |= {"int8_t*": ctypes.c_void_p, "const int8_t*": ctypes.c_void_p}
NEAREST = ([], None)  # no rounding on the way, and the last to nearest
OP = OPS["add_noise_"]

needs_cpu_library = pytest.mark.skipif(
    "cpu" not in _native.LIBRARIES, reason=_native.UNAVAILABLE.get("cpu", "")
)


def library_path(device_type: str) -> Path:
    path = _native.library_path(device_type)
    if not path.exists():
        pytest.skip(f"installed without {path.name}")
    return path


def needs_tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"needs {name}")


def run(*command) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize("name", _native.SIGNATURES)
def test_python_signature_matches_header(name):
    parameters = [p.strip().rpartition(" ")[0] for p in PROTOTYPES[name].split(",")]
    assert _native.SIGNATURES[name] == tuple(C_TYPES[p] for p in parameters)


def test_python_constants_match_header():
    text = HEADER.read_text()
    assert f"#define SOPT_ABI_VERSION {_native.ABI_VERSION}\n" in text
    for dtype, code in _native.DTYPE_CODE.items():
        assert f"SOPT_{str(dtype).removeprefix('torch.').upper()} = {code}" in text
    for code, kind in enumerate(KINDS):
        assert f"SOPT_{kind.upper()} = {code}" in text
    for name, code in (("HOST", _native.HOST), ("DEVICE", _native.DEVICE)):
        assert f"SOPT_{name} = {code}" in text
    assert f"#define SOPT_MAX_HOST_TERMS {_native_cuda.MAX_HOST_TERMS}\n" in text
    assert f"#define SOPT_ATTENTION_MAX_SIZE {MAX_SIZE}\n" in text
    assert f"#define SOPT_LOW_RANK_MAX {MAX_RANK}\n" in text
    assert f"#define SOPT_INT8_MAX_CHANNELS {MOST_CHANNELS} " in text
    for code, activations in enumerate(reversed(ACTIVATIONS)):
        name = {"int8": "INT8", "float": "REAL"}[activations]
        assert f"SOPT_ELEMENTS_{name} = {code}" in text


@pytest.mark.parametrize(
    "name, entry",
    [
        ("sopt_tensor", _native.TensorEntry),
        ("sopt_codes", _native.CodesEntry),
        ("sopt_rows", _native.RowsEntry),
        ("sopt_int8_layer", _native.Int8LayerEntry),
        ("sopt_image", _native.ImageEntry),
    ],
)
def test_python_structure_matches_header(name, entry):
    (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", HEADER.read_text())
    members = re.findall(r"^\s*(.+?[ *])(\w+);", body, flags=re.MULTILINE)
    types = MEMBERS | C_TYPES
    expected = [(name, types[kind.strip()]) for kind, name in members]
    assert entry._fields_ == expected


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_exports_exactly_the_header(device_type):
    symbols = run(needs_tool("nm"), "-D", "--defined-only", library_path(device_type))
    functions = {name for name in PROTOTYPES if ("cuda" in name) == (device_type == "cuda")}
    assert {line.split()[-1] for line in symbols.splitlines()} == functions


def test_a_level_shares_no_code_with_the_others(tmp_path):
    """An inline function with external linkage would let one level's code run in all."""
    source = HEADER.parents[1] / "cpu" / "kernels.cpp"
    flags = ["-std=c++17", "-fno-exceptions", "-O0", "-w", f"-I{HEADER.parent}"]
    flags += ["-DSOPT_KERNELS=kernels_generic", "-c", source, "-o", tmp_path / "o"]
    run(needs_tool("c++"), *flags)
    symbols = run(needs_tool("nm"), "-C", "--extern-only", "--defined-only", tmp_path / "o")
    assert [line.split(" ", 2)[2] for line in symbols.splitlines()] == ["sopt::kernels_generic"]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_needs_only_the_c_library(device_type):
    """And libsopt_cuda libsopt_cpu: no CUDA runtime, so that it loads where there is none."""
    dynamic = run(needs_tool("readelf"), "-d", library_path(device_type))
    needed = {name.partition(".")[0] for name in re.findall(r"NEEDED.*\[(.+)\]", dynamic)}
    own = {"libsopt_cpu"} if device_type == "cuda" else set()
    threads = {"libpthread", "librt", "libdl"}  # of the C library, older than glibc 2.34
    assert needed - threads - own <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}


CUDA_BUILD = """
import torch
torch.version.cuda = "13.0"  # PyTorch says so of its CUDA builds, which run on any machine
from sopt_kernels import backends
for body in backends():
    if (body.op, body.device_type, body.backend) == ("add_noise_", "cuda", "native"):
        print(body.reason)
"""


def test_a_cuda_build_of_pytorch_says_why_there_is_no_native_body():
    """libsopt_cuda loads where there is no driver; libsopt_cpu has the text of its errors."""
    if torch.cuda.is_available():
        pytest.skip("the native body runs here")
    reason = run(sys.executable, "-c", CUDA_BUILD).strip()
    installed = _native.library_path("cuda").exists()
    missing = "libsopt_cuda.so is not installed: no nvcc was found then, or SOPT_BUILD was cpu"
    assert reason == ("there is no CUDA driver" if installed else missing)


@pytest.mark.parametrize(
    "level",
    ["sse42", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "neon", "neon_dot", "generic"],
)
def test_every_level_gives_the_bits_of_the_reference(level, cpu_level):
    cpu_level(level)
    for op in OPS.values():
        if not op.exact:
            continue
        for sample in op.samples("cpu"):
            if op.name.startswith("int8") and "int8" not in sample:
                continue  # the same: tests/test_int8_layers.py
            expected, actual = copy.deepcopy(sample), copy.deepcopy(sample)
            results = op.native["cpu"](*actual), op.reference(*expected)
            if results[0] is not None:
                assert torch.equal(*results)
                continue
            for a, b in zip(actual, expected, strict=True):
                if isinstance(a, torch.Tensor):
                    assert torch.equal(a, b)
                elif isinstance(a, list) and a and isinstance(a[0], torch.Tensor):
                    assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("level", ["sse42", "avx2", "avx512", "neon"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_is_kept_and_rounding_is_to_nearest_even(level, dtype, cpu_level):
    cpu_level(level)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    no_terms = (torch.empty(0, dtype=torch.int64), torch.empty(0), [0], "gaussian")
    kept = every.clone()
    OP.native["cpu"]([kept], *no_terms, 1.0, *NEAREST)
    assert torch.equal(kept.nan_to_num(7.0), every.nan_to_num(7.0))
    assert torch.equal(kept.isnan(), every.isnan())
    for decay in (0.99, 1.001, 2.0**-9, 3.0 * 2.0**-14):  # to subnormals too, and to infinity
        scaled = every.clone()
        OP.native["cpu"]([scaled], *no_terms, decay, *NEAREST)
        expected = (every.float() * torch.tensor(decay)).to(dtype)
        assert torch.equal(scaled.nan_to_num(7.0), expected.nan_to_num(7.0))


@needs_cpu_library
@pytest.mark.parametrize("kind", KINDS)
def test_result_does_not_depend_on_threads(kind):
    before = torch.get_num_threads()
    tensors = [torch.randn(n) for n in (300_003, 5, 0, 2048, 100_000)]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append([x.clone() for x in tensors])
        terms = torch.tensor([1, 2]), torch.tensor([0.5, 0.25])
        OP.native["cpu"](results[-1], *terms, [1, 2, 3, 4, 5], kind, 0.9, *NEAREST)
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", ["sse42", "avx2", "avx512", "neon", "neon_dot", "generic"])
def test_indices_past_two_to_the_39(level, dtype, kind, cpu_level):
    """Block numbers past 2**32 of either kind, without the memory: the pool runs the end alone."""
    cpu_level(level)
    n, begin = 5000, 2**39
    tail = torch.zeros(n, dtype=dtype)
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    integers = [ctypes.c_int64] * 3
    pool_type = ctypes.CFUNCTYPE(ctypes.c_int, *integers, task_type, ctypes.c_void_p)

    @pool_type
    def end_alone(lo, hi, grain, task, context):
        task(hi - 3, hi, context)  # tiles of 2048 elements; begin is a multiple of that
        return 0

    start = tail.data_ptr() - begin * tail.element_size()
    entry = _native.TensorEntry(start % 2**64, start % 2**64, begin + n, 2, DTYPE_CODE[dtype])
    seed, coefficient = torch.tensor([1]), torch.ones(1)
    terms = seed.data_ptr(), coefficient.data_ptr(), 1
    set_pool = _native.LIBRARIES["cpu"].sopt_set_parallel_for
    try:
        set_pool(ctypes.cast(end_alone, ctypes.c_void_p))
        table = (_native.TensorEntry * 1)(entry)
        _native_add_noise._cpu(table, 1, *terms, KINDS.index(kind), 1.0, None, 0, None)
    finally:
        _native._use_torch_threads()
    expected = reference_noise(kind, 1, 2, begin, begin + n, torch.device("cpu"))
    assert torch.equal(tail, expected.to(dtype))


@needs_cpu_library
def test_errors_carry_the_text_of_the_library():
    x, one = torch.zeros(1), torch.ones(1)
    entry = (_native.TensorEntry * 1)((x.data_ptr(), x.data_ptr(), 1, 0, 9))
    negative = (_native.TensorEntry * 1)((x.data_ptr(), x.data_ptr(), -1, 0, 0))
    terms = torch.zeros(1, dtype=torch.int64).data_ptr(), one.data_ptr()
    function, nearest = _native_add_noise._cpu, (None, 0, None)
    two = (ctypes.c_int64 * 2)(1, 1)
    for arguments, words in (
        ((entry, 1, *terms, 1, 0, 1.0, *nearest), "unknown dtype 9 of tensor 0"),
        ((negative, 1, *terms, 1, 0, 1.0, *nearest), "numel of tensor 0 must be >= 0, got -1"),
        ((entry, -1, *terms, 1, 0, 1.0, *nearest), "count must be >= 0, got -1"),
        ((entry, 1, *terms, -1, 0, 1.0, *nearest), "terms must be >= 0, got -1"),
        ((entry, 1, *terms, 1, 2, 1.0, *nearest), "unknown kind 2"),
        ((entry, 0, *terms, 1, 0, 1.0, two, -1, None), "rounds must be >= 0, got -1"),
        ((entry, 0, *terms, 1, 0, 1.0, two, 1, None), "round_after must .* between 0 and 1, got 1"),
        ((entry, 0, *terms, 3, 0, 1.0, two, 2, None), "between 0 and 3, got 1 at 1"),
    ):
        with pytest.raises(RuntimeError, match=words):
            function(*arguments)
    with pytest.raises(ctypes.ArgumentError):
        function(x, 1, *terms, 1, 0, 1.0, *nearest)  # a tensor is not a pointer
    assert x.item() == 0


@needs_cpu_library
def test_errors_of_the_other_functions():
    x = torch.zeros(6)
    tensors = [
        (_native.TensorEntry * 1)((x.data_ptr(), x.data_ptr(), n, 0, dtype))
        for n, dtype in ((6, 0), (6, 9), (5, 0))
    ]
    address = x.data_ptr()
    restore = _native.LIBRARIES["cpu"].sopt_restore_accumulate_cpu
    for a, b, words in ((0, 1, "unknown dtype 9"), (0, 2, "as many elements .* got 6 and 5")):
        with pytest.raises(RuntimeError, match=words):
            restore(tensors[a], tensors[b], 1, address, address, address, 0)
    perturb = _native.LIBRARIES["cpu"].sopt_perturb_int8_cpu
    codes = (_native.CodesEntry * 1)((address, address, 6, 4, 0))
    for headroom, words in ((0, r"headroom must be in \[1, 64\], got 0"), (1, "rows .* got 4")):
        with pytest.raises(RuntimeError, match=words):
            perturb(codes, 1, address, address, 1, 0, headroom, address)
    assert not x.any()


@needs_cpu_library
def test_native_refuses_strided_memory():
    terms = torch.tensor([1]), torch.ones(1)
    with pytest.raises(ValueError, match="contiguous"):
        torch.ops.sopt.add_noise_([torch.zeros(4, 4).t()], *terms, [0], "gaussian", 1.0, *NEAREST)


def test_a_plain_c_client_repeats_the_golden_hashes(tmp_path):
    library = library_path("cpu")
    run(needs_tool("cc"), "-std=c99", "-pedantic", "-Wall", "-Werror", f"-I{HEADER.parent}",
        Path(__file__).with_name("client.c"), "-o", tmp_path / "client",
        f"-L{library.parent}", "-lsopt_cpu", f"-Wl,-rpath,{library.parent}")  # fmt: skip
    golden = (HEADER.parents[2] / "kat" / "golden.txt").read_text().splitlines()
    lines = [line for line in golden if not line.startswith("#")]
    assert run(tmp_path / "client").splitlines() == lines
