"""``make gpu-check`` as far as it runs without a GPU: what it chooses, reads and prints."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_ops" name="a" /><testcase classname="tests.test_ops" name="b" />
<testcase classname="tests.test_ops" name="c"><failure message="no" /></testcase>
<testcase classname="tests.test_ops" name="d"><error message="no" /></testcase>
<testcase classname="tests.test_ops" name="e"><skipped message="needs nm" /></testcase>
<testcase classname="tests.test_ops" name="f"><skipped message="needs nm" /></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def check(monkeypatch):
    """The module of the command, from this tree."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.gpu_check")


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.gpu_speed")


def test_the_readme_has_the_newest_figures():
    subprocess.run([sys.executable, "-m", "bench.gpu_table", "--check"], cwd=ROOT, check=True)


def test_the_tests_of_the_kernels_are_chosen_and_no_others(check):
    names = {path.name for path in check.kernel_tests()}
    assert {"test_ops.py", "test_cuda.py", "test_add_noise.py", "test_c_library.py"} <= names
    assert not names & {"test_train.py", "test_export.py", "test_sampling.py", "test_config.py"}


def test_counts_and_verdicts_are_read(check):
    counts = check.counts(JUNIT)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 2, 2)
    assert counts["failures"] == ["tests.test_ops::c", "tests.test_ops::d"]
    assert counts["reasons"] == {"needs nm": 2}
    for output, status, is_clean in (
        ("========= ERROR SUMMARY: 0 errors\n", 0, True),
        ("========= ERROR SUMMARY: 10 errors\n", 0, False),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, True),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n", 0, False),
        ("Traceback\n========= ERROR SUMMARY: 0 errors\n", 1, False),
        ("========= Error: Device not supported\n========= ERROR SUMMARY: 1 error\n", 1, True),
        ("no such tool", 127, True),
    ):
        found = check.verdict(output, status)
        assert check.clean(found) == is_clean, found


def test_the_sanitizer_is_shown_every_body(monkeypatch, emulated):
    """Here with emulated kernels, whose own sanitizer would end the process."""
    monkeypatch.syspath_prepend(str(ROOT))
    emulated.replace_gpu(monkeypatch)
    before = emulated.launches
    importlib.import_module("bench.gpu_bodies").call_all("cpu")
    assert emulated.launches - before > 300


def test_without_a_gpu_one_sentence_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "bench.gpu_check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "bench.gpu_check needs a CUDA device, and PyTorch sees none on this machine"
    )


@pytest.mark.parametrize(
    "command, fault",
    [("import time; time.sleep(60)", "not done after 0.5 s"), ("0", "with status 0 and without")],
)
def test_tests_that_hang_or_crash_are_a_failure(check, monkeypatch, command, fault):
    monkeypatch.setattr(check, "TEST_SECONDS", 0.5 if "sleep" in command else 60)
    whole = check.run
    monkeypatch.setattr(
        check, "run", lambda *_, **options: whole(sys.executable, "-c", command, **options)
    )
    found = check.test(rehearse=True)
    assert found["failed"] == 1
    assert fault in found["failures"][0]


@pytest.mark.parametrize(
    "name, tensors, parameters",
    [("SD1.5 LoRA", 256, 797_184), ("LLaMA-7B LoRA", 448, 19_988_480), ("OPT-1.3B", 388, 1.3e9)],
)
def test_lists_are_of_real_models(speed, name, tensors, parameters):
    shapes = speed.LISTS[name][0]()
    assert len(shapes) == tensors
    assert sum(torch.Size(s).numel() for s in shapes) == pytest.approx(parameters, rel=0.02)


def test_measures_every_body_and_prints_it(speed, check, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "ROUND_SECONDS", 0.0)
    rows = speed.measure("cpu", small=True)
    bodies = {row["body"] for row in rows}
    assert bodies == set(speed.OPS["add_noise_"].backends("cpu")) - {"reference"}
    assert len(rows) == len(bodies) * 2 * (4 * 3 + 2 + 4 + 3)
    for row in rows:
        assert all(row[k] > 0 for k in ("seconds", "bytes_per_second", "of_copy", "x_mezo"))
    result = {
        "gpu": "NVIDIA X",
        "date": "2030-01-31",
        "commit": "abc",
        "versions": "torch 2",
        "tests": {"passed": 1, "failed": 0, "skipped": 0},
        "sanitizer": {"memcheck": "did not run: not installed"},
        "speed": rows,
    }
    table = check.gpu_table
    assert table.table(result).count("\n") == len(rows) + 2
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert table.section(table.newest()) == table.NOT_YET
    for date in ("2030-01-31", "2029-12-31"):
        (tmp_path / f"{date}.json").write_text(check.json.dumps(result | {"date": date}))
    (tmp_path / "cpu.json").write_text("{}")  # of the benchmarks of the CPU
    updated = table.section(table.newest())
    assert "NVIDIA X, 2030-01-31" in updated
    assert updated.count("| 64Mi |") == 3 * 2 * len(bodies)
    generated = importlib.import_module("bench.generated")
    begin, end = generated.begin(table.COMMAND), generated.END
    text = generated.spliced(f"head{begin}old\n{end}rest", table.COMMAND, updated)
    assert text == f"head{begin}{updated}{end}rest"
    for broken in (f"head{begin}old\nrest", f"head{end}rest", text + text):
        with pytest.raises(ValueError, match="there must be one"):
            generated.spliced(broken, table.COMMAND, updated)
