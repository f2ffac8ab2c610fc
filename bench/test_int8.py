"""``perturb_int8_`` and ``update_int8_`` beside the in-place stream of int8.

Every code takes a random word of its own for its rounding, so no kernel is faster than the
generator, which ``bench/words.cpp`` measures alone.

Run: pytest bench/test_int8.py (--threads 1)
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.measure import STREAM, measure
from sopt_kernels import perturb_int8_, update_int8_

LOG2_SIZES = {"64Ki": 16, "4Mi": 22, "64Mi": 26}
ROW = 4096


@pytest.mark.parametrize("size", LOG2_SIZES)
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("op", ["perturb", "update"])
def test_codes(benchmark, op, kind, size):
    codes = torch.zeros(1 << LOG2_SIZES[size], dtype=torch.int8)
    scales, other = torch.full((len(codes) // ROW,), 0.01), torch.empty_like(codes)
    options = {"headroom": 8, "streams": 1, "rounding_seed": 2, "kind": kind}
    if op == "update":
        options |= {"eps": 4e-3, "delta_rounding_seeds": 3}
    run = partial({"perturb": perturb_int8_, "update": update_int8_}[op], codes, scales, 1, 4e-3)
    yardsticks = {"copy": partial(other.copy_, codes), STREAM: partial(codes.mul_, 1)}
    benchmark.group = f"{op}_int8_ {size}"
    measure(benchmark, partial(run, **options), yardsticks, 2 * codes.nbytes)
