"""What perturbing weights in place and taking it back leaves of them: ``python -m bench.drift``.

65,536 weights of N(0, 0.02^2), perturbed and restored 1,000 times under fresh seeds, as +eps,
-2 eps, +eps, without any update. The figures are the same on every machine, as all bits are:
the table stands in docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sopt_kernels import add_noise_, noise, perturb_int8_, write_noisy_

SIZE, STD, STEPS, EPS = 1 << 16, 0.02, 1000, 1e-3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def in_place(weights: Tensor, step: int) -> None:
    for c in (EPS, -2 * EPS, EPS):
        add_noise_(weights, step, c, streams="w")


def into_a_copy(weights: Tensor, step: int) -> None:
    perturbed = torch.empty_like(weights)
    for c in (EPS, -EPS):
        write_noisy_(perturbed, weights, step, c, streams="w")


def codes_in_place(codes: Tensor, step: int) -> None:
    scale = torch.full((1,), 4 * STD / 119)
    for c in (EPS, -EPS, -EPS, EPS):
        perturb_int8_(codes, scale, step, c, 8, streams="w", rounding_seed=step)


def drift(start: Tensor, cycle: Callable[[Tensor, int], None]) -> list[str]:
    """Share of weights that changed after one step; root mean square of the change after some."""
    weights, row = start.clone(), []
    for step in range(1, STEPS + 1):
        cycle(weights, step)
        if step in (1, 100, STEPS):
            change = weights.double() - start.double()
            if step == 1:
                row.append(f"{100 * (change != 0).double().mean().item():.1f} %")
            size = change.square().mean().sqrt() / start.double().std()
            row.append(f"{100 * size.item():.2g} %")
    return row


def table() -> str:
    start = noise(SIZE, 0, "drift") * STD
    codes = (start * (119 / (4 * STD))).round().clamp(-119, 119).to(torch.int8)
    columns = ["weights", "op", "changed by one step", "drift after 1", "after 100", "after 1,000"]
    rows = [columns, ["---"] * len(columns)]
    for name, dtype in DTYPES.items():
        rows.append([name, "`add_noise_`", *drift(start.to(dtype), in_place)])
    rows.append(["bfloat16", "`write_noisy_`", *drift(start.bfloat16(), into_a_copy)])
    rows.append(["int8 codes", "`perturb_int8_`", *drift(codes, codes_in_place)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
