"""The CUDA sources where there is no GPU: launches, limits and errors with emulated thread indices
(test_cuda_bits.py has the results), and compiled by nvcc for every GPU that the build names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_bodies import on_cpu, terms_of

from sopt_kernels import _native
from sopt_kernels._arguments import DTYPES
from sopt_kernels._native import DEVICE, DTYPE_CODE, HOST, CodesEntry, TensorEntry
from sopt_kernels._noise import KINDS
from sopt_kernels._noise import noise as reference_noise
from sopt_kernels._registry import OPS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TILE = 4096  # kTile of csrc/cuda/tile.cuh: elements of a block of threads
NEAREST = (None, 0, None, HOST, None)  # no rounding on the way, none at random; the default stream
NVCC = shutil.which("nvcc", path=os.environ["PATH"] + ":/usr/local/cuda/bin")


@pytest.fixture
def setting(emulated):
    """A function that changes a variable of tests/emulated_cuda/cuda_runtime.h for one test."""
    changed = []

    def change(name: str, value: int) -> None:
        variable = emulated.setting(name)
        changed.append((variable, variable.value))
        variable.value = value

    yield change
    for variable, before in reversed(changed):
        variable.value = before


def one_term():
    seed, coefficient = torch.tensor([1]), torch.ones(1)
    return seed, coefficient, (seed.data_ptr(), HOST, coefficient.data_ptr(), HOST, 1)


def test_known_words_and_samples(emulated):
    for counters, key in OPS["philox4x32"].samples("cpu"):
        words = torch.full_like(counters.view(torch.int32), -1).view(torch.uint32)
        pointers = counters.data_ptr(), len(counters), key.data_ptr(), words.data_ptr()
        emulated.call("sopt_philox4x32_10_cuda", *pointers, None)
        assert torch.equal(words, on_cpu("philox4x32", counters, key))
    every_start = torch.arange(0, 2**32, 2**20 - 1)  # of all lengths of the logarithm and the angle
    corners = torch.tensor([0, 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
    words = torch.cat([torch.cartesian_prod(corners, corners).flatten(), every_start])
    words = words[: len(words) // 2 * 2].to(torch.int32).view(torch.uint32)
    samples = torch.full((len(words),), float("nan"))
    pointers = words.data_ptr(), len(words) // 2, samples.data_ptr()
    emulated.call("sopt_box_muller_cuda", *pointers, None)
    assert torch.equal(samples, on_cpu("box_muller", words))


def calls_on_lists(count: int) -> dict[str, tuple]:
    """Arguments of each op for ``count`` tensors, some of them large, and two empty ones."""
    sizes = [(k * 37) % 300 + 1 + TILE * (k % 50 == 7) for k in range(count)]
    sizes[1:1] = [0, 0]  # these take no place
    tensors = [torch.linspace(-1, 1, n).to(DTYPES[k % 3]) for k, n in enumerate(sizes)]
    codes, scales = [x.to(torch.int8) for x in tensors], [torch.ones(1)] * len(sizes)
    streams, seed, one = list(range(len(sizes))), torch.tensor([3]), torch.ones(1)
    perturb = (codes, scales, *terms_of(2), streams, "rademacher", 8, seed)
    return {
        "add_noise_": (tensors, *terms_of(2), streams, "rademacher", 1.0, [], None),
        "restore_accumulate_": (tensors, tensors, seed, one, one, streams, "rademacher"),
        "perturb_int8_": perturb,
        "update_int8_": (*perturb, terms_of(2)[0], one, torch.tensor(0)),
    }


@pytest.mark.parametrize("count, launches", [(16, 1), (17, 1), (512, 1), (513, 2), (1100, 3)])
def test_a_list_takes_one_launch_for_512_tensors(emulated, monkeypatch, count, launches):
    emulated.replace_gpu(monkeypatch)
    monkeypatch.setattr("sopt_kernels._arguments.check_disjoint", lambda *_: None)
    for op, arguments in calls_on_lists(count).items():
        before = emulated.launches
        OPS[op].native["cuda"](*arguments)
        assert emulated.launches - before == launches, op


def test_nothing_is_launched_for_nothing(emulated, monkeypatch):
    emulated.replace_gpu(monkeypatch)
    before = emulated.launches
    for count in (1, 600):
        tensors, codes = [torch.zeros(0)] * count, [torch.zeros(0, dtype=torch.int8)] * count
        streams, seed, one = [0] * count, torch.tensor([3]), torch.ones(1)
        rest = ([torch.zeros(0)] * count, seed, one, streams, "gaussian", 8, seed)
        OPS["add_noise_"].native["cuda"](tensors, seed, one, streams, "gaussian")
        OPS["restore_accumulate_"].native["cuda"](
            tensors, tensors, seed, one, one, streams, "gaussian"
        )
        OPS["perturb_int8_"].native["cuda"](codes, *rest)
        OPS["update_int8_"].native["cuda"](codes, *rest, seed, one, torch.tensor(0))
    emulated.call("sopt_add_noise_cuda", None, 0, *one_term()[2], 0, 1.0, *NEAREST)
    emulated.call("sopt_philox4x32_10_cuda", None, 0, None, None, None)
    emulated.call("sopt_box_muller_cuda", None, 0, None, None)
    assert emulated.launches == before


def part_of_a_tensor(tail: torch.Tensor, begin: int) -> int:
    """The address of a tensor of which ``tail``, from ``begin`` on, is all that there is."""
    return (tail.data_ptr() - begin * tail.element_size()) % 2**64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("begin", [2**31, 2**32, 2**39])
def test_indices_past_two_to_the_32(emulated, setting, begin, dtype, kind):
    """Without the memory: the emulation starts at the last blocks. 2**39: counters past 2**32."""
    n = TILE + 130
    tail, grads = torch.zeros(n, dtype=dtype), torch.zeros(n)
    (seed, one, terms), stream = one_term(), 2
    params, gradients = (
        (TensorEntry * 1)((start, start, begin + n, stream, DTYPE_CODE[x.dtype]))
        for x in (tail, grads)
        for start in [part_of_a_tensor(x, begin)]
    )
    setting("emulated_first_block", begin // TILE)
    code = KINDS.index(kind)
    emulated.call("sopt_add_noise_cuda", params, 1, *terms, code, 1.0, *NEAREST)
    expected = reference_noise(kind, 1, stream, begin, begin + n, CPU)
    assert torch.equal(tail, expected.to(dtype))
    back = -one
    scalars = (seed.data_ptr(), HOST, back.data_ptr(), HOST, one.data_ptr(), HOST)
    emulated.call("sopt_restore_accumulate_cuda", params, gradients, 1, *scalars, code, None)
    assert not tail.any() or dtype != torch.float32
    assert torch.equal(grads, expected)


@pytest.mark.parametrize("rows", ["one", "each"])
def test_codes_past_two_to_the_32(emulated, setting, rows):
    """And scales."""
    begin, n = 2**39, TILE + 130
    codes, scales = torch.zeros(n, dtype=torch.int8), torch.linspace(0.7, 0.1, n)
    (seed, one, terms), stream = one_term(), 2
    count, address = 1, scales.data_ptr()
    if rows == "each":
        count, address = begin + n, part_of_a_tensor(scales, begin)
    table = (CodesEntry * 1)((part_of_a_tensor(codes, begin), address, begin + n, count, stream))
    setting("emulated_first_block", begin // TILE)
    emulated.call("sopt_perturb_int8_cuda", table, 1, *terms, 1, 64, *terms[:2], None)
    v = reference_noise("rademacher", 1, stream, begin, begin + n, CPU)
    v = v / (scales if rows == "each" else scales[0])
    assert ((codes - v).abs() < 1).all()  # one of the neighbours
    assert (codes != v).any()
    clamped, back = torch.tensor(0), -one
    keys = (seed.data_ptr(), HOST)
    directions = (*keys, *keys, back.data_ptr(), HOST, 1, one.data_ptr(), HOST)
    emulated.call(
        "sopt_update_int8_cuda", table, 1, *directions, 1, 64, *keys, clamped.data_ptr(), None
    )
    assert not codes.any()  # taken back along the realised direction
    assert clamped == 0


def test_more_tiles_than_a_grid_has_blocks_take_two_launches(emulated, setting):
    """Of two tensors without the memory, the last 130 elements."""
    begin, n = 2**30 * TILE, 130
    tails = [torch.zeros(n), torch.zeros(n)]
    starts = [part_of_a_tensor(x, begin) for x in tails]
    table = (TensorEntry * 2)(*((p, p, begin + n, k, 0) for k, p in enumerate(starts)))
    _, _, terms = kept = one_term()
    setting("emulated_first_block", 2**30)
    before = emulated.launches
    emulated.call("sopt_add_noise_cuda", table, 2, *terms, 0, 1.0, *NEAREST)
    assert emulated.launches - before == 2
    for stream, tail in enumerate(tails):
        expected = reference_noise("gaussian", 1, stream, begin, begin + n, CPU)
        assert torch.equal(tail, expected)
    del kept


def test_rounding_seeds_of_the_host_are_carried_by_several_launches(emulated):
    """With terms in device memory, of which there may be any number."""
    terms, roundings = 601, 600
    seeds, coefficients = terms_of(terms)
    cuts, rounding = torch.arange(1, terms), torch.arange(terms) * 3 - 100
    actual, expected = (torch.linspace(-2, 2, 300).bfloat16() for _ in range(2))
    before, in_place = emulated.launches, [actual]
    emulated.call(
        "sopt_add_noise_cuda", _native.tensor_table(in_place, in_place, [8]), 1,
        seeds.data_ptr(), DEVICE, coefficients.data_ptr(), DEVICE, terms, 1, 0.999,
        cuts.data_ptr(), roundings, rounding.data_ptr(), HOST, None,
    )  # fmt: skip
    assert emulated.launches - before == 3
    rest = (seeds, coefficients, [8], "rademacher", 0.999, cuts.tolist(), rounding)
    on_cpu("add_noise_", [expected], *rest)
    assert torch.equal(actual, expected)


def test_errors_name_the_argument_and_change_nothing(emulated, setting):
    x, one, seed = torch.zeros(6), torch.ones(300), torch.zeros(300, dtype=torch.int64)
    address, two = x.data_ptr(), torch.ones(2, dtype=torch.int64)
    good, odd, negative, huge, five = (
        (TensorEntry * 1)((address, address, numel, 0, dtype))
        for numel, dtype in ((6, 0), (6, 9), (-1, 0), (2**62, 0), (5, 0))
    )
    codes, ragged = ((CodesEntry * 1)((address, address, 6, rows, 0)) for rows in (3, 4))
    host = (seed.data_ptr(), HOST, one.data_ptr(), HOST)
    mixed = (seed.data_ptr(), DEVICE, one.data_ptr(), HOST)
    other = (seed.data_ptr(), HOST, one.data_ptr(), DEVICE)
    plain = (0, 1.0, *NEAREST)
    three, key = (*host, *host[:2]), host[:2]
    many = "terms in host memory must be <= 256, got 257"
    for name, arguments, words in (
        ("add_noise", (odd, 1, *host, 1, *plain), "unknown dtype 9 of tensor 0"),
        ("add_noise", (negative, 1, *host, 1, *plain), "numel of tensor 0 must be >= 0, got -1"),
        ("add_noise", (huge, 1, *host, 1, *plain), "blocks are more than a GPU takes"),
        ("add_noise", (good, -1, *host, 1, *plain), "count must be >= 0, got -1"),
        ("add_noise", (good, 1, *host, -1, *plain), "terms must be >= 0, got -1"),
        ("add_noise", (good, 1, *host, 257, *plain), many),
        ("add_noise", (good, 1, *mixed, 257, *plain), many),
        ("add_noise", (good, 1, *other, 257, *plain), many),
        ("add_noise", (good, 1, *host, 1, 2, *plain[1:]), "unknown kind 2"),
        ("add_noise", (good, 1, *host, 1, 0, 1.0, None, -1, None, 0, None), "rounds .* got -1"),
        ("add_noise", (good, 1, *host, 3, 0, 1.0, two.data_ptr(), 2, None, 0, None), "got 1 at 1"),
        ("restore_accumulate", (good, odd, 1, *three, 0, None), "unknown dtype 9"),
        ("restore_accumulate", (good, five, 1, *three, 0, None), "as many .* got 6 and 5"),
        ("perturb_int8", (codes, 1, *host, 1, 0, 65, *key, None), r"in \[1, 64\], got 65"),
        ("perturb_int8", (ragged, 1, *host, 1, 0, 8, *key, None), "rows of tensor 0 .* got 4"),
        ("perturb_int8", (codes, 1, *other, 257, 0, 8, *key, None), many),
        ("update_int8", (codes, 1, *key, *mixed, 257, *host[2:], 0, 8, *key, address, None), many),
        ("philox4x32_10", (None, -1, None, None, None), "n must be >= 0, got -1"),
        ("box_muller", (None, -1, None, None), "pairs must be >= 0, got -1"),
    ):
        with pytest.raises(RuntimeError, match=f"sopt_{name}_cuda: .*{words}"):
            emulated.call(f"sopt_{name}_cuda", *arguments)
    setting("emulated_error", 719)
    with pytest.raises(RuntimeError, match="sopt_add_noise_cuda: unspecified launch failure"):
        emulated.call("sopt_add_noise_cuda", good, 1, *host, 1, *plain)
    assert not x.any()


@pytest.mark.parametrize(
    "driver, words",
    [(0, "there is no CUDA driver"), (12080, "the CUDA driver is for CUDA 12.8"), (13010, "")],
)
def test_the_driver_is_checked(emulated, setting, driver, words):
    setting("emulated_driver", driver)
    assert bool(emulated.library.sopt_cuda_check()) == bool(words)
    if words:
        assert words in emulated.library.sopt_last_error().decode()


def test_a_library_of_another_version_is_refused(emulated, monkeypatch):
    path = Path("libsopt_cuda.so")
    _native._check_abi(emulated.library, "sopt_cuda_abi_version", path)
    monkeypatch.setattr(_native, "ABI_VERSION", 99)
    with pytest.raises(ImportError, match=r"libsopt_cuda.so has ABI \d+, need 99: reinstall sopt"):
        _native._check_abi(emulated.library, "sopt_cuda_abi_version", path)
    with pytest.raises(ImportError, match="has ABI unknown, need 99"):
        _native._check_abi(emulated.library, "sopt_nothing", path)


def test_every_op_has_a_cuda_kernel_and_says_so(monkeypatch):
    """``backends()`` is right in every case: no launcher of libsopt hands a call on."""
    monkeypatch.delitem(_native.UNAVAILABLE, "cuda", raising=False)
    without = {op.name for op in OPS.values() if not callable(op.implementations("cuda")["native"])}
    # PyTorch's own attention and products are fast on a GPU
    assert without == {"attention_forward", "add_low_rank_"}


def nvcc(source: str, *arguments) -> str:
    if NVCC is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT}/csrc/include", "--Werror=all-warnings"]
    done = subprocess.run(
        [NVCC, *flags, *arguments, ROOT / "csrc" / "cuda" / source],
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
@pytest.mark.parametrize(
    "source, count",
    [("add_noise.cu", 8), ("int8.cu", 8), ("int8_layer.cu", 12), ("restore_accumulate.cu", 4)],
)
def test_compiles_and_keeps_everything_in_registers(tmp_path, source, count, target):
    report = nvcc(source, f"-arch={target}", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "cubin")
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", report)
    assert len(kernels) == count
    assert {compiled_for for _, compiled_for in kernels} == {target}
    used = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    assert used == ["0"] * 3 * len(kernels), report


# Of 32 elements, each pair takes 11 fma for the radius, 4 for the sine, 4 for the cosine; each
# element takes one for each sum, and for its perturbation where that is computed again. Twice, for
# the two sizes of arguments; one more would be a fusion that nobody asked for.
SAMPLES = 16 * (11 + 4 + 4)


@pytest.mark.parametrize(
    "source, fmas",
    [
        ("add_noise.cu", 2 * len(DTYPES) * 2 * (SAMPLES + 32 + 32)),
        ("int8.cu", 2 * (SAMPLES + 32 + 32) + 2 * (SAMPLES + 64 + 64)),
        ("restore_accumulate.cu", 2 * (SAMPLES + 64 + 64)),
        # Three dtypes: 16 results a thread; sums, scale and shift of quantized and real elements,
        # sums alone of the gradient.
        ("int8_layer.cu", len(DTYPES) * 16 * (2 + 2 + 1)),
    ],
)
def test_no_operation_may_be_fused_or_approximated(tmp_path, source, fmas):
    """Each float operation carries .rn: ptxas fuses only multiplications and sums without it."""
    nvcc(source, "-arch=sm_90", "-ptx", "-o", tmp_path / "ptx")
    ptx = (tmp_path / "ptx").read_text()
    operations = re.findall(r"\b((?:mul|add|sub|fma|sqrt|div|ex2|lg2|sin|cos)\.[\w.]*f32)\b", ptx)
    assert ("sqrt.rn.f32" in operations) == (source != "int8_layer.cu")
    assert [o for o in operations if ".rn" not in o or ".ftz" in o or "approx" in o] == []
    assert operations.count("fma.rn.f32") == fmas
