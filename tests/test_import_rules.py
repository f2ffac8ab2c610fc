"""Dependency direction: sopt -> sopt_kernels -> csrc, never back."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "sopt_kernels").rglob("*.py"))
TRAINER = sorted((ROOT / "sopt").rglob("*.py"))
C = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
# Libraries that alone know a model or a trainer, and the modules of sopt that may import them.
MODEL_LIBRARIES = {"diffusers", "transformers", "peft", "accelerate", "lightning"}
MODEL_MODULES = {"models", "integrations", "tiny"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Absolute names of all imports in ``path``, lazy ones too; ``a.b`` for from a import b."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(parts + ([node.module] if node.module else []))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_kernels_import_only_torch_and_triton(path):
    allowed = sys.stdlib_module_names | {"torch", "sopt_kernels"}
    if path.name == "triton_kernel.py" or path.name.startswith("_triton_"):
        allowed |= {"triton"}
    assert packages(path) <= allowed


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_only_native_loads_libraries(path):
    assert "ctypes" not in packages(path) or path.name == "_native.py"


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_ops_do_not_import_each_other(path):
    parts = path.relative_to(ROOT / "sopt_kernels").parts
    if parts[0] == "ops" and len(parts) > 2:
        others = {n for n in imports(path) if n.startswith("sopt_kernels.ops.")}
        assert {n.split(".")[2] for n in others} <= {parts[1]}


@pytest.mark.parametrize("path", C, ids=relative)
def test_c_sources_know_neither_python_nor_torch(path):
    included = re.findall(r'#include [<"]([^">]+)', path.read_text())
    assert not [h for h in included if re.match(r"Python\.h|torch|ATen|c10|pybind11", h)]
    other = {"cpu": "cuda/", "cuda": "cpu/"}.get(path.parent.name, "/cpu/")
    assert not [h for h in included if other in h]


@pytest.mark.parametrize("path", TRAINER, ids=relative)
def test_trainer_uses_public_names_of_the_kernels(path):
    private = {n for n in imports(path) if n.startswith("sopt_kernels") and "._" in n}
    modules = {n for n in imports(path) if n.startswith("sopt_kernels.") and n.count(".") > 1}
    assert not private | modules
    assert "ops.sopt" not in path.read_text()  # those of PyTorch itself, ops.aten, are public


@pytest.mark.parametrize("path", KERNELS + TRAINER, ids=relative)
def test_nothing_imports_tests_or_bench(path):
    assert not packages(path) & {"tests", "bench"}


@pytest.mark.parametrize("path", TRAINER, ids=relative)
def test_direction_within_the_trainer(path):
    own = {n for n in imports(path) if n.startswith("sopt.")}
    parts = path.relative_to(ROOT / "sopt").parts
    if parts[0] == "steps":
        assert not {n for n in own if n.startswith("sopt.trainer")}
    if parts == ("config.py",):
        leaves = (
            "averaging",
            "errors",
            "budget",
            "checks",
            "lean_settings",
            "presets",
            "settings_file",
        )
        leaves += ("token.settings", "codes.settings")
        assert not own - {n for n in own if n.removeprefix("sopt.").startswith(leaves)}


@pytest.mark.parametrize("path", TRAINER, ids=relative)
def test_only_the_model_modules_import_model_libraries(path):
    if path.relative_to(ROOT / "sopt").parts[0] not in MODEL_MODULES:
        assert not packages(path) & MODEL_LIBRARIES
