"""The command line: names, one-line errors, exit statuses, files; and the work it starts."""

import inspect
import json
import logging
import re
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pipelines import PROMPT, save_pictures

from sopt import cli
from sopt.config import TrainConfig
from sopt.flags import flag
from sopt.sampling import generate

TRAIN = ["train", "--images", "dog", "--prompt", PROMPT, "--output", "run", "--model", "model"]


@pytest.fixture
def workplace(tmp_path, monkeypatch, micro_folder):
    """A current folder with a model and pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(micro_folder)
    save_pictures(tmp_path / "dog")
    return tmp_path


def refuse(arguments, capsys):
    """Run a command that must be refused; its one line."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert not printed.out
    assert printed.err.startswith("sopt: ")
    return printed.err.removeprefix("sopt: ").strip()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [],
            "expected a command: train, generate, plan, evaluate, benchmark, report, demo, doctor",
        ),
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["--verison"], "unknown option '--verison': did you mean '--version'?"),
        (["train", "--ranks", "3"], "unknown option '--ranks': did you mean '--rank'?"),
        (["train", "--rank-s=3"], "unknown option '--rank-s': did you mean '--rank'?"),
        (["generate", "--promt", "x"], "unknown option '--promt': did you mean '--prompt'?"),
        (["train", "dog"], "unexpected argument 'dog'"),
        (["train", "--steps", "ten"], "argument --steps: invalid int value: 'ten'"),
        (["train", "--step", "10"], "unknown option '--step': did you mean '--steps'?"),
        ([*TRAIN, "--method", "selectve"], "unknown method 'selectve': did you mean 'selective'?"),
        ([*TRAIN, "--low-res-ratio", "3"], "low_res_ratio must be in (0, 1], got '3'"),
        ([*TRAIN, "--config", "no.yaml"], "cannot read no.yaml"),
        (["generate", "--steps", "0", "--prompt", "x"], "steps must be a whole number, at least 1"),
        (["generate"], "prompt is missing"),
        (["generate", "--prompt", "x", "--output", "x.jpg"], "output must be a .png file"),
        (
            ["generate", "--prompt", "x", "--output", "no/x.png"],
            "output must be a file in a folder",
        ),
        (["demo", "--json", "no/such/file"], "json must be a file in a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments, line, capsys):
    assert refuse(arguments, capsys).startswith(line)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["train", "--help"], ["generate", "--help"], ["--version"], ["trian"],
        ["train", "--ranks", "3"], [*TRAIN, "--rank", "0"], ["generate", "--promt", "x"],
    ],
)  # fmt: skip
def test_help_and_errors_do_not_wait_for_pytorch(arguments):
    code = (
        "import sys\nfrom sopt.cli import main\n"
        "try: status = main(sys.argv[1:])\nexcept SystemExit as end: status = end.code\n"
        "print('torch' in sys.modules, status)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    imported, status = run.stdout.split()[-2:]
    helps = arguments[-1] in ("--help", "--version")
    assert (imported, status) == ("False", "0" if helps else "2"), run.stderr


def test_the_options_are_the_settings_of_the_python_functions(capsys):
    for command, names in [
        ("train", [setting.name for setting in fields(TrainConfig)]),
        ("generate", list(inspect.signature(generate).parameters)),
    ]:
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        for name in names:
            assert f"{flag(name)} " in text
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("sopt ")


def test_settings_reach_train_in_their_types(workplace, monkeypatch, capsys):
    received = {}

    def train(**settings):
        received.update(settings)
        memory = {"load": 3 * 2**20, "process_anonymous": {"at_start": 2**20}}
        return SimpleNamespace(adapter="run/file", history=[{}], memory=memory)

    monkeypatch.setattr("sopt.trainer.train", train)
    options = ["--steps=7", "--low-res-ratio", "0.75", "--schedule", "0.5", "--zo_lr", "1e-4"]
    options += ["--prior-images", "dogs", "--prior-prompt", "a dog", "--min-snr", "5"]
    assert cli.main([*TRAIN, *options, "--json", "figures.json"]) == 0
    assert received == {
        "images": "dog", "prompt": PROMPT, "output": "run", "model": "model", "steps": 7,
        "low_res_ratio": "0.75", "schedule": "0.5", "zo_lr": "1e-4",
        "prior_images": "dogs", "prior_prompt": "a dog", "min_snr": "5",
    }  # fmt: skip
    assert TrainConfig.create(**received).schedule == 0.5
    figures = json.loads((workplace / "figures.json").read_text())
    assert figures["memory"]["load"] == 3 * 2**20
    assert "3 MiB" in capsys.readouterr().out

    received.clear()
    (workplace / "run.yaml").write_text(TrainConfig.create(
        images="dog", prompt="a cat", output="run", rank=2, lr=0.5
    ).to_yaml())  # fmt: skip
    assert cli.main(["train", "--config", "run.yaml", "--rank", "8", "--images", "a", "b"]) == 0
    assert (received["prompt"], received["rank"], received["lr"]) == ("a cat", 8, 0.5)
    assert received["images"] == ["a", "b"]


def test_ctrl_c_is_status_130_and_a_bug_keeps_its_traceback(workplace, monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr("sopt.trainer.train", interrupt)
    assert cli.main(TRAIN) == 130
    assert capsys.readouterr().err == "sopt: interrupted; the same command continues\n"
    monkeypatch.setattr("sopt.trainer.train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(TRAIN)


def test_train_then_generate(workplace, quick, capsys):
    (workplace / "dog" / "notes.txt").touch()
    (workplace / "dog" / "2.txt").write_text("a sks dog, lying")
    arguments = [*TRAIN, "--steps", "4", "--schedule", "0.5", "--json", "figures.json"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "run/pytorch_lora_weights.safetensors" in printed.out
    assert "sopt: warning: images: skipped in dog: notes.txt (pictures are .jpg," in printed.err
    assert "\n2.png          1  a sks dog, lying\n" in printed.err
    assert not logging.getLogger("sopt").handlers
    figures = json.loads((workplace / "figures.json").read_text())
    assert figures["steps"] == 4
    assert {"train-bp", "train-zo"} <= figures["memory"].keys()

    draw = ["generate", "--model", "model", "--adapter", "run", "--prompt", PROMPT, "--steps", "2"]
    assert cli.main([*draw, "--seed", "3", "--num-images", "2", "--output", "x.png"]) == 0
    assert capsys.readouterr().out.splitlines() == ["x-1.png", "x-2.png"]
    expected = generate("model", "run", prompt=PROMPT, steps=2, seed=4)[0]
    np.testing.assert_array_equal(np.asarray(Image.open("x-2.png")), np.asarray(expected))
    before = (workplace / "x-2.png").read_bytes()
    line = refuse([*draw, "--num_images", "2", "--output", "x.png"], capsys)
    assert line.startswith("output 'x-1.png' exists and is not overwritten")
    assert (workplace / "x-2.png").read_bytes() == before


def no_folder(workplace):
    return ["--images", "cats"], "images: there is no folder or file cats"


def empty_folder(workplace):
    (workplace / "empty").mkdir()
    return ["--images", "empty"], "images: the folder empty has no .*; it is empty"


def corrupt_image(workplace):
    file = workplace / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:300])
    return [], r"images: dog/1\.png is damaged or cut off"


def text_as_png(workplace):
    (workplace / "dog" / "3.png").write_text("not a picture")
    return [], r"images: dog/3\.png is not a"


def empty_caption(workplace):
    (workplace / "dog" / "1.txt").touch()
    return [], r"images: the caption file dog/1\.txt is empty"


def no_unet(workplace):
    (workplace / "other").mkdir()
    for part in (workplace / "model").iterdir():
        if part.name != "unet":
            (workplace / "other" / part.name).symlink_to(part)
    return ["--model", "other"], "model 'other' has no UNet"


def unwritable_output(workplace):
    (workplace / "file").touch()
    return ["--output", "file/run"], "output 'file/run'.* is a file"


@pytest.mark.parametrize(
    "case",
    [
        no_folder, empty_folder, corrupt_image, text_as_png, empty_caption, no_unet,
        unwritable_output,
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(workplace, case, capsys):
    options, pattern = case(workplace)
    before = sorted(workplace.rglob("*"))
    assert re.match(pattern, line := refuse([*TRAIN, *options], capsys)), line
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--rank", "0"], r"rank must be .* got 0"),
        (["--steps", "0"], r"steps must be .* got 0"),
        (["--steps", "-5"], r"steps must be .* got -5"),
        (["--resolution", "30"], r"resolution must be a multiple of 8 "),
        (["--low_res_ratio", "0"], r"low_res_ratio must be in \(0, 1\], got '0'"),
        (["--low_res_ratio", "0.01"], r"low_res_ratio=0\.01 makes pictures of"),
    ],
)
def test_a_bad_setting_is_one_line_and_writes_nothing(workplace, options, pattern, capsys):
    before = sorted(workplace.rglob("*"))
    assert re.match(pattern, line := refuse([*TRAIN, *options], capsys)), line
    assert sorted(workplace.rglob("*")) == before


def test_demo_prints_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    received = {}
    figures = {
        "seconds": 61.5, "peak_bytes": {"load": 2**20, "train-bp": 9 * 2**20},
        "subject_before": 0.125, "subject_after": 0.875, "prompt_before": 0.5,
        "prompt_after": 0.75, "grid": "out/grid.png", "adapter": "out/run/adapter",
    }  # fmt: skip

    def demo(output, seed, steps):
        received.update(output=str(output), seed=seed, steps=steps)
        return figures

    monkeypatch.setitem(sys.modules, "sopt.demo", SimpleNamespace(demo=demo))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--output", "out", "--seed", "4", "--json", "f.json"]) == 0
    assert received == {"output": "out", "seed": 4, "steps": None}
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    printed = capsys.readouterr().out
    for text in ["0.125 before, 0.875 after", "train-bp 9 MiB", "out/grid.png"]:
        assert text in printed


def test_doctor_tells_versions_devices_and_kernels(tmp_path, capsys):
    assert cli.main(["doctor", "--json", str(tmp_path / "f.json")]) == 0
    printed = capsys.readouterr().out
    findings = json.loads((tmp_path / "f.json").read_text())
    for package in ("python", "torch", "diffusers", "transformers", "peft", "triton", "sopt"):
        assert findings["versions"][package] or package == "triton"
        assert package in printed
    assert findings["devices"][0]["name"] == "cpu"
    assert findings["devices"][0]["memory_bytes"] > 2**28
    selected = {
        (body["op"], body["device_type"]) for body in findings["kernels"] if body["selected"]
    }
    assert {("add_noise_", "cpu"), ("write_noisy_", "cpu")} <= selected
    assert all(b["selected"] or b["reason"] or b["backend"] for b in findings["kernels"])
    assert "in use" in printed
