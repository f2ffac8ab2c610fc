"""``sopt.train`` by several processes: the bits, the files, and what stops them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import SkipMemory

import sopt
from sopt.config import TrainConfig
from sopt.data import load_pictures
from sopt.errors import InputError
from sopt.export import DIFFUSERS_FILE
from sopt.memory import MemoryRecorder
from sopt.processes import Processes, check_processes, take_gpu
from sopt.resolution import resolve
from sopt.steps.zeroth_order import zeroth_order_step
from sopt.training import LoraTraining

HERE = Path(__file__).parent


def together(world, call):
    """What ``call(Processes)`` gives, or raises, in each of ``world`` threads."""
    store = torch.distributed.HashStore()

    def run(rank):
        with Processes(store, rank, world) as processes:
            return call(processes)

    with ThreadPoolExecutor(world) as threads:
        futures = [threads.submit(run, rank) for rank in range(world)]
    return [future.exception() or future.result() for future in futures]


@pytest.fixture(scope="module")
def runs(micro_folder, pictures, tmp_path_factory):
    """The ends of some runs and their folders, by name; all in one process with its children."""
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    folder = tmp_path_factory.mktemp("together")
    common = {
        "model": str(micro_folder), "images": str(pictures), "prompt": "a sks dog", "steps": 4,
        "checkpoint_every": 2, "weights": "float32",
    }  # fmt: skip
    common["seed"] = 6  # with schedule 0.5 the steps are bp, zo, bp, zo
    forward = common | {"method": "zeroth-order"}
    both = common | {"schedule": 0.5, "num_perturbations": 2}
    scenarios = {
        "forward alone": {"world": 1, "settings": forward | {"num_perturbations": 3}},
        "forward": {"world": 2, "settings": forward | {"num_perturbations": 3}},
        "forward streamed": {
            "world": 2, "settings": forward | {"num_perturbations": 3, "offload": "stream"}},
        "lost": {
            "world": 2, "settings": forward | {"num_perturbations": 4}, "timeout": 1.0,
            "rank": 1, "loss": 9, "act": "kill"},  # in step 3
        "both": {"world": 2, "settings": both},
        "killed": {"world": 2, "settings": both, "rank": 1, "loss": 4, "act": "kill"},  # step 3
        "killed, again": {"world": 2, "settings": both, "in": "killed"},
        "killed, by one": {"world": 1, "settings": both, "in": "killed"},
        "interrupted": {"world": 2, "settings": both, "rank": 0, "loss": 2, "act": "interrupt"},
        "interrupted, again": {"world": 2, "settings": both, "in": "interrupted"},
        "drift": {"world": 2, "settings": both, "rank": 1, "loss": 1, "act": "drift"},
    }  # fmt: skip
    for name, run in scenarios.items():
        output = folder / run.pop("in", name) / "run"
        run["settings"] = run["settings"] | {"output": str(output)}
    done = subprocess.run(
        [sys.executable, HERE / "train_together.py", json.dumps(list(scenarios.values()))],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    outputs = [Path(run["settings"]["output"]) for run in scenarios.values()]
    return dict(zip(scenarios, zip(json.loads(done.stdout), outputs, strict=True), strict=True))


def history(output):
    lines = (output / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def adapter_bytes(output):
    return (output / DIFFUSERS_FILE).read_bytes()


def ends(results):
    return [result["end"] for result in results]


@pytest.mark.parametrize("name", ["forward", "forward streamed"])
def test_zeroth_order_steps_of_two_processes_are_those_of_one(runs, name):
    (alone, expected), (results, output) = runs["forward alone"], runs[name]
    assert ends(results) == ["done", "done"]
    assert adapter_bytes(output) == adapter_bytes(expected)
    assert history(output) == history(expected)
    assert [len(entry["seeds"]) for entry in history(output)] == [3] * 4
    assert results[0]["digests"] == results[1]["digests"] == alone[0]["digests"]
    assert len(set(results[0]["digests"].values())) == 3  # at the start, after steps 2 and 4


def test_selective_steps_keep_the_processes_equal(runs):
    results, output = runs["both"]
    assert ends(results) == ["done", "done"]
    assert results[0]["digests"] == results[1]["digests"]
    assert len(set(results[0]["digests"].values())) == 3
    entries = history(output)
    assert [entry["branch"] for entry in entries] == ["bp", "zo", "bp", "zo"]
    assert [entry.get("samples") for entry in entries] == [2, None, 2, None]
    assert {path.name for path in output.iterdir()} == {
        "checkpoint", "config.yaml", "history.jsonl", "memory.json", "record.json", "report.html",
        "samples", DIFFUSERS_FILE, "run_kohya.safetensors",
    }  # fmt: skip


def test_a_run_whose_process_was_killed_continues_to_the_same_bits(runs):
    results, _ = runs["killed"]
    assert "process 0 cannot average gradients: another process is gone" in results[0]["end"]
    assert results[1]["end"] == "killed"
    results, output = runs["killed, again"]
    assert ends(results) == ["done", "done"]
    assert list(results[0]["digests"]) == ["2", "4"]  # it went on after step 2
    assert adapter_bytes(output) == adapter_bytes(runs["both"][1])
    assert history(output) == history(runs["both"][1])


def test_another_number_of_processes_does_not_continue_backprop(runs):
    (result,), _ = runs["killed, by one"]
    assert "holds a run with samples_per_backprop_step=2, this one has" in result["end"]


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(runs):
    results, _ = runs["interrupted"]
    assert [end.split(":")[0] for end in ends(results)] == ["KeyboardInterrupt"] * 2
    assert [list(result["digests"]) for result in results] == [["0", "2", "3"]] * 2
    results, output = runs["interrupted, again"]
    assert ends(results) == ["done", "done"]
    assert list(results[0]["digests"]) == ["3", "4"]
    assert adapter_bytes(output) == adapter_bytes(runs["both"][1])


def test_weights_that_differ_stop_all_processes(runs):
    results, output = runs["drift"]
    first, second = sorted(ends(results), key=lambda end: "stopped with" in end)
    assert "differ from the others' after step 2" in first
    assert second.startswith("RuntimeError: stopped with process")
    assert "differ from the others' after step 2" in second
    assert not (output / DIFFUSERS_FILE).exists()


def test_forward_steps_go_on_without_a_process_that_is_lost(runs):
    results, output = runs["lost"]
    assert ends(results) == ["done", "killed"]
    entries = history(output)
    assert [len(entry["seeds"]) for entry in entries] == [4, 4, 2, 2]
    assert adapter_bytes(output)


def torchrun(*arguments):
    """Two processes; torchrun itself sets their OMP_NUM_THREADS to 1."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*command, "--nproc-per-node", "2", *arguments], check=True, timeout=600)


def options(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.slow
def test_torchrun_of_the_command_gives_the_adapter_of_one_process(runs, settings):
    settings |= {"steps": 4, "seed": 6, "method": "zeroth-order", "num_perturbations": 3}
    del settings["schedule"]
    torchrun("-m", "sopt.cli", "train", *options(settings))
    assert adapter_bytes(Path(settings["output"])) == adapter_bytes(runs["forward alone"][1])


RESTARTED = """
import os, signal, sys
import pytest
from pipelines import act_at_loss
from sopt.cli import main

if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) == ("0", "1"):
    act_at_loss(pytest.MonkeyPatch(), 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_again_end_in_the_same_bits(
    runs, settings, tmp_path, monkeypatch
):
    program = tmp_path / "restarted.py"
    program.write_text(RESTARTED)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parent}")
    settings |= {"steps": 4, "seed": 6, "num_perturbations": 2, "samples": "false"}
    torchrun("--max-restarts", "1", str(program), "train", *options(settings))
    output = Path(settings["output"])
    assert adapter_bytes(output) == adapter_bytes(runs["both"][1])
    assert history(output) == history(runs["both"][1])


def test_what_is_missing_is_left_out_and_n_corrected():
    weight, seeds = torch.tensor([3.0, 1.0]), [1, 2, 3]
    start, found = weight.clone(), {}

    def share(seeds, evaluate):
        found["losses"] = evaluate(seeds[::2])
        return seeds[::2], found["losses"]

    update = zeroth_order_step(
        {"w": weight}, lambda: weight.square().sum(), seeds, lr=0.5, eps=0.25, share=share
    )
    plus, minus = found["losses"].unbind(1)
    assert update.seeds == [1, 3]
    assert update.coefficients == ((plus - minus) / 0.5 * (-0.5 / 2)).tolist()
    assert update.loss == found["losses"].mean().item()
    assert not torch.equal(weight, start)


def test_a_backprop_step_is_adamw_on_the_mean_gradient_of_two_samples(
    settings, micro_model, pictures, monkeypatch
):
    monkeypatch.setattr("sopt.memory.LiveStorage", SkipMemory)
    config = resolve(TrainConfig.create(**settings), micro_model)
    config = replace(config, checkpointing=False)

    def training(processes):
        memory, images = MemoryRecorder(torch.device("cpu")), load_pictures(pictures, "a sks dog")
        made = LoraTraining(config, micro_model, images, memory, processes=processes)
        for index, parameter in enumerate(made.adapter.values()):  # B is zero at first
            generator = torch.Generator().manual_seed(index)
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return made

    trainings = [training(Processes()) for _ in range(3)]

    def step(processes):
        made = trainings[processes.rank]
        made._processes = processes
        processes.begin(0, {}, backprop=True)
        outcome = made.backprop(1, 500)
        processes.compare(1, made.adapter)
        return outcome

    outcomes = together(2, step)
    reference = trainings[2]
    losses = [reference._loss(1, 500, config.low_resolution, share) for share in range(2)]
    samples = [reference.draw(1, 500, config.low_resolution, share) for share in range(2)]
    assert not torch.equal(samples[0].noise, samples[1].noise)
    assert samples[0].timestep == samples[1].timestep == 500
    gradients, values = [], []
    for loss in losses:
        reference.optimizer.zero_grad()
        values.append(loss())
        values[-1].backward()
        gradients.append([p.grad.clone() for p in reference.adapter.values()])
    for parameter, a, b in zip(reference.adapter.values(), *gradients, strict=True):
        parameter.grad = (a + b) / 2
    reference.optimizer.step()
    mean = ((values[0] + values[1]) / 2).item()
    assert outcomes == [{"loss": mean, "samples": 2}] * 2
    for name, parameter in reference.adapter.items():
        assert torch.equal(parameter, trainings[0].adapter[name])


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all():
    def mean(processes):
        processes.begin(0, {}, backprop=True)
        tensors = [torch.tensor(float("nan") if processes.rank else 1.0), torch.ones(2, 3)]
        processes.average_(tensors)
        return [x.tolist() for x in tensors]

    for loss, ones in together(2, mean):
        assert loss != loss
        assert ones == [[1.0] * 3] * 2


def test_a_process_in_another_run_or_at_another_step_is_refused():
    for error in together(2, lambda p: p.begin(0, {"seed": p.rank}, False)):
        assert isinstance(error, InputError)
        assert "settings, pictures and model must be the same in all processes" in str(error)
    errors = together(2, lambda p: p.begin(50 * p.rank, {}, False))
    assert all("output must be a folder that all processes see" in str(x) for x in errors)


def test_an_error_in_one_process_ends_the_waiting_of_the_others():
    def call(processes):
        if processes.rank:
            raise ZeroDivisionError("no luck")
        processes.begin(0, {}, backprop=False)

    first, second = together(2, call)
    assert isinstance(second, ZeroDivisionError)
    assert str(first) == "stopped with process 1, ZeroDivisionError: no luck"


@pytest.mark.parametrize("bad, message", [
    ({"num_perturbations": 3}, r"num_perturbations must be in \[4, 65536\] with 4 .* got 3"),
    ({"hollow": "a8"}, "hollow='a8' does not go with 4 processes"),
    ({"eps": "auto"}, "eps='auto' does not go with 4 processes"),
    ({"train": "token", "prompt": "a <d>", "token": "<d>", "initializer": "d", "tau": 2},
     "train='token' does not go with 4 processes"),
])  # fmt: skip
def test_settings_that_do_not_go_with_several_processes(settings, bad, message, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        sopt.train(**settings | bad)
    assert not Path(settings["output"]).exists()
    config = TrainConfig.create(**settings | {"schedule": 0.0, "num_perturbations": 1})
    check_processes(config, 4)  # no zeroth-order step


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    take_gpu("cuda")
    assert not taken  # alone
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    take_gpu(None)
    take_gpu("cpu")
    take_gpu("cuda:0")
    assert taken == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="needs a GPU for each process of a machine, this one has"):
        take_gpu("cuda")


def test_other_commands_are_refused(monkeypatch, capsys):
    from sopt.cli import main

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["demo"]) == 2
    assert "sopt demo does not go with 2 processes" in capsys.readouterr().err
