"""``sopt.benchmark`` on a small dataset: what it draws and writes, and how it goes on."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import save_dreambooth
from safetensors.torch import load_file, save_file

import sopt
from sopt import InputError, cli
from sopt.errors import NotFiniteError
from sopt.evaluation import benchmarking as module
from sopt.evaluation.metrics import Scorer

METRICS = ("dino", "clip_i", "clip_t", "diversity")


@pytest.fixture
def settings(micro_folder, tmp_path, backbones, monkeypatch):
    from pipelines import SkipMemory

    monkeypatch.setattr("sopt.memory.LiveStorage", SkipMemory)
    return {
        "data": str(save_dreambooth(tmp_path / "data")),
        "output": str(tmp_path / "out"),
        "images_per_prompt": 2,
        "sampling_steps": 1,
        "model": str(micro_folder),
        "steps": 2,
        "num_perturbations": 1,
        "weights": "float32",
        **backbones,
    }


def contents(folder, pattern="*.png"):
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob(pattern)
    }


def test_each_subject_is_trained_drawn_and_scored(settings, capsys):
    report = sopt.benchmark("dreambooth", **settings)
    out = Path(settings["output"])
    assert json.loads((out / "scores.json").read_text()) == report
    assert list(report["subjects"]) == ["vase", "cat2"]
    for metric in METRICS:
        each = [scores[metric] for scores in report["subjects"].values()]
        assert each[0] != each[1]
        assert report["mean"][metric] == pytest.approx(np.mean(each), abs=1e-12)
    assert report["subset"] == "2 of 30 subjects, 2 of 25 prompts, 2 of 4 images per prompt"
    assert report["settings"]["protocol"]["guidance"] == 7.5
    assert report["settings"]["training"]["steps"] == 2
    assert report["backbones"]["dino"]["name"] == settings["dino"]

    cat = out / "cat2"
    prompts = json.loads((cat / "prompts.json").read_text())
    assert prompts["00-0"] == prompts["00-1"] == "a sks cat under a lamp"
    assert prompts["01-1"] == "a sks cat wearing gloves"
    assert sorted(contents(cat / "samples")) == [f"{stem}.png" for stem in sorted(prompts)]
    config = (cat / "run" / "config.yaml").read_text()
    assert "prompt: a sks cat\n" in config
    # The picture of prompt 1, index 1 has the seed 1001, and is the one that generate draws.
    expected = sopt.generate(
        settings["model"], cat / "run", prompt=prompts["01-1"], seed=1001, steps=1, low_memory=True
    )[0]
    np.testing.assert_array_equal(np.asarray(Image.open(cat / "samples" / "01-1.png")), expected)
    # The layout is one that evaluate takes.
    real = Path(settings["data"]) / "dataset" / "cat2"
    backbones = {name: settings[name] for name in ("dino", "clip")}
    scores = sopt.evaluate(str(cat), str(real), **backbones)
    for metric in METRICS:  # batches of another size: the networks' float32
        assert scores[metric] == pytest.approx(report["subjects"]["cat2"][metric], abs=1e-4)
    # Three rows of two, real pictures and both prompts: gaps of 4 and labels of 14 pixels around
    # cells of the size of the real pictures, 40 x 48.
    assert Image.open(cat / "grid.png").size == (4 + 2 * (40 + 4), 4 + 3 * (14 + 48 + 4))

    table = module.table(report).splitlines()
    assert table[0].split() == list(METRICS)
    assert table[3].split()[-4:] == [f"{report['mean'][metric]:.4f}" for metric in METRICS]
    assert "a subset of the protocol" in table[-1]


def test_a_benchmark_that_was_killed_goes_on_to_the_same_pictures(settings, tmp_path, monkeypatch):
    whole = sopt.benchmark("dreambooth", **settings)
    draw, calls = sopt.generate, []
    monkeypatch.setattr(module, "PROMPTS_AT_ONCE", 1)  # two prompts of each subject

    def killed(*arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.extend(options["prompt"])
        return draw(*arguments, **options)

    again = settings | {"output": str(tmp_path / "again")}
    monkeypatch.setattr(module, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        sopt.benchmark("dreambooth", **again)
    assert len(contents(tmp_path / "again", "scores.json")) == 1  # of the first subject
    (tmp_path / "again" / "cat2" / "samples" / "00-1.png").unlink()
    monkeypatch.setattr(module, "generate", draw)
    report = sopt.benchmark("dreambooth", **again)
    for metric in METRICS:
        assert report["mean"][metric] == whole["mean"][metric]
    assert contents(tmp_path / "again") == contents(settings["output"])

    def never(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(module, "generate", never)
    assert sopt.benchmark("dreambooth", **again)["mean"] == report["mean"]


def test_nothing_is_written_among_the_datasets_pictures(settings):
    data = Path(settings["data"])
    before = contents(data, "*.*")
    with pytest.raises(InputError, match=r"output .* must not be where the dataset's pictures are"):
        sopt.benchmark("dreambooth", **settings | {"output": str(data / "dataset")})
    assert contents(data, "*.*") == before


def test_pictures_that_were_deleted_are_drawn_and_scored_again(settings, monkeypatch):
    only = settings | {"subjects": ["cat2"]}
    whole = sopt.benchmark("dreambooth", **only)
    cat = Path(settings["output"]) / "cat2"
    before = contents(cat)
    (cat / "samples" / "01-0.png").unlink()
    (cat / "prompts.json").unlink()
    scores = json.loads((cat / "scores.json").read_text())
    (cat / "scores.json").write_text(json.dumps(scores | {"dino": 2}))  # of other pictures

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sopt.evaluation.metrics.Scorer.score", killed)
        with pytest.raises(KeyboardInterrupt):
            sopt.benchmark("dreambooth", **only)
    assert sopt.benchmark("dreambooth", **only) == whole
    assert contents(cat) == before


def test_other_settings_and_other_weights_are_refused(settings, monkeypatch):
    only = settings | {"subjects": ["cat2"]}
    sopt.benchmark("dreambooth", **only)
    load = Scorer.__init__
    monkeypatch.setattr("sopt.evaluation.metrics.Scorer.__init__", None)
    with pytest.raises(InputError, match=r"holds a benchmark with protocol\.guidance="):
        sopt.benchmark("dreambooth", **only | {"guidance": 3.0, "model": "./none"})
    monkeypatch.setattr("sopt.evaluation.metrics.Scorer.__init__", load)
    file = Path(settings["output"]) / "benchmark.json"
    asked = json.loads(file.read_text())
    asked["model"]["weights"] = "another"
    file.write_text(json.dumps(asked))
    with pytest.raises(InputError, match=r"holds a benchmark with model\.weights='another'"):
        sopt.benchmark("dreambooth", **only)


def test_the_folder_of_a_run_is_refused(settings):
    """Two kinds of files would be mixed."""
    run = Path(settings["output"])
    run.mkdir()
    given = dict.fromkeys(("model", "images", "prompt", "output"), "x")
    (run / "config.yaml").write_text(json.dumps(given))  # JSON is YAML
    with pytest.raises(InputError, match="out' is the folder of a run: choose another"):
        sopt.benchmark("dreambooth", **settings)
    assert [file.name for file in run.iterdir()] == ["config.yaml"]


def test_other_settings_in_the_folder_are_refused_and_more_subjects_are_not(settings):
    one = sopt.benchmark("dreambooth", **settings, subjects=["cat2", "cat2"])
    assert list(one["subjects"]) == ["cat2"]
    assert one["subset"].startswith("1 of 30 subjects")
    for name, value in {"guidance": 3.0, "lr": 0.5, "num_prompts": 1}.items():
        with pytest.raises(InputError, match=rf"holds a benchmark with \w+\.{name}="):
            sopt.benchmark("dreambooth", **settings | {name: value})
    both = sopt.benchmark("dreambooth", **settings)
    assert both["subjects"]["cat2"] == one["subjects"]["cat2"]
    assert list(both["subjects"]) == ["vase", "cat2"]


def test_other_prompts_or_pictures_of_a_subject_are_refused(settings):
    """Pictures that are there would be scored against prompts that they were not drawn for."""
    only = settings | {"subjects": ["cat2"]}
    sopt.benchmark("dreambooth", **only)
    cat = Path(settings["output"]) / "cat2"
    before = contents(settings["output"], "*.json")
    lists = next(Path(settings["data"]).rglob("prompts_and_classes.txt"))
    text = lists.read_text()
    lists.write_text(text.replace("wearing gloves", "on a sofa"))
    for _ in range(2):  # with its scores, and without them
        with pytest.raises(InputError, match="cat2' holds a benchmark of other prompts"):
            sopt.benchmark("dreambooth", **only)
        (cat / "scores.json").unlink(missing_ok=True)
    lists.write_text(text)
    picture = sorted((Path(settings["data"]) / "dataset" / "cat2").iterdir())[0]
    content = picture.read_bytes()
    Image.open(picture).rotate(180).save(picture)
    with pytest.raises(
        InputError, match="cat2' holds a benchmark of other pictures than the dataset has, "
    ) as caught:
        sopt.benchmark("dreambooth", **only)
    assert "settings" not in str(caught.value)
    picture.write_bytes(content)
    assert json.loads(before["cat2/prompts.json"]) == json.loads((cat / "prompts.json").read_text())
    sopt.benchmark("dreambooth", **only)
    assert (cat / "scores.json").read_bytes() == before["cat2/scores.json"]
    for file, damaged, message in [
        ("cat2/scores.json", '{"dino": 0', "is not JSON"),
        ("cat2/scores.json", '{"dino": 0}', "is damaged: its clip_i is missing"),
        ("cat2/scores.json", '{"dino": "x"}', "is damaged: its dino is x"),
        ("benchmark.json", "[1]", "must be a JSON object"),
    ]:
        (Path(settings["output"]) / file).write_text(damaged)
        with pytest.raises(InputError, match=f"{file} {message}"):
            sopt.benchmark("dreambooth", **only)


@pytest.mark.parametrize(
    ("name", "message"),
    [("scores.json", "out' has scores.json"), ("cat2/samples/a.png", "cat2' has samples")],
)
def test_files_that_no_benchmark_made_are_neither_taken_nor_overwritten(settings, name, message):
    file = Path(settings["output"]) / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match=f"{message} but no .* choose another folder"):
        sopt.benchmark("dreambooth", **settings, subjects=["cat2"])
    assert file.read_text() == "mine"


def test_other_weights_behind_the_same_name_are_refused(settings, tmp_path):
    """Scores of two models would be averaged."""
    model = shutil.copytree(settings["model"], tmp_path / "model")
    settings |= {"model": str(model)}
    sopt.benchmark("dreambooth", **settings, subjects=["cat2"])
    file = next((model / "unet").glob("*.safetensors"))
    weights = load_file(file)
    save_file({name: weight * 1.5 for name, weight in weights.items()}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"holds a benchmark with model\.weights="):
        sopt.benchmark("dreambooth", **settings, subjects=["cat2", "vase"])


def test_a_subject_whose_run_diverged_does_not_stop_the_others(settings, monkeypatch):
    def diverges(model, adapter, **options):
        if "vase" in options["prompt"][0]:
            raise NotFiniteError("a picture is not finite")
        return sopt.generate(model, adapter, **options)

    monkeypatch.setattr(module, "generate", diverges)
    for _ in range(2):
        with pytest.raises(NotFiniteError, match=r"1 of 2 subjects diverged \(vase\)"):
            sopt.benchmark("dreambooth", **settings)
    report = sopt.benchmark("dreambooth", **settings, subjects=["cat2"])
    assert list(report["subjects"]) == ["cat2"]


def test_pictures_are_drawn_as_leanly_as_the_run_was_trained(settings, monkeypatch):
    """A U-Net that does not fit into memory does not for the pictures either."""
    drawn = []

    def recorded(*arguments, **options):
        drawn.append((options["offload"], options["prompt"], options["seed"]))
        return sopt.generate(*arguments, **options)

    monkeypatch.setattr(module, "generate", recorded)
    sopt.benchmark("dreambooth", **settings, subjects=["cat2"], offload="stream")
    prompts = ["a sks cat under a lamp", "a sks cat wearing gloves"]
    assert drawn == [("stream", prompts, 0)]  # one loading of the model for both


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_prompt": 0}, "images_per_prompt must be .* got 0"),
        ({"images_per_prompt": 1001}, "images_per_prompt must be"),
        ({"sampling_steps": 0}, "sampling_steps must be"),
        ({"sampling_seed": -1}, "sampling_seed must be"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"rare_word": " "}, "rare_word must be a word"),
        ({"prompt": "x"}, "prompt is not a setting of a benchmark"),
        ({"stepz": 3}, "unknown setting 'stepz': did you mean 'steps'"),
        ({"subjects": ["dog"]}, "unknown subject 'dog'"),
        ({"num_prompts": 3}, "num_prompts must be at most 2, .* has for vase, got 3"),
        ({"subjects": []}, "subjects must name at least one"),
        ({"data": "none"}, "data: there is no folder none"),
        ({"clip": "none"}, "clip 'none': there is no such folder"),
        ({"resolution": 65}, "resolution must be a multiple"),
        (
            {"train": "token", "token": "<sks>", "initializer": "a", "subspace": False},
            "must have the token '<sks>' .* got 'a sks vase'",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(settings, change, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        sopt.benchmark("dreambooth", **settings | change)
    assert not Path(settings["output"]).exists()


def test_the_command(settings, capsys, tmp_path, monkeypatch):
    report = {
        "subjects": {"cat2": dict.fromkeys(METRICS, 0.5)},
        "mean": dict.fromkeys(METRICS[:3], 0.5) | {"diversity": None},
        "backbones": {"dino": {"name": "d"}, "clip": {"name": "c"}},
        "settings": {"protocol": {"sampling_steps": 1, "guidance": 7.5, "sampling_seed": 0}},
        "subset": None,
    }
    received = {}

    @functools.wraps(sopt.benchmark)
    def run(**options):
        received.update(options)
        return report

    monkeypatch.setattr("sopt.commands.evaluation.run_benchmark", run)
    arguments = ["benchmark", "dreambooth", "--data", "d", "--output", "o", "--steps", "3"]
    arguments += ["--images-per-prompt", "1", "--subjects", "cat2", "vase"]
    assert cli.main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    assert received == {
        "dataset": "dreambooth", "data": "d", "output": "o", "steps": 3,
        "images_per_prompt": 1, "subjects": ["cat2", "vase"],
    }  # fmt: skip
    assert json.loads((tmp_path / "f.json").read_text()) == report
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[-4:] == ["0.5000", "0.5000", "0.5000", "-"]
    assert cli.main(["benchmark", "dreambooth"]) == 2
    assert "data is missing" in capsys.readouterr().err
