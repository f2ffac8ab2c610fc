"""The inputs behind kat/golden.txt, and the hash of what each op makes of them.

``python tests/golden.py`` prints the file. Inputs are a few integer operations, the hash is 64-bit
FNV-1a of the bytes of all outputs in order, so that a program in any language can repeat them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sopt_kernels._noise import KINDS
from sopt_kernels._registry import OPS

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SIZE, ROWS = 5005, 7  # a tail after whole tiles of 2048, and rows of 715 codes
SEEDS = [0x1234_5678_9ABC_DEF0 + k for k in range(3)]
STREAM = 0xFEDC_BA98_7654_3210 - 2**64  # as int64
COEFFICIENTS = torch.tensor([0.5, -0.25, 0.125])
ROUNDING = torch.tensor([77, 78])
HEADROOM = 8


def integers(low: int, high: int) -> Tensor:
    """``low + (i * 2654435761 mod 2^32) mod (high - low)``."""
    return torch.arange(SIZE) * 2654435761 % 2**32 % (high - low) + low


def values(dtype: str, device: str) -> Tensor:
    """Multiples of 1/64 in [-2, 2), which every dtype holds."""
    return (integers(-128, 128).float() / 64).to(device, DTYPES[dtype])


def calls(kind: str, dtype: str, device: str = "cpu") -> dict[str, tuple[tuple, list[Tensor]]]:
    """For each row of the file: arguments of the op, and those of them that it writes."""
    seeds = torch.tensor(SEEDS)
    sums = (seeds, COEFFICIENTS, [STREAM], kind, 0.75)
    if dtype == "int8":
        codes = integers(-119, 120).to(device, torch.int8)
        scales = ((torch.arange(ROWS) + 1) / 16).to(device)
        clamped = torch.zeros((), dtype=torch.int64, device=device)
        common = ([STREAM], kind, HEADROOM, ROUNDING[:1])
        perturb = ([codes.clone()], [scales], seeds, COEFFICIENTS, *common)
        directions = (seeds + 1000, torch.tensor([0.5]), clamped)
        update = ([codes.clone()], [scales], seeds, COEFFICIENTS * 48, *common, *directions)
        return {
            "perturb_int8_": (perturb, perturb[0]),
            "update_int8_": (update, [*update[0], clamped]),
        }
    x = [[values(dtype, device)] for _ in range(6)]
    scalars = (seeds[:1], COEFFICIENTS[:1], COEFFICIENTS[1:2])
    return {
        "add_noise_": ((x[0], *sums, [], None), x[0]),
        "add_noise_/round_after": ((x[1], *sums, [1], None), x[1]),
        "add_noise_/stochastic": ((x[2], *sums, [1], ROUNDING), x[2]),
        "write_noisy_": ((x[3], [values(dtype, device)], *sums, [], None), x[3]),
        "restore_accumulate_": ((x[4], x[5], *scalars, [STREAM], kind), [*x[4], *x[5]]),
    }


def fnv_1a(outputs: list[Tensor]) -> str:
    state = 0xCBF29CE484222325
    for x in outputs:
        for byte in bytes(x.reshape(-1).view(torch.uint8).tolist()):
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def names() -> list[tuple[str, str, str]]:
    """(row, dtype, kind) of every line."""
    return [
        (row, dtype, kind)
        for kind in KINDS
        for dtype in (*DTYPES, "int8")
        for row in calls(kind, dtype)
    ]


def golden(
    row: str, dtype: str, kind: str, body: Callable[[str], Callable], device: str = "cpu"
) -> str:
    """The hash of a line; ``body`` gives the launcher of an op, for tensors on ``device``."""
    arguments, outputs = calls(kind, dtype, device)[row]
    body(row.partition("/")[0])(*arguments)
    return fnv_1a(outputs)


if __name__ == "__main__":
    print("# Golden hashes of every op, noise version 1; inputs and hash: tests/golden.py")
    print("# op[/rounding] dtype kind fnv1a64")
    for line in names():
        print(*line, golden(*line, lambda op: OPS[op].reference))
