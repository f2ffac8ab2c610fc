"""The CUDA bodies on a GPU, beside test_cuda_bits.py: no waiting, graphs, streams, indices."""

from __future__ import annotations

import pytest
import torch
from cuda_bodies import Bodies, on_cpu, terms_of

from sopt_kernels import add_noise_, noise, write_noisy_
from sopt_kernels._noise import KINDS
from sopt_kernels._noise import noise as reference_noise
from sopt_kernels._registry import OPS

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

GIB = 2**30


@pytest.fixture(params=["native", "triton"])
def launch(request):
    """Each body of ``add_noise_`` for GPUs, by name."""
    return Bodies(request.param, "cuda")["add_noise_"]


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_box_muller_of_64_mi_words(backend):
    """Square root, logarithm and cosine: where an approximation of the GPU would show."""
    found = Bodies(backend, "cuda")["box_muller"]
    for start in range(4):
        words = torch.arange(2**24) * 0x9E3779B1 + start * 0x3C6EF372
        words[0::2] = torch.arange(start, 2**32, 2**9)[: 2**23]  # from one end to the other
        bits = words.to(torch.int32).view(torch.uint32)
        assert torch.equal(found(bits.cuda()).cpu(), on_cpu("box_muller", bits))


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


def code_arguments(device):
    """Of ``perturb_int8_`` and ``update_int8_``, with their coefficients in device memory."""
    one = torch.ones(1, device=device)
    seed = torch.tensor([1])
    codes = torch.zeros(5000, dtype=torch.int8, device=device)
    perturb = ([codes], [one], seed, one, [1], "gaussian", 8, seed)
    return perturb, (*perturb, seed, one, torch.zeros((), dtype=torch.int64, device=device))


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("op", [op for op in OPS if op.endswith("_")])
def test_nothing_waits_for_the_gpu_and_nothing_is_allocated(op, backend):
    body = Bodies(backend, "cuda")[op]
    x, y = (torch.zeros(5000, device="cuda") for _ in range(2))
    seeds, coefficients = terms_of(2)
    on_gpu, seed, one = coefficients.cuda(), torch.tensor([1]), torch.ones(1, device="cuda")
    terms = [(seeds, coefficients), (seeds, on_gpu), (seeds.cuda(), on_gpu)]
    perturb, update = code_arguments("cuda")
    calls = {
        "add_noise_": [([x], *t, [1], "gaussian", 1.0) for t in terms],
        "write_noisy_": [([x], [y], *t, [1], "gaussian", 1.0) for t in terms],
        "restore_accumulate_": [([x], [y], seed, one, -one, [1], "gaussian")],
        "perturb_int8_": [perturb],
        "update_int8_": [update],
    }[op]
    if op in ("add_noise_", "write_noisy_"):
        calls += [(*arguments, [1], torch.tensor([3, 4])) for arguments in calls]
    for arguments in calls:  # compiled, and tables made, the first time
        body(*arguments)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for arguments in calls:
            body(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if backend == "native":
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


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_codes_in_a_graph(backend):
    """Perturbed by one coefficient of a replay, and restored by the next: every byte is back."""
    body = Bodies(backend, "cuda")["perturb_int8_"]
    arguments, _ = code_arguments("cuda")
    (codes,), coefficient = arguments[0], arguments[3]
    if backend == "triton":  # it copies what lies on the host, which a graph cannot
        arguments = tuple(x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        body(*arguments)
    side.synchronize()
    codes.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body(*arguments)
    for value in (0.5, -0.5):
        coefficient.fill_(value)
        graph.replay()
        assert codes.any().item() == (value > 0)


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
    on_cpu("add_noise_", [expected], *terms_of(1), [1], "gaussian", 1.0)
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
