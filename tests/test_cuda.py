"""The bodies for GPUs on a GPU: the bits of the CPU, no waiting, graphs, streams, large indices."""

from __future__ import annotations

import pytest
import torch

from sopt_kernels import add_noise_, noise, write_noisy_
from sopt_kernels._arguments import DTYPES
from sopt_kernels._noise import KINDS
from sopt_kernels._noise import noise as reference_noise
from sopt_kernels._registry import OPS

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

SIZES = [1, 3, 5, 129, 1023, 1025, 4095, 4096, 4097, 100_003]
GIB = 2**30


@pytest.fixture(params=["native", "triton"])
def launch(request):
    """Each body of ``add_noise_`` for GPUs, by name."""
    found = OPS["add_noise_"].implementations("cuda")[request.param]
    if not callable(found):
        pytest.skip(f"cuda {request.param}: {found}")
    return found


def terms_of(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(k)
    return numbers * 0x1234_5678_9ABC_DEF1 - 5, (0.3 - 0.01 * numbers).float()


def on_cpu(*arguments):
    next(iter(OPS["add_noise_"].backends("cpu").values()))(*arguments)


@pytest.mark.parametrize("terms", [0, 1, 3, 17, 256, 300])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_cpu_at_any_size_and_address(launch, dtype, kind, terms):
    """And nothing outside of the tensors is written. 300 terms do not fit into a launch."""
    for size in SIZES if terms < 4 else (1025,):
        for before in (0, 1, 4, 7):  # elements: of these addresses, vectors may use the first
            expected = torch.linspace(-2, 2, before + size + 9).to(dtype)
            actual = expected.cuda()
            ours, theirs = (x[before : before + size] for x in (actual, expected))
            rest = (*terms_of(terms), [-3], kind, 0.9)
            launch([ours], *rest)
            on_cpu([theirs], *rest)
            assert torch.equal(actual.cpu(), expected), (size, before)


def test_long_lists_of_mixed_dtypes(launch):
    sizes = [(k * 37) % 300 + 4096 * (k % 50 == 7) for k in range(1100)]  # some are empty
    expected = [torch.linspace(-1, 1, n).to(DTYPES[k % 3]) for k, n in enumerate(sizes)]
    actual = [x.cuda() for x in expected]
    rest = (*terms_of(2), list(range(1100)), "gaussian", 1.0)
    launch(actual, *rest)
    on_cpu(expected, *rest)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value_is_kept_and_rounding_is_to_nearest_even(launch, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    for decay in (1.0, 0.99, 1.001, 2.0**-9, 3.0 * 2.0**-14):  # to subnormals and infinity
        actual = every.cuda()
        launch([actual], *terms_of(0), [0], "gaussian", decay)
        expected = (every.float() * torch.tensor(decay)).to(dtype)
        assert torch.equal(actual.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(actual.cpu().isnan(), every.isnan())


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_box_muller_of_64_mi_words(backend):
    """Square root, logarithm and cosine: where an approximation of the GPU would show."""
    found = OPS["box_muller"].implementations("cuda")[backend]
    if not callable(found):
        pytest.skip(f"cuda {backend}: {found}")
    on_the_cpu = next(iter(OPS["box_muller"].backends("cpu").values()))
    for start in range(4):
        words = torch.arange(2**24) * 0x9E3779B1 + start * 0x3C6EF372
        words[0::2] = torch.arange(start, 2**32, 2**9)[: 2**23]  # from one end to the other
        bits = words.to(torch.int32).view(torch.uint32)
        assert torch.equal(found(bits.cuda()).cpu(), on_the_cpu(bits))


def test_indices_past_two_to_the_32(launch):
    n = 2**32 + 4096 + 77
    if torch.cuda.mem_get_info()[0] < 2 * n + GIB:
        pytest.skip("needs 9 GiB of free GPU memory")
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    for kind in KINDS:
        x.zero_()
        launch([x], torch.tensor([1]), torch.ones(1), [2], kind, 1.0)
        for begin in (0, 2**31 - 4096, 2**32 - 4096, 2**32):
            end = min(begin + 8192, n)
            expected = reference_noise(kind, 1, 2, begin, end, torch.device("cpu"))
            assert torch.equal(x[begin:end].cpu(), expected.bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_public_functions_give_the_bits_of_the_cpu(kind):
    base = torch.randn(5003)
    expected = add_noise_(base.clone(), [1, 2], [0.5, -0.25], streams="w", kind=kind)
    assert torch.equal(noise(5003, 7, "w", kind, "cuda").cpu(), noise(5003, 7, "w", kind))
    there = base.cuda()
    out = torch.full_like(there, float("nan"))
    write_noisy_(out, there, [1, 2], [0.5, -0.25], streams="w", kind=kind)
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(there.cpu(), base)
    version = there._version
    add_noise_(there, [1, 2], [0.5, -0.25], streams="w", kind=kind)
    assert torch.equal(there.cpu(), expected)
    assert there._version > version


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rounding_gives_the_bits_of_the_cpu(launch, dtype, kind):
    """The native body hands these on; see _native_add_noise.add_noise_cuda."""
    for roundings in (([], [9]), ([1, 2], None), ([1, 2], [9, -8, 7])):
        cuts, seeds = roundings
        rest = (*terms_of(3), [-3], kind, 0.9, cuts, None if seeds is None else torch.tensor(seeds))
        expected = torch.linspace(-2, 2, 5003).to(dtype)
        actual = expected.cuda()
        launch([actual], *rest)
        on_cpu([expected], *rest)
        assert torch.equal(actual.cpu(), expected)


def test_nothing_waits_for_the_gpu_and_nothing_is_allocated(launch):
    x = torch.zeros(5000, device="cuda")
    seeds, coefficients = terms_of(2)
    on_gpu = coefficients.cuda()
    arguments = [(seeds, coefficients), (seeds, on_gpu), (seeds.cuda(), on_gpu)]
    for terms in arguments:  # compiled, and tables made, the first time
        launch([x], *terms, [1], "gaussian", 1.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for terms in arguments:
            launch([x], *terms, [1], "gaussian", 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if "native" in launch.__module__:
        assert torch.cuda.max_memory_allocated() == before


def test_captured_in_a_graph(launch):
    """With the coefficient of each replay from device memory, as a step computes it there."""
    native = "native" in launch.__module__
    x, coefficient = torch.zeros(5000, device="cuda"), torch.ones(1, device="cuda")
    seeds = torch.tensor([5]).to("cpu" if native else "cuda")
    arguments = ([x], seeds, coefficient, [1], "gaussian", 1.0)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        launch(*arguments)
    side.synchronize()
    x.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(*arguments)
    if native:
        seeds.zero_()  # the graph has its own copy
    for value in (0.5, -0.25):
        coefficient.fill_(value)
        graph.replay()
    expected = torch.zeros(5000)
    for value in (0.5, -0.25):
        add_noise_(expected, 5, value, streams=1)
    assert torch.equal(x.cpu(), expected)


def test_runs_on_the_stream_of_pytorch(launch):
    x = torch.ones(5000, device="cuda")
    launch([x], *terms_of(1), [1], "gaussian", 1.0)  # compiled the first time
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**8)  # cycles: a launch on another stream would come before zero_
        x.zero_()
        launch([x], *terms_of(1), [1], "gaussian", 1.0)
    side.synchronize()
    expected = torch.zeros(5000)
    on_cpu([expected], *terms_of(1), [1], "gaussian", 1.0)
    assert torch.equal(x.cpu(), expected)


def test_compiles_into_one_graph():
    def f(x, c):
        y = add_noise_(x * 2, [1, 2], c, streams=7) + 1
        return write_noisy_(torch.empty_like(y), y, 3, 0.5, streams=8)

    x, c = torch.randn(37, 65), torch.tensor([0.5, 0.25])
    compiled = torch.compile(f, fullgraph=True)
    assert torch.equal(compiled(x.cuda(), c.cuda()).cpu(), f(x, c))


def test_rejects_arguments_on_other_devices():
    x, y = torch.zeros(3, device="cuda"), torch.zeros(3)
    with pytest.raises(ValueError, match="params must be on one device, got cuda:0 and cpu"):
        add_noise_([x, y], 1, 1.0, streams=[1, 2])
    with pytest.raises(ValueError, match="coefficients must be on the CPU or on cpu, got cuda:0"):
        add_noise_(y, 1, torch.ones(1, device="cuda"), streams=1)
    with pytest.raises(ValueError, match="coefficients must be finite"):
        add_noise_(x, 1, float("nan"), streams=1)
    assert not x.any()
