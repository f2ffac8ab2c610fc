"""Layers of SD1.5 on int8 weights beside those of optimum-quanto and torchao, and beside floats.

    python -m bench.int8_others [--json FILE]

A transformer block and a ResNet block of the U-Net at 64 x 64 latent elements, seeded random
weights, in one process with one thread, alternating: the median of the processor's seconds for a
forward; the most bytes that PyTorch's allocator had given out at a time during it, beside what was
there before (weights, inputs), inside operators too; the bytes of the weights; the distance of the
result from that of float32 over its norm. All but "float32" compute in bfloat16. "int8" quantizes
activations too, as this package does in the U-Net; "weight-only" is what the others do, torchao
with linear layers alone, so its ResNet block is all but bfloat16. A package that is missing is
left out, and the reason is printed (pip install optimum-quanto torchao).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from bench.generated import RESULTS
from sopt.files import write_json
from sopt.models import open_model
from sopt.models.random import draw_weights
from sopt.quantization import quantize
from sopt_kernels import _native

ROUNDS = 9
BLOCKS = {
    "transformer block": "down_blocks.0.attentions.0.transformer_blocks.0",
    "ResNet block": "up_blocks.3.resnets.0",
}


def quanto(module: nn.Module) -> None:
    from optimum.quanto import freeze, qint8
    from optimum.quanto import quantize as quantize_by_quanto

    quantize_by_quanto(module, weights=qint8)
    freeze(module)


def torchao(module: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "float32": lambda module: None,
    "bfloat16": lambda module: None,
    "int8": quantize,
    "weight-only": partial(quantize, activations="float"),
    "optimum-quanto": quanto,
    "torchao": torchao,
}


def inputs(block: str, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if block == "ResNet block":
        return {"input_tensor": normal(1, 960, 64, 64), "temb": normal(1, 1280)}
    text = normal(1, 77, 768)
    return {"hidden_states": normal(1, 4096, 320), "encoder_hidden_states": text}


def peak(call: Callable[[], Any]) -> int:
    """Bytes that PyTorch's allocator has given out during a call, at most at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def weight_bytes(module: nn.Module) -> int:
    """Of what wrappers, which other packages have as parameters, hold too."""
    return sum(stored_bytes(x) for x in (*module.parameters(), *module.buffers()))


def stored_bytes(x: Tensor) -> int:
    if not hasattr(x, "__tensor_flatten__"):
        return x.nbytes
    return sum(stored_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])


@torch.no_grad()
def measure(block: str) -> list[dict[str, Any]]:
    unet = open_model("random:sd15").skeleton("unet")
    module = draw_weights(unet.get_submodule(BLOCKS[block]), "unet", torch.float32, 0)
    calls: dict[str, Callable[[], Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for way, change in WAYS.items():
        dtype = torch.float32 if way == "float32" else torch.bfloat16
        changed = copy.deepcopy(module).to(dtype)
        try:
            change(changed)
        except ImportError as error:
            print(f"{way} is left out: {error}")
            continue
        calls[way] = partial(changed, **inputs(block, dtype))
        rows[way] = {"block": block, "way": way, "weight bytes": weight_bytes(changed)}
    exact = calls["float32"]()
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in tqdm(range(ROUNDS + 1), desc=block):
        for way, call in calls.items():
            start = time.process_time()
            call()
            times[way].append(time.process_time() - start)
    for way, call in calls.items():
        rows[way] |= {
            "seconds": statistics.median(times[way][1:]),  # without the warm-up
            "peak bytes": peak(call),
            "error": float((call().float() - exact).norm() / exact.norm()),
        }
    return list(rows.values())


def report(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| block | weights | ms | peak, MiB | weights, MiB | error |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        sizes = (row["peak bytes"] / 2**20, row["weight bytes"] / 2**20)
        lines.append(
            f"| {row['block']} | {row['way']} | {1e3 * row['seconds']:.0f} | {sizes[0]:.1f} | "
            f"{sizes[1]:.1f} | {row['error']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "int8_others.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for block in BLOCKS for row in measure(block)]
    print(report(rows))
    versions = {"torch": torch.__version__, "threads": 1, "level": _native.cpu_level()}
    write_json(arguments.json, versions | {"rows": rows})


if __name__ == "__main__":
    main()
