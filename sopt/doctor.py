"""What this machine has for sopt: versions, devices, and which body of each kernel is in use."""

import importlib.metadata
import os
import platform
from dataclasses import asdict
from typing import Any

import torch

import sopt_kernels

PACKAGES = ("sopt", "torch", "diffusers", "transformers", "peft", "accelerate", "triton", "pillow")
GIB = 2**30


def examine() -> dict[str, Any]:
    """Findings as plain values.

    Returns:
        ``versions``: package to version, None if it is not installed. ``devices``: name,
        description and memory in bytes of the CPU and of each GPU. ``kernels``: one entry for each
        body (native, triton, reference) of each op on each device type, with ``selected`` for the
        one in use and a ``reason`` for one that cannot run here.

    Example:
        >>> examine()["devices"][0]["name"]
        'cpu'
    """
    return {
        "versions": versions(),
        "devices": [_cpu(), *map(_gpu, range(torch.cuda.device_count()))],
        "kernels": [asdict(body) for body in sopt_kernels.backends()],
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results may depend on; None of one that is not there."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def render(findings: dict[str, Any]) -> str:
    """The findings as text, one fact a line."""
    lines = [
        f"{package:14}{version or 'not installed'}"
        for package, version in findings["versions"].items()
    ]
    lines += [
        f"{device['name']:14}{device['description']}, {device['memory_bytes'] / GIB:.1f} GiB"
        for device in findings["devices"]
    ]
    # One line for all ops of which the same holds, which in most cases is all ops.
    ops_by_state: dict[tuple[str, str, str], list[str]] = {}
    for body in findings["kernels"]:
        state = "in use" if body["selected"] else body["reason"] or "available"
        ops = ops_by_state.setdefault((body["device_type"], body["backend"], state), [])
        ops.append(body["op"])
    number_of_ops = len({body["op"] for body in findings["kernels"]})
    for (device_type, backend, state), ops in ops_by_state.items():
        which = f"all {len(ops)} ops" if len(ops) == number_of_ops else ", ".join(ops)
        lines.append(f"{device_type + ' kernels':14}{backend:11}{state} ({which})")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    level = sopt_kernels.cpu_level() or "none: libsopt is not installed"
    threads = torch.get_num_threads()
    return {
        "name": "cpu",
        "description": f"{platform.machine()}, kernels of level {level}, {threads} threads, "
        f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return {
        "name": f"cuda:{index}",
        "description": f"{properties.name}, {capability}",
        "memory_bytes": properties.total_memory,
    }
