"""libsopt_cpu built in other ways: watched by sanitizers, and for ARM under emulation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sopt_kernels import _native

ROOT = Path(__file__).parents[1]
HEADERS = f"-I{ROOT}/csrc/include"
KERNEL_TESTS = ("add_noise", "c_library", "int8", "known_answers", "noise", "restore_accumulate")
# What looks at the installed library itself, at PyTorch's compiler or at other devices.
LEFT_OUT = "not exports and not needs_only and not shares_no_code and not client and not compiles"
LEFT_OUT += " and not cuda_build and not cycles and not interpreted and not quadratic"

pytestmark = pytest.mark.slow


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"needs {name}")


def run(*command, **options) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(folder: Path, *options: str) -> Path:
    """The library of a CMake build with these options."""
    cmake, ninja = tool("cmake"), tool("ninja")
    run(cmake, "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DSOPT_CUDA=OFF", *options)  # fmt: skip
    run(cmake, "--build", folder)
    return next(folder.glob("libsopt_cpu.*"))


def golden_lines() -> list[str]:
    lines = (ROOT / "kat" / "golden.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_sanitizers_find_nothing_in_the_client_and_the_kernel_tests(tmp_path):
    compiler = tool("g++")
    runtime = run(compiler, "-print-file-name=libasan.so").strip()
    if not Path(runtime).is_absolute():
        pytest.skip("needs libasan")
    options = (f"-DCMAKE_CXX_COMPILER={compiler}", "-DSOPT_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    library = build(tmp_path / "build", *options)

    run(tool("gcc"), "-std=c99", "-g", "-fsanitize=address,undefined", HEADERS,
        ROOT / "tests" / "client.c", "-o", tmp_path / "client", f"-L{library.parent}",
        "-lsopt_cpu", f"-Wl,-rpath,{library.parent}")  # fmt: skip
    assert run(tmp_path / "client").splitlines() == golden_lines()

    # Beside a copy of the package, whose library it is.
    ignored = shutil.ignore_patterns("native", "__pycache__")
    shutil.copytree(ROOT / "sopt_kernels", tmp_path / "sopt_kernels", ignore=ignored)
    installed = tmp_path / "sopt_kernels" / "native" / "lib"
    installed.mkdir(parents=True)
    library.rename(installed / library.name)
    # The second for exceptions of PyTorch, which the first must find when the process starts.
    runtimes = f"{runtime} {run(compiler, '-print-file-name=libstdc++.so.6').strip()}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LD_PRELOAD": runtimes}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # Python's own
    check = "import sopt_kernels._native as n; print(n.__file__, n.cpu_level())"
    found, level = run(sys.executable, "-c", check, cwd=tmp_path, env=environment).split()
    assert found.startswith(str(tmp_path))
    assert level
    files = [ROOT / "tests" / f"test_{name}.py" for name in KERNEL_TESTS]
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    run(*command, *files, cwd=tmp_path, env=environment)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A function that runs a program in plain C on an emulated processor with these arguments."""
    folder, target = tmp_path_factory.mktemp("arm"), "aarch64-linux-gnu"
    emulator, compiler = tool("qemu-aarch64"), tool(f"{target}-g++")
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    options = (*system, f"-DCMAKE_CXX_COMPILER={compiler}", "-DBUILD_SHARED_LIBS=OFF")
    library = build(folder / "build", *options)

    def run_on(processor: str, source: Path, *arguments: str) -> list[str]:
        program = folder / source.stem
        run(tool(f"{target}-gcc"), "-std=gnu99", HEADERS, source, "-static", "-o", program, library,
            "-lm")  # fmt: skip
        return run(emulator, "-cpu", processor, program, *arguments).splitlines()

    return run_on


# The first processor has no instruction for dot products of bytes.
@pytest.mark.parametrize("processor, level", [("cortex-a57", "neon"), ("max", "neon_dot")])
def test_neon_repeats_the_golden_hashes(arm, tmp_path, processor, level):
    """Of every op, dtype, noise and rounding, by the client in plain C."""
    (tmp_path / "level.c").write_text(
        "#include <sopt.h>\n#include <stdio.h>\n"
        "int main(void) { return puts(sopt_cpu_level()) < 0; }"
    )
    assert arm(processor, tmp_path / "level.c") == [level]
    assert arm(processor, ROOT / "tests" / "client.c") == golden_lines()


def test_neon_has_the_bits_of_int8_layers(arm, tmp_path):
    libraries = Path(_native.__file__).with_name("native") / "lib"
    if "cpu" not in _native.LIBRARIES:
        pytest.skip(_native.UNAVAILABLE["cpu"])
    source = ROOT / "tests" / "layers.c"
    run(tool("gcc"), "-std=gnu99", HEADERS, source, "-o", tmp_path / "layers", f"-L{libraries}",
        "-lsopt_cpu", f"-Wl,-rpath,{libraries}", "-lm")  # fmt: skip
    own = run(tmp_path / "layers", _native.cpu_level()).splitlines()
    assert len(set(own)) == 10  # five layers in two dtypes
    for level in ("neon", "neon_dot"):
        assert arm("max", source, level) == own
