"""Every CUDA body of libsopt on odd sizes and addresses, for tools that watch a process.

``compute-sanitizer --tool memcheck python -m bench.gpu_bodies``. With
PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an allocation of its own, and a write past its end
is seen; that results are right is what the tests are for.
"""

from __future__ import annotations

import torch

from sopt_kernels._arguments import DTYPES
from sopt_kernels._noise import KINDS
from sopt_kernels._registry import OPS

SIZES = (1, 4095, 4097, 100_003)


def call_all(device: str) -> None:
    for op in OPS.values():
        if "cuda" in op.native:
            for sample in op.samples(device):
                op.native["cuda"](*sample)
    for kind in KINDS:
        for n in SIZES:
            for dtype in DTYPES:
                floats(kind, dtype, n, device)
            codes(kind, n, device)


def floats(kind: str, dtype: torch.dtype, n: int, device: str) -> None:
    add_noise, restore = (
        OPS[f"{op}_"].native["cuda"] for op in ("add_noise", "restore_accumulate")
    )
    whole, grads = torch.zeros(n, dtype=dtype, device=device), torch.zeros(n, device=device)
    one, seed = torch.ones(1), torch.tensor([1])
    for x, g in ((whole, grads), (whole[1:], grads[1:])):  # vectors may not be used on the second
        for terms in (1, 17):
            sums = (torch.arange(terms), torch.ones(terms), [0], kind, 0.5)
            add_noise([x], *sums)
            add_noise([x], *sums, list(range(1, terms)), torch.arange(terms))
        restore([x], [g], seed, one, -one, [0], kind)


def codes(kind: str, n: int, device: str) -> None:
    perturb, update = (OPS[f"{op}_int8_"].native["cuda"] for op in ("perturb", "update"))
    whole = torch.full((n,), 127, dtype=torch.int8, device=device)
    clamped, seed = torch.zeros((), dtype=torch.int64, device=device), torch.tensor([1])
    for x in (whole, whole[1:]):
        for rows in {1, len(x)} - {0}:
            scales = torch.ones(rows, device=device)
            for terms in (1, 17):
                seeds, each = torch.arange(terms), torch.ones(terms)
                arguments = ([x], [scales], seeds, each, [0], kind, 8, seed)
                perturb(*arguments)
                update(*arguments, seeds, each[:1], clamped)


if __name__ == "__main__":
    call_all("cuda")
    torch.cuda.synchronize()
