"""The CUDA bodies of the ops: on a GPU, and libsopt_cuda compiled by the C++ compiler, of which the
kernels run on the CPU (tests/emulated_cuda)."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sopt_kernels import _native
from sopt_kernels._registry import OPS

ROOT = Path(__file__).parents[1]
# Where the launchers are that call each function.
LAUNCHERS = {
    "sopt_add_noise_cuda": ("_native_cuda", "_add_noise"),
    "sopt_restore_accumulate_cuda": ("ops.restore_accumulate.native", "_cuda"),
    "sopt_perturb_int8_cuda": ("ops.perturb_int8.native", "_cuda"),
    "sopt_update_int8_cuda": ("ops.update_int8.native", "_cuda"),
    "sopt_int8_conv2d_cuda": ("_native_int8_layers", "_forward_cuda"),
    "sopt_int8_conv2d_backward_cuda": ("_native_int8_layers", "_backward_cuda"),
    "sopt_philox4x32_10_cuda": ("ops.philox4x32.native", "_cuda"),
    "sopt_box_muller_cuda": ("ops.box_muller.native", "_cuda"),
}


def compile_emulated(folder: Path) -> ctypes.CDLL:
    """libsopt_cuda for pointers to host memory."""
    compiler = shutil.which("c++") or pytest.skip("needs c++")
    sources = ROOT / "tests" / "emulated_cuda"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    flags += ["-fno-strict-aliasing", "-shared", "-fPIC", f"-I{sources}", f"-I{ROOT}/csrc/include"]
    # A vector at an address that is no multiple of its size ends the process, as it would the
    # kernel.
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    flags += ["-fno-sanitize=pointer-overflow"]  # of tensors that are not wholly there
    path = folder / "libsopt_cuda.so"
    subprocess.run([compiler, *flags, sources / "library.cpp", "-o", path], check=True)
    library = ctypes.CDLL(str(path))
    library.sopt_last_error.restype = ctypes.c_char_p
    return library


class Emulated:
    """Calls and settings of the emulated library."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def call(self, name: str, *arguments) -> None:
        """The function on pointers; RuntimeError with its message if it fails."""
        function = getattr(self.library, name)
        function.argtypes = _native.SIGNATURES[name]
        if function(*arguments):
            raise RuntimeError(self.library.sopt_last_error().decode())

    def setting(self, name: str) -> ctypes.c_int:
        """A variable of tests/emulated_cuda/cuda_runtime.h."""
        return ctypes.c_int.in_dll(self.library, name)

    @property
    def launches(self) -> int:
        return self.setting("emulated_launches").value

    def replace_gpu(self, monkeypatch) -> None:
        """From now on the CUDA launchers of Python call this library, with tensors on the CPU."""

        def call(name):
            return lambda *arguments: self.call(name, *arguments)

        for name, (module, variable) in LAUNCHERS.items():
            launcher = importlib.import_module(f"sopt_kernels.{module}")
            monkeypatch.setattr(launcher, variable, call(name))
            monkeypatch.setattr(launcher, "current_stream", lambda: None)


@dataclass(frozen=True)
class Bodies:
    """One CUDA body of each op, and where the tensors are that it takes."""

    backend: str  # of implementations(), or emulated
    device: str

    def __getitem__(self, op: str):
        """The launcher of the op; skips where it cannot run."""
        if self.backend == "emulated":
            return OPS[op].native["cuda"]
        found = OPS[op].implementations("cuda")[self.backend]
        return found if callable(found) else pytest.skip(f"cuda {self.backend}: {found}")


def on_cpu(op: str, *arguments):
    """The body of the op that is best on the CPU: native, where there is a compiler."""
    return next(iter(OPS[op].backends("cpu").values()))(*arguments)


def terms_of(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds and coefficients."""
    numbers = torch.arange(k)
    return numbers * 0x1234_5678_9ABC_DEF1 - 5, (0.3 - 0.01 * numbers).float()
