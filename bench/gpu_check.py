"""Proof and measurement of the kernels on this machine's GPU: ``python -m bench.gpu_check``.

One command for a fresh CUDA machine, under 8 minutes, with the Python it runs under and nothing
from the network: PyTorch, Triton, pytest, hypothesis, cmake, a C++ compiler and nvcc must be there.
It builds libsopt_cuda for this working tree, runs every kernel test on the GPU, those that compare
bits with the CPU among them, then compute-sanitizer on the CUDA bodies where that tool is there,
then :mod:`bench.gpu_speed`. Results go to bench/results/<gpu>-<date>.json, a table of them into the
README, and the whole table is printed last. The status is 1 if a test failed or the sanitizer found
something: the results say so too.

``--rehearse`` goes the same way on a machine without a GPU, with few tests and tiny tensors on the
CPU, and writes no results: it shows that the command itself works.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from . import gpu_table
from .generated import RESULTS, ROOT

TRAINER = re.compile(r"^\s*(import sopt\b|from (sopt|pipelines)\b)", re.MULTILINE)
SANITIZERS = ("memcheck", "racecheck")
SANITIZER_SECONDS = 50
TEST_SECONDS = 270  # a limit, so that a hanging kernel still leaves results


def tool(name: str) -> str | None:
    """A program beside this Python, on the PATH, or of the CUDA toolkit."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    if "CUDA_HOME" in os.environ:
        places.append(os.environ["CUDA_HOME"] + "/bin")
    return shutil.which(name, path=os.pathsep.join([*places, "/usr/local/cuda/bin"]))


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """In the root of the repository, which comes first in the path of modules."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    print("$", *command, flush=True)
    return subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=environment, text=True, **options
    )


def build() -> None:
    """As setup.py does, but into this tree and with lines of the source for the sanitizer."""
    cmake = tool("cmake") or sys.exit("bench.gpu_check needs cmake 3.25 or newer")
    tree = ROOT / "build" / "gpu-check"
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    flags = {"CUDAFLAGS": f"{os.environ.get('CUDAFLAGS', '')} -lineinfo"}
    configure = [cmake, "--fresh", "-S", "csrc", "-B", tree, *generator, "-DSOPT_CUDA=ON"]
    for command in (
        configure,
        [cmake, "--build", tree, "--parallel", os.cpu_count()],
        [cmake, "--install", tree, "--prefix", ROOT / "sopt_kernels" / "native"],
    ):
        if run(*command, env=flags).returncode:
            sys.exit("bench.gpu_check: libsopt did not build, see above")


def kernel_tests() -> list[Path]:
    """The files of tests that need nothing of the trainer, and so neither diffusers nor peft."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in files if not TRAINER.search(path.read_text())]


def test(rehearse: bool) -> dict[str, Any]:
    """Counts, the names of failures, and each reason for skipping with its count."""
    chosen = ["-k", "philox_vectors"] if rehearse else ["-m", ""]
    if importlib.util.find_spec("xdist"):  # a kernel that ends its process then fails one test
        chosen += ["-n", str(min(4, os.cpu_count() or 1))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
        try:
            done = run(*command, f"--junitxml={report}", *kernel_tests(), timeout=TEST_SECONDS)
            fault = f"pytest ended with status {done.returncode} and without a report"
        except subprocess.TimeoutExpired:
            fault = f"not done after {TEST_SECONDS} s"
        if report.exists():
            return counts(report.read_text())
        return {"passed": 0, "failed": 1, "skipped": 0, "failures": [fault], "reasons": {}}


def counts(junit: str) -> dict[str, Any]:
    passed, failures, reasons = 0, [], {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            reason = skipped.get("message", "")
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": sum(reasons.values()),
        "failures": failures,
        "reasons": reasons,
    }


def sanitize() -> dict[str, str]:
    """What each tool of compute-sanitizer says of the CUDA bodies, or why it did not run."""
    program = tool("compute-sanitizer")
    if program is None:
        return dict.fromkeys(SANITIZERS, "did not run: not installed")
    results = {}
    for name in SANITIZERS:
        command = [program, "--tool", name, sys.executable, "-m", "bench.gpu_bodies"]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = run(*command, env=alone, timeout=SANITIZER_SECONDS, capture_output=True)
        except subprocess.TimeoutExpired:
            results[name] = f"did not run: not done after {SANITIZER_SECONDS} s"
            continue
        results[name] = verdict(done.stdout + done.stderr, done.returncode)
        print(results[name])
    return results


def verdict(output: str, status: int) -> str:
    """The tool's own summary if the program ended well; else the last thing that was said."""
    if "Device not supported" in output:  # in some virtual machines; what follows is no finding
        return "did not run: Device not supported"
    found = re.findall(r"((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    if found and status == 0:
        return found[-1]
    lines = output.strip().splitlines() or ["no output"]
    return f"{'failed' if found else 'did not run'}: {(found or lines)[-1].strip()}"


def clean(found: str) -> bool:
    """No error, or a tool that this machine does not have or cannot run."""
    return found.startswith("did not run") or bool(re.match(r"\w+ SUMMARY: 0 ", found))


def speed(rehearse: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speed.json"
        options = ["--rehearse"] if rehearse else []
        if run(sys.executable, "-m", "bench.gpu_speed", "--json", path, *options).returncode:
            sys.exit("bench.gpu_check: the benchmarks failed, see above")
        return json.loads(path.read_text())


def versions() -> str:
    nvcc = run(tool("nvcc") or "nvcc", "--version", capture_output=True).stdout
    (toolkit,) = re.findall(r"release ([\d.]+)", nvcc)
    triton = importlib.metadata.version("triton")
    return f"torch {torch.__version__}, triton {triton}, nvcc {toolkit}"


def commit() -> str:
    """Of the working tree, "+" added if it differs; "unknown" where there is no git."""
    if tool("git") is None or not (ROOT / ".git").exists():
        return "unknown"
    described = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
    return run(*described, capture_output=True).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true")
    rehearse = parser.parse_args().rehearse
    if not rehearse and not torch.cuda.is_available():
        sys.exit("bench.gpu_check needs a CUDA device, and PyTorch sees none on this machine")
    if tool("nvcc") is None:
        sys.exit("bench.gpu_check needs nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
    result: dict[str, Any] = {
        "gpu": "none" if rehearse else torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "step_seconds": {},
    }
    steps = {
        "build": build,
        "tests": lambda: test(rehearse),
        "sanitizer": sanitize,
        "speed": lambda: speed(rehearse),
    }
    for name, step in steps.items():
        started = time.monotonic()
        result[name] = step()
        result["step_seconds"][name] = round(time.monotonic() - started, 1)
    del result["build"]  # it has no findings: it exits where it fails
    if not rehearse:
        RESULTS.mkdir(exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-")
        path = RESULTS / f"{stem}-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        run(sys.executable, "-m", "bench.gpu_table")
        print("wrote", path.relative_to(ROOT), "and README.md: commit both")
    if rehearse:
        print("A rehearsal, with tiny tensors on the CPU: the figures below mean nothing.")
    print(gpu_table.table(result) + "\n" + gpu_table.summary(result), end="")
    print("seconds:", ", ".join(f"{name} {s}" for name, s in result["step_seconds"].items()))
    for failure in result["tests"]["failures"]:
        print("FAILED", failure)
    if result["tests"]["failed"] or not all(map(clean, result["sanitizer"].values())):
        sys.exit(1)


if __name__ == "__main__":
    main()
