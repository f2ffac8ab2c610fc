"""Builds csrc/ with CMake into sopt_kernels/native; metadata lives in pyproject.toml.

SOPT_BUILD=auto (default): native kernels if there is a C++ compiler, for CUDA too if there is nvcc,
else plain PyTorch alone. Also: cuda (a missing compiler of either kind is an error), cpu (no CUDA;
a missing C++ compiler is an error), none (pure Python). A compiler that is found and fails is
always an error. Neither PyTorch nor Python headers take part, nor a GPU, so one wheel serves every
version of both.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).parent
SOPT_CUDA = {"auto": "AUTO", "cuda": "ON", "cpu": "OFF", "none": "OFF"}  # of csrc/CMakeLists.txt
MODE = os.environ.get("SOPT_BUILD", "auto")
if MODE not in SOPT_CUDA:
    raise ValueError(f"SOPT_BUILD must be one of {tuple(SOPT_CUDA)}, got {MODE!r}")

COMPILERS = [c for c in (os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++") if c]
NATIVE = MODE in ("cuda", "cpu") or (MODE == "auto" and any(map(shutil.which, COMPILERS)))


class build_native(Command):
    """A sub-command of ``build``, by setuptools' SubCommand protocol."""

    description = "build csrc/ with CMake"
    user_options: ClassVar[list] = []
    editable_mode = False  # set by setuptools for pip install -e

    def initialize_options(self):
        self.build_lib = self.build_temp = None

    def finalize_options(self):
        self.set_undefined_options(
            "build", ("build_lib", "build_lib"), ("build_temp", "build_temp")
        )

    def run(self):
        package = (ROOT if self.editable_mode else Path(self.build_lib).resolve()) / "sopt_kernels"
        shutil.rmtree(package / "native", ignore_errors=True)  # of an earlier SOPT_BUILD
        if not NATIVE:
            if MODE == "auto":
                self.warn(
                    f"no C++ compiler ({', '.join(COMPILERS)}) was found: installing without "
                    "libsopt; the plain-PyTorch kernels give the same bits, slowly"
                )
            return
        tree = Path(self.build_temp).resolve() / "csrc"
        cuda = f"-DSOPT_CUDA={SOPT_CUDA[MODE]}"
        for arguments in (
            # --fresh: a cached path to ninja points into the last, deleted build environment
            ["--fresh", "-S", ROOT / "csrc", "-B", tree, "-G", "Ninja", cuda],
            ["--build", tree],
            ["--install", tree, "--prefix", package / "native", "--strip"],
        ):
            command = ["cmake", *map(str, arguments)]
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(
                    f"{' '.join(command)} failed: see above. SOPT_BUILD=cpu leaves CUDA out, "
                    "SOPT_BUILD=none installs without native kernels."
                )

    def get_source_files(self):
        return [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()]

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return NATIVE


class platform_wheel(bdist_wheel):
    """Tags the wheel for the platform alone: no Python ABI is used."""

    def get_tag(self):
        tag = super().get_tag()
        return ("py3", "none", tag[2]) if NATIVE else tag


build.sub_commands.append(("build_native", None))
setup(
    distclass=PlatformDistribution,
    cmdclass={"build_native": build_native, "bdist_wheel": platform_wheel},
)
