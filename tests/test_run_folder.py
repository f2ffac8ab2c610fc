"""Which run a folder holds: damaged, other settings, files of others; nothing is overwritten."""

import contextlib
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from pipelines import act_at_loss, crash
from safetensors.torch import load_file, save_file

import sopt
from sopt import InputError
from sopt.checkpoint import Checkpoint, History
from sopt.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick")

# Results whose bytes do not depend on time.
RESULTS = [
    "pytorch_lora_weights.safetensors",
    "run_kohya.safetensors",
    "samples/before.png",
    "samples/after.png",
]


@pytest.fixture
def settings(settings):
    # With seed 6 the steps are bp, zo, bp, zo: a crash at the fifth loss comes after step 3, when
    # there is a checkpoint of step 2.
    return settings | {"steps": 4, "num_perturbations": 1, "checkpoint_every": 2, "seed": 6}


@pytest.fixture
def at_loss(monkeypatch):
    return functools.partial(act_at_loss, monkeypatch)


def contents(folder):
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_damaged_checkpoint_is_an_input_error(settings, at_loss):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    path = Path(settings["output"]) / "checkpoint" / "state.safetensors"
    data = path.read_bytes()
    for where in (0.0, 0.01, 0.2, 0.5, 0.9, 0.9999):
        position = int(where * len(data))
        for damaged in (data[:position], flipped(data, position)):
            path.write_bytes(damaged)
            content = contents(settings["output"])
            with pytest.raises(InputError, match=r"state\.safetensors.*delete the run folder"):
                sopt.train(**settings)
            assert contents(settings["output"]) == content


CHANGES = {
    "steps": 5, "seed": 1, "rank": 2, "lr": 1e-4, "zo_lr": 0, "eps": 1e-3, "num_perturbations": 2,
    "noise": "rademacher", "low_res_ratio": 0.75, "prompt": "a dog", "schedule": "tap",
    "resolution": 24, "min_snr": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("stage", ["begun", "finished"])
def test_other_settings_in_the_folder_are_refused_by_name(settings, at_loss, stage):
    if stage == "begun":
        at_loss(1, crash)
        with pytest.raises(RuntimeError, match="crash"):
            sopt.train(**settings)
    else:
        sopt.train(**settings)
    at_loss(0, None)
    content = contents(settings["output"])
    for name, value in CHANGES.items():
        with pytest.raises(InputError, match=f"holds a run with {name}=.*this one has {name}="):
            sopt.train(**settings | {name: value})
    assert contents(settings["output"]) == content


def test_other_pictures_are_refused_and_the_same_elsewhere_are_not(
    settings, at_loss, tmp_path, pictures
):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    (moved / "2.png").rename(tmp_path / "2.png")
    with pytest.raises(InputError, match="holds a run with images='3 pictures"):
        sopt.train(**settings | {"images": str(moved)})
    (tmp_path / "2.png").rename(moved / "2.png")
    run = sopt.train(**settings | {"images": str(moved)})
    assert [entry["step"] for entry in run.history] == [1, 2, 3, 4]


def test_another_model_under_the_same_name_is_refused(settings, at_loss, micro_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(micro_folder, model)
    settings |= {"model": str(model)}
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    at_loss(0, None)
    (weights,) = (model / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, weights)
    with pytest.raises(InputError, match="UNet is not that of the run in the output folder"):
        sopt.train(**settings)
    save_file(tensors, weights)
    assert len(sopt.train(**settings).history) == 4
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, weights)
    with pytest.raises(InputError, match="UNet is not that of the run in the output folder"):
        sopt.train(**settings)  # nor is a finished run's result passed off as another model's


def test_schedules_are_compared_by_what_they_say(settings):
    def constant(share):
        return lambda step, timestep: share

    sopt.train(**settings | {"schedule": constant(0.0)})
    sopt.train(**settings | {"schedule": constant(0.0)})
    with pytest.raises(InputError, match="schedule_values"):
        sopt.train(**settings | {"schedule": constant(1.0)})


def test_two_runs_at_once_do_not_share_a_folder(settings, monkeypatch):
    with contextlib.closing(RunFolder(settings["output"])) as other, monkeypatch.context() as patch:
        other.lock()
        patch.setattr("sopt.trainer.make_training", None)  # loading and encoding come later
        with pytest.raises(InputError, match="in use by a run that is still going on"):
            sopt.train(**settings)
    assert contents(settings["output"]) == {}
    assert len(sopt.train(**settings).history) == 4


def test_resume_never_refuses_a_run_and_takes_a_new_folder(settings):
    settings |= {"resume": "never", "steps": 1}
    sopt.train(**settings)
    with pytest.raises(InputError, match="holds a run already and resume is 'never'"):
        sopt.train(**settings)


@pytest.mark.parametrize("name", ["history.jsonl", "report.html", *RESULTS])
def test_files_of_others_are_not_overwritten(settings, name):
    path = Path(settings["output"]) / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(InputError, match=f"has a file {path.name} but no run"):
        sopt.train(**settings)
    assert path.read_text() == "precious"


def test_files_are_not_strewn_among_the_pictures(settings, pictures):
    """But a run that is there already goes on."""
    output = Path(shutil.copytree(pictures, settings["output"]))
    before = contents(output)
    for images in (str(output), [str(output / "0.png"), str(pictures / "1.png")]):
        with pytest.raises(InputError, match=r"must be a folder of the run's own, .*0\.png in it"):
            sopt.train(**settings | {"images": images})
    assert contents(output) == before
    whole = sopt.train(**settings)  # of pictures elsewhere
    again = sopt.train(**settings | {"images": [str(file) for file in sorted(before)]})
    assert again.history == whole.history


def test_a_folder_with_other_things_in_it_is_used(settings):
    (Path(settings["output"])).mkdir()
    (Path(settings["output"]) / "notes.txt").write_text("mine")
    sopt.train(**settings | {"steps": 1})
    assert (Path(settings["output"]) / "notes.txt").read_text() == "mine"


def test_another_scheduler_is_another_run(settings, micro_folder, tmp_path):
    """Its loss has another target, with the same weights in the same place."""
    folder = shutil.copytree(micro_folder, tmp_path / "model")
    settings |= {"model": str(folder)}
    sopt.train(**settings)
    file = folder / "scheduler" / "scheduler_config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"_diffusers_version": "9"}))
    sopt.train(**settings)
    file.write_text(json.dumps(known | {"prediction_type": "v_prediction"}))
    with pytest.raises(InputError, match=r"holds a run with scheduler='epsilon .* scheduler='v_"):
        sopt.train(**settings)


def test_a_shortened_history_is_an_input_error(settings, at_loss, monkeypatch):
    at_loss(5, crash)
    with pytest.raises(RuntimeError, match="crash"):
        sopt.train(**settings)
    path = Path(settings["output"]) / "history.jsonl"
    path.write_text(path.read_text()[:30])
    at_loss(0, None)
    monkeypatch.setattr("sopt.trainer.make_training", None)  # before anything is loaded
    with pytest.raises(InputError, match=r"history\.jsonl has 1 lines.*of step 2"):
        sopt.train(**settings)


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with History(path, 2) as history:
        history.append({"step": 3, "loss": 0.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    saved = Checkpoint(
        step=3,
        settings={"lr": 1e-5, "images": "ä"},
        skipped={"bp": 1, "zo": 0},
        peaks={"load": 2**40},
        weights="0123",
        adapter={"unet.a.to_out.0.lora_A.weight": torch.randn(2, 3)},
        optimizer={"unet.a.to_out.0.lora_A.weight": {"step": torch.tensor(2.0)}},
    )
    saved.save(tmp_path / "a" / "state.safetensors")
    loaded = Checkpoint.load(tmp_path / "a" / "state.safetensors")
    assert (loaded.step, loaded.settings) == (3, saved.settings)
    assert (loaded.skipped, loaded.peaks) == (saved.skipped, saved.peaks)
    assert loaded.weights == "0123"
    for name, tensor in saved.adapter.items():
        assert torch.equal(loaded.adapter[name], tensor)
        assert loaded.optimizer[name]["step"].item() == 2
    saved.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a" / "state.safetensors").read_bytes()
    assert len(load_file(tmp_path / "b")) == 2
