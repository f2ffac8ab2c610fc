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

SUMS = ("add_noise_", "write_noisy_")  # other roundings than one to nearest are left to Triton


def main() -> None:
    for op in OPS.values():
        for sample in op.samples("cuda") if "cuda" in op.native else ():
            if op.name not in SUMS or (not sample[-2] and sample[-1] is None):
                op.native["cuda"](*sample)
    add_noise = OPS["add_noise_"].native["cuda"]
    for kind in KINDS:
        for dtype in DTYPES:
            for n in (1, 4095, 4097, 100_003):
                whole = torch.zeros(n, dtype=dtype, device="cuda")
                for x in (whole, whole[1:]):  # vectors may not be used on the second
                    for terms in (1, 17):
                        seeds = torch.arange(terms), torch.ones(terms)
                        add_noise([x], *seeds, [0], kind, 1.0)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
