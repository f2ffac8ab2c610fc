"""Training with the weights in memory and with the weights read from the file, side by side.

    python -m bench.streamed_run --model random:sd15 --folder runs/sd15-files [--resolution 512]
                                 [--weights bfloat16] [--steps 2] [--limit] [--json FILE]

``--folder`` gets the model in the layout of diffusers, if it is not there yet: a random one is
written tensor by tensor. Each run is a process of its own, of backprop and zeroth-order steps by
turns. Reported of each: seconds a step by kind (the least, of steps whose memory is not measured),
peak bytes of tensors by phase, the peak of anonymous resident memory beyond that after the imports,
polled every 20 ms, and the losses, which must be the same.

With ``--limit`` the last run is done once more in a control group that the kernel gives no more
memory than the process's resident set after the imports and 1.2 times the peak of its tensors. Of
the resident set, pages of libraries that were in memory before do not count in the group: "group"
is what did count at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import sopt
from sopt.files import SAFETENSORS_DTYPES, write_json
from sopt.memory import anonymous_resident_bytes
from sopt.models import open_model
from sopt.models.folder import CONFIGS

from .memory_limit import MemoryLimit

POLL = 0.02  # seconds


def write_folder(name: str, folder: Path, dtype: torch.dtype) -> None:
    """A random model as a diffusers folder, with no more than one tensor in memory."""
    model = open_model(name)
    shutil.copytree(CONFIGS / name.removeprefix("random:"), folder)
    for component in model.kind.networks:
        network = model.skeleton(component)
        source = model.source(component, network)
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        entries: dict[str, Any] = {}
        offset = 0
        for key, weight in network.named_parameters():
            end = offset + weight.numel() * dtype.itemsize
            entries[key] = {
                "dtype": SAFETENSORS_DTYPES[dtype],
                "shape": list(weight.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (folder / component / f"{stem}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key, weight in network.named_parameters():
                value = torch.empty(weight.shape, dtype=dtype)
                source.read(key, value)
                file.write(value.view(-1).view(torch.uint8).numpy().data)
    for component in model.kind.tokenizers.values():
        model.tokenizer(component).save_pretrained(folder / component)


def resident_after_imports() -> int:
    """Bytes of this process's resident set; the next :func:`run` imports nothing large."""
    from sopt import drawing, trainer  # noqa: F401

    _, pages, *_ = Path("/proc/self/statm").read_text().split()
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Train; what was seen meanwhile."""
    from sopt import drawing, trainer  # noqa: F401  what is imported does not count

    started = anonymous_resident_bytes() or 0
    peak, ended = [started], threading.Event()

    def poll() -> None:
        while not ended.wait(POLL):
            peak[0] = max(peak[0], anonymous_resident_bytes() or 0)

    watcher = threading.Thread(target=poll)
    watcher.start()
    try:
        done = sopt.train(**settings)
    finally:
        ended.set()
        watcher.join()
    seconds: dict[str, list[float]] = {"bp": [], "zo": []}
    for entry in done.history:
        seconds[entry["branch"]].append(entry["seconds"])
    phases = {k: v for k, v in done.memory.items() if isinstance(v, int)}
    return {
        "offload": settings["offload"],
        "seconds": {branch: min(values) for branch, values in seconds.items() if values},
        "phases": phases,
        "peak": max(phases.values()),
        "process": peak[0] - started,
        "losses": [entry["loss"] for entry in done.history],
    }


def run_limited(executor: Executor, settings: dict[str, Any], size: int) -> dict[str, Any]:
    """As :func:`run` in a process that may take ``size`` bytes beyond its resident set after the
    imports. ``executor``: One that has not started its process."""
    with MemoryLimit() as limit:
        resident = executor.submit(resident_after_imports).result()
        limit.leave()
        limit.set(resident + size)
        found = executor.submit(run, settings).result()
        found |= {"limit": resident + size, "group": limit.peak()}
        executor.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="random:sd15")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--weights", default="bfloat16")
    parser.add_argument("--hollow")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--num_perturbations", type=int, default=1)
    parser.add_argument("--offloads", nargs="+", default=["none", "stream"])
    parser.add_argument(
        "--checkpointing", action="store_true", help="resident too, not only streamed"
    )
    parser.add_argument("--limit", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("bench/results/streamed_run.json"))
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        stored = "bfloat16" if arguments.weights == "int8" else arguments.weights
        write_folder(arguments.model, arguments.folder, getattr(torch, stored))
    offloads = [(offload, False) for offload in arguments.offloads]
    if arguments.limit:
        with MemoryLimit():  # now rather than after the other runs: may this user?
            offloads.append((arguments.offloads[-1], True))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        picture = Image.linear_gradient("L").resize((768, 768)).convert("RGB")
        picture.save(Path(work) / "picture.png")
        for offload, limited in offloads:
            settings = {
                "model": str(arguments.folder),
                "images": str(Path(work) / "picture.png"),
                "prompt": "a sks dog",
                "output": str(Path(work) / f"{offload} {limited}"),
                "schedule": 0.5,
                "seed": 6,  # the steps are bp, zo, bp, zo, ...
                "samples": False,  # 25 more forwards of each run; `sopt plan` has their peak
                "steps": arguments.steps,
                "num_perturbations": arguments.num_perturbations,
                "resolution": arguments.resolution,
                "weights": arguments.weights,
                "hollow": arguments.hollow,
                "offload": offload,
                "checkpointing": arguments.checkpointing or None,
                "vae_tiles": True,
            }
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                if limited:
                    size = int(1.2 * found[-1]["peak"])
                    found.append(run_limited(executor, settings, size))
                else:
                    found.append(executor.submit(run, settings).result())
            print(json.dumps(found[-1]), flush=True)
            write_json(arguments.json, found)
    same = all(each["losses"] == found[0]["losses"] for each in found)
    print("losses are the same" if same else "LOSSES DIFFER")


if __name__ == "__main__":
    main()
