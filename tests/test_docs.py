"""docs/: the code runs; the kernels' figures are the command's and their reference is complete."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sopt_kernels import _native, add_noise_, noise

ROOT = Path(__file__).parents[1]
PAGE, OPTIMIZERS = ((ROOT / "docs" / name).read_text() for name in ("kernels.md", "optim.md"))


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page, steps", [(PAGE, 2000), (OPTIMIZERS, 1000)], ids=["kernels", "optim"]
)
def test_python_runs_in_one_session(page, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for block in blocks("python", page):
        exec(compile(block, "docs", "exec"), session)
    assert len(session["history"]) == steps


def test_the_step_is_as_short_as_it_says():
    assert len(blocks("python")[0].splitlines()) <= 40


def test_c_runs(tmp_path):
    (source,) = blocks("c")
    library = _native.library_path("cpu")
    compiler = shutil.which("cc")
    if compiler is None or not library.exists():
        pytest.skip("needs cc and libsopt_cpu")
    program = tmp_path / "program"
    program.with_suffix(".c").write_text(source)
    subprocess.run(
        [compiler, "-std=c99", "-Wall", "-Werror", program.with_suffix(".c"), "-o", program,
         f"-I{ROOT}/csrc/include", f"-L{library.parent}", "-lsopt_cpu",
         f"-Wl,-rpath,{library.parent}"],
        check=True,
    )  # fmt: skip
    printed = subprocess.run([program], capture_output=True, text=True, check=True)
    expected = add_noise_(noise(1000, 1, 42) * 0.5, 2, -0.25, streams=42)[-1].item()
    assert float.fromhex(printed.stdout.strip()) == expected


def test_figures_are_those_of_the_command(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    table = importlib.import_module("bench.drift").table()
    assert f"<!-- begin: python -m bench.drift -->\n{table}<!-- end -->\n" in PAGE


def test_every_function_of_the_header_is_there():
    header = (ROOT / "csrc" / "include" / "sopt.h").read_text()
    functions = set(re.findall(r"SOPT_API [\w *]*?(sopt_\w+)\(", header))
    assert functions <= set(re.findall(r"`(sopt_\w+)`", PAGE))


@pytest.mark.parametrize("page", ["memory_page", "hollow_page", "tiny_page", "tiny_table"])
def test_tables_are_those_of_the_results(page):
    command = [sys.executable, "-m", f"bench.{page}", "--check"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_links_lead_somewhere():
    pages = list((ROOT / "docs").glob("*.md"))
    assert len(pages) >= 5
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (ROOT / "docs" / target).exists(), (page, target)
