"""Reports of runs that were stopped, and of folders that are damaged."""

import json
import shutil

import pytest
from reports import STEPS, page_of, save_run

from sopt import InputError, cli
from sopt.report import write_report


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "dog", memory_budget="16MiB")


@pytest.mark.parametrize("left", ["config.yaml", "history.jsonl"])
def test_a_half_written_run_is_shown_as_far_as_it_got(tmp_path, left):
    folder = save_run(tmp_path / "dog", done=12)
    shutil.rmtree(folder / "samples")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"step": 13, "bra')
    done = 12
    if left == "config.yaml":
        (folder / "history.jsonl").unlink()
        done = 0
    page = page_of(write_report([folder]))
    assert f"This run is not finished: {done} of {STEPS} steps are done." in page.words
    assert "No sample pictures: none was drawn." in page.words
    assert len(page.all("svg")) == (3 if done else 0)


def test_steps_that_were_skipped_are_counted(tmp_path):
    folder = save_run(tmp_path / "dog")
    entry = {"step": 41, "branch": "zo", "timestep": 5, "p_zo": 0.1, "loss": None, "seconds": 1}
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(entry | {"skipped": True}) + "\n")
    assert "skipped, loss not finite 1" in page_of(write_report([folder])).words


def test_bad_folders_are_refused_in_a_sentence(tmp_path, run_folder, capsys):
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (tmp_path / "none", "there is no folder"),
        (tmp_path / "empty", "holds no run: it has no config.yaml"),
    ]:
        with pytest.raises(InputError, match=message):
            write_report([folder])
    assert cli.main(["report", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    history = (run_folder / "history.jsonl").read_text()
    for name, content, message in [
        ("history.jsonl", "{\n" + history, "line 1 of .* is damaged"),
        ("history.jsonl", history + '{"step": 3}\n', f"line {STEPS + 1} of .* is not that of"),
        ("memory.json", "[", "memory.json is damaged"),
        ("record.json", "[]", "must hold an object, got list"),
        ("samples/after.png", "x", "after.png is not a"),
    ]:
        file = run_folder / name
        before = file.read_bytes()
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            write_report([run_folder])
        file.write_bytes(before)
    assert not (run_folder / "report.html").exists()
