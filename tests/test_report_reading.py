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
        ("history.jsonl", "{\n" + history, "line 1 of .* is not JSON"),
        ("history.jsonl", history + '{"step": 3}\n', f"line {STEPS + 1} of .* is not that of"),
        ("memory.json", "[", "memory.json is not JSON"),
        ("record.json", "[]", "must be a JSON object, got"),
        ("samples/after.png", "x", "after.png is not a"),
    ]:
        file = run_folder / name
        before = file.read_bytes()
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            write_report([run_folder])
        file.write_bytes(before)
    assert not (run_folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "steps:", "steps in .*config.yaml must be a whole number"),
        ("config.yaml", "steps: many", "steps in .* got 'many'"),
        ("config.yaml", "steps: [1]", "steps in .* got \\[1\\]"),
        ("config.yaml", "memory_budget: lots", "memory_budget in .* must be a size"),
        ("config.yaml", "schedule: 7", "schedule in .* must be a name or a number in"),
        ("config.yaml", "schedule: .nan", "schedule in .* must be a name or a number in"),
        ("config.yaml", "low_res_ratio: small", "low_res_ratio in .* must be a number in"),
        ("config.yaml", "images: [1]", "images in .* must be a path or a list of paths"),
        ("config.yaml", "prompt: 5", "prompt in .* must be text"),
        ("config.yaml", "1: 2", "names of settings in .*config.yaml must be text, got 1"),
        ("memory.json", '{"process_anonymous": 5}', "process_anonymous in .*memory.json must be"),
        ("memory.json", '{"process_anonymous": {"load": "x"}}', "each value is a whole number"),
        ("memory.json", '{"load": null}', "load in .* must be a whole number, at least 0, got"),
        ("record.json", '{"versions": null}', "versions in .*record.json must be an object"),
        ("record.json", '{"machine": []}', "machine in .*record.json must be an object"),
        ("record.json", '{"seconds": null}', "seconds in .*record.json must be an object"),
        ("record.json", '{"seconds": {"load": "x"}}', "each value is a finite number"),
        ("record.json", '{"num_train_timesteps": null}', "num_train_timesteps in .* at least 1"),
        ("record.json", '{"num_train_timesteps": 0}', "num_train_timesteps in .* at least 1"),
        ("record.json", "9" * 5000, "record.json is not JSON"),
        ("record.json", b"\xff", "record.json is not UTF-8"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_in_a_sentence(run_folder, name, content, message):
    content = content.encode() if isinstance(content, str) else content
    (run_folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        write_report([run_folder])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", None), ("seconds", float("nan")), ("seconds", -1), ("seconds", 10**400),
        ("timestep", None), ("p_zo", None), ("p_zo", 2), ("step", None), ("step", "x"),
        ("step", True), ("loss", "x"),
    ],
)  # fmt: skip
def test_steps_of_a_wrong_kind_are_refused_in_a_sentence(run_folder, name, value):
    entry = {"step": 1, "branch": "bp", "timestep": 5, "p_zo": 0.1, "loss": 0.5, "seconds": 1}
    lines = [json.dumps(each) + "\n" for each in (entry, entry | {name: value})]
    (run_folder / "history.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match=f"{name} in line 2 of .*history.jsonl must be"):
        write_report([run_folder])


@pytest.mark.parametrize("loss", [None, float("nan"), 10**400, 1e300, 1e-300, 0, -1])
def test_any_number_may_be_a_loss(run_folder, loss):
    entry = {"step": 1, "branch": "bp", "timestep": 5, "p_zo": 0.1, "loss": loss, "seconds": 1}
    (run_folder / "history.jsonl").write_text(json.dumps(entry) + "\n")
    assert "1 backprop, 0 zeroth-order" in page_of(write_report([run_folder])).words


@pytest.mark.parametrize("name", ["config.yaml", "history.jsonl", "memory.json"])
def test_a_folder_in_place_of_a_file_is_refused_in_a_sentence(run_folder, name):
    (run_folder / name).unlink()
    (run_folder / name).mkdir()
    with pytest.raises(InputError, match=f"cannot read .*{name}: Is a directory"):
        write_report([run_folder])


def test_an_output_that_cannot_be_written_is_refused_in_a_sentence(run_folder):
    with pytest.raises(InputError, match=r"output '.*config.yaml/r.html' must be writable"):
        write_report([run_folder], run_folder / "config.yaml" / "r.html")
