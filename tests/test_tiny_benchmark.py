"""``sopt benchmark tiny``: its runs, its file of results, its search, its analysis."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny_lines import line

from sopt import cli
from sopt.errors import InputError
from sopt.evaluation.tiny import running
from sopt.evaluation.tiny.analysis import analyse
from sopt.evaluation.tiny.benchmark import benchmark_tiny
from sopt.evaluation.tiny.lines import append_line, read_lines
from sopt.evaluation.tiny.methods import CEILING, FLOOR, METHODS, NAMES, TRIALS, training_settings
from sopt.evaluation.tiny.running import Protocol, passes, run_line
from sopt.evaluation.tiny.scores import TUNING, make_task
from sopt.evaluation.tiny.tuning import choose, merit
from sopt.tiny import judge
from sopt.tiny.prompts import GROUPS

PROTOCOL = Protocol(steps=2, images_per_prompt=2, sampling_steps=1)


@pytest.fixture
def fake_runs(monkeypatch):
    """No training: a run's line has its subject for a score. The list has what was run."""
    calls = []

    def run(method, subject, seed, protocol, chosen):
        calls.append((method, subject, seed, dict(chosen)))
        row = line(method, subject, seed, float(subject), dict(chosen), steps=protocol.steps)
        return row | {"protocol": asdict(protocol)}

    monkeypatch.setattr(running, "run_line", run)
    monkeypatch.setattr(running, "estimate", lambda method, protocol: 10.0)
    return calls


SMALL = {"steps": 2, "images_per_prompt": 2, "sampling_steps": 1}


def test_a_torn_last_line_does_not_count_and_is_cut_off(tmp_path):
    file = tmp_path / "new" / "folder" / "r.jsonl"
    first, second, third = (line("none", 0, seed, 0.5) for seed in range(3))
    append_line(file, first)
    with file.open("a") as stream:
        stream.write(json.dumps(second)[:40])
    assert read_lines(file) == [first]
    append_line(file, third)
    assert read_lines(file) == [first, third]
    # A whole line counts, though its end is missing: an editor's, not ours.
    file.write_text(json.dumps(second))
    append_line(file, third)
    assert read_lines(file) == [second, third]
    whole = json.dumps(first)
    for text, message in {
        f'{whole}\n{{"a"\n{whole}\n': r"line 2 of .* is not JSON",
        "[1]\n": r"line 1 of .* must be a JSON object",
        whole.replace('"scores"', '"other"') + "\n": r"line 1 .* its scores is missing",
        whole.replace('"settings": {', '"settings": [], "other": {'): "its settings is \\[\\]",
        '{"file_name": "mine.png"}': "line 1 .* its method is missing",
        "mine": "line 1 .* is not JSON",
    }.items():
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_lines(file)
        assert file.read_text() == text


def test_runs_without_a_search_have_rates_too_and_those_alone_that_it_chooses():
    for name, method in METHODS.items():
        if method.settings is not None:
            own = training_settings(name, 400, {})
            assert all(
                training_settings(name, 400, each).keys() == own.keys() for each in method.trials
            )
            assert {"lr", "zo_lr"} & own.keys()


def test_runs_that_are_there_are_not_done_again(fake_runs, tmp_path, caplog):
    caplog.set_level("INFO", logger="sopt")
    file = tmp_path / "r.jsonl"
    some = {"methods": ["none", "tap"], "seeds": [0, 1]}
    names = (CEILING, FLOOR, "none", "tap")  # fractions need both ends
    benchmark_tiny(file, **SMALL, **some, subjects=[0])
    assert "8 runs to do, 1.3 core-minutes expected" in caplog.text  # 8 x 10 s
    found = benchmark_tiny(file, **SMALL, **some, subjects=[0, 1])
    assert [each[:3] for each in fake_runs] == [
        *((name, 0, seed) for seed in (0, 1) for name in names),
        *((name, 1, seed) for seed in (0, 1) for name in names),
    ]
    # The expectation of the second rests on the lines of the first, 4 s each.
    assert "8 runs to do, 0.5 core-minutes expected" in caplog.text
    assert len(found) == 16
    assert len(read_lines(file)) == 16
    benchmark_tiny(file, **SMALL, **some, subjects=[0])
    assert len(fake_runs) == 16
    benchmark_tiny(file, **SMALL | {"steps": 3}, **some, subjects=[0])  # of another protocol
    assert len(fake_runs) == 24


def test_runs_are_done_again_when_the_settings_of_their_method_have_changed(
    fake_runs, tmp_path, monkeypatch
):
    file, tuning = tmp_path / "r.jsonl", tmp_path / "t.jsonl"
    some = {"methods": ["none", "tap"], "seeds": [0], "subjects": [0], "tuning": tuning}
    benchmark_tiny(file, **SMALL, **some)
    searched, all_runs = 2 * TRIALS, 2 * TRIALS + 4  # of tap; and with both ends, one of each
    assert len(fake_runs) == all_runs
    benchmark_tiny(file, **SMALL, **some)
    assert len(fake_runs) == all_runs
    changed = replace(METHODS["tap"], common=METHODS["tap"].common | {"num_perturbations": 3})
    monkeypatch.setitem(METHODS, "tap", changed)
    benchmark_tiny(file, **SMALL, **some)
    assert len(fake_runs) == all_runs + searched + 1
    assert {each[0] for each in fake_runs[all_runs:]} == {"tap"}
    found = analyse(read_lines(file))
    assert found["methods"]["tap"]["runs"] == 1  # the new one


def test_runs_that_another_process_did_meanwhile_are_left_out(fake_runs, tmp_path, monkeypatch):
    file, own = tmp_path / "r.jsonl", running.run_line

    def run(method, subject, seed, protocol, chosen):
        if len(fake_runs) == 1:  # all others are done while this one is
            for other in (1, 2):
                append_line(file, own("none", other, seed, protocol, chosen))
        return own(method, subject, seed, protocol, chosen)

    monkeypatch.setattr(running, "run_line", run)
    found = benchmark_tiny(file, **SMALL, methods=["none"], seeds=[0], subjects=[0, 1, 2])
    assert [each["subject"] for each in found if each["method"] == "none"] == [0, 1, 2]
    assert len([each for each in read_lines(file) if each["method"] == "none"]) == 3
    assert len(fake_runs) == 3 * 3


def test_the_search_tries_each_method_six_times_on_two_other_subjects(
    fake_runs, tmp_path, monkeypatch
):
    file, tuning = tmp_path / "r.jsonl", tmp_path / "t.jsonl"
    best = METHODS["tap"].trials[3]

    def run(method, subject, seed, protocol, chosen):
        fake_runs.append((method, subject, seed, dict(chosen)))
        # The protocol of the search has half of the pictures.
        assert protocol.images_per_prompt == (1 if subject >= TUNING else 2)
        score = float(dict(chosen) == dict(best))
        row = line(method, subject, seed, score, dict(chosen), steps=protocol.steps)
        return row | {"protocol": asdict(protocol)}

    monkeypatch.setattr(running, "run_line", run)
    some = {"methods": ["none", "tap"], "seeds": [0], "subjects": [0]}
    benchmark_tiny(file, **SMALL, **some, tuning=tuning)
    searched = fake_runs[: 2 * TRIALS]
    assert {each[1] for each in searched} == {TUNING, TUNING + 1}
    assert all(each[0] == "tap" for each in searched)
    assert len({json.dumps(each[3]) for each in searched}) == TRIALS
    assert fake_runs[2 * TRIALS :] == [
        *((name, 0, 0, {}) for name in (CEILING, FLOOR, "none")),
        ("tap", 0, 0, dict(best)),
    ]
    assert len(read_lines(tuning)) == 2 * TRIALS


def test_every_method_that_learns_gets_as_many_trials():
    for name, method in METHODS.items():
        assert len(method.trials) == (0 if method.settings is None else TRIALS), name
        assert len({json.dumps(trial) for trial in method.trials}) == len(method.trials)


def test_the_trial_with_the_highest_merit_is_chosen():
    trials = [{"lr": 1.0}, {"lr": 2.0}, {"lr": 3.0}]
    lines = [line("tap", TUNING, 0, v, t) for v, t in zip((0.2, 0.9, 0.3), trials, strict=True)]
    lines += [
        line("tap", TUNING + 1, 0, v, t) for v, t in zip((0.2, 0.1, 0.8), trials, strict=True)
    ]
    assert choose("tap", lines, trials) == {"lr": 3.0}  # 1.1 against 1.0 and 0.4
    scores = lines[0]["scores"]
    scores["property"]["subject"], scores["style"]["prompt"] = 1.0, 0.6
    scores["training"]["subject"] = 0.9  # counts for nothing
    # Subject (3 x 0.2 + 1) / 4; prompt (3 x 0.2 + 0.6) / 4.
    assert merit(scores) == pytest.approx((0.4 + 0.3) / 2, rel=1e-12)


def test_a_run_that_diverged_is_a_line():
    """Left out it would be no failure, and a search could not go past it."""
    trials = {"lr": 1e30}
    found = run_line("backprop-low", 0, 0, PROTOCOL, trials)
    assert "values that are not finite" in found["failed"]
    assert merit(found["scores"]) == 0
    assert set(found["scores"]) == {"training", *GROUPS}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    worse = line("tap", TUNING, 0, 0.1, {"lr": 1.0})
    assert choose(
        "backprop-low",
        [found | {"subject": TUNING}, worse | {"method": "backprop-low"}],
        [trials, {"lr": 1.0}],
    ) == {"lr": 1.0}


def test_passes_through_the_network_are_counted():
    history = [{"branch": "bp"}, {"branch": "zo", "seeds": [1, 2]}, {"branch": "bp"}]
    assert passes(history, "spsa", False) == {"forwards": 2 + 4, "backwards": 2}
    assert passes(history, "rge", False) == {"forwards": 2 + 3, "backwards": 2}
    assert passes(history, "spsa", True) == {"forwards": 2 + 4 + 3, "backwards": 2}


def test_a_short_run_says_what_a_long_one_takes():
    history = [{"branch": "bp", "seconds": s} for s in (9.0, 1.0, 1.2)]
    history += [{"branch": "zo", "seconds": s} for s in (8.0, 4.0)]
    assert running.usual_seconds(history) == pytest.approx(3 * 1.2 + 2 * 6.0)


@pytest.mark.parametrize("method", ["none", "class-word", "dtap-0.75", "token-zoodip"])
def test_a_run_trains_draws_and_scores(method, monkeypatch):
    def shorter(number):
        task = make_task(number)
        return replace(task, prompts=[task.prompts[0], task.prompts[-1]])

    train, scorers = running.train, []

    def alone(**settings):
        scorers.append(judge.load.cache_info().currsize)  # would count as the run's memory
        return train(**settings)

    monkeypatch.setattr(running, "make_task", shorter)
    monkeypatch.setattr(running, "train", alone)
    judge.load()
    found = run_line(method, 0, 1, PROTOCOL, {})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["scores"]) == {"training", *GROUPS}
    assert found["scores"]["style"]["diversity"] > 0
    assert found["scores"]["context"]["diversity"] is None
    assert found["versions"]["torch"]
    if method in ("none", "class-word"):
        assert "peak_bytes" not in found
    else:
        steps = {"dtap-0.75": 2, "token-zoodip": 15}[method]
        assert found["forwards"] >= steps
        assert scorers == [0]
        assert found["peak_bytes"] == max(found["phases"].values()) > 2**20


def test_fewer_pictures_than_asked_are_refused(monkeypatch):
    monkeypatch.setattr(running, "generate", lambda *_, **__: [])
    with pytest.raises(InputError, match=r"9 prompts from 'a sks .*' on got 0 of 18"):
        run_line("none", 0, 0, PROTOCOL, {})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"methods": ["dtap"]}, "unknown method 'dtap'"),
        ({"subjects": [100]}, r"subjects must be a whole number in \[0, 100\)"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"steps": 0}, "steps must be"),
        ({"images_per_prompt": 0}, "images_per_prompt must be"),
        ({"output": "results"}, r"must be named \*\.jsonl, got 'results'"),
        ({"tuning": "r.jsonl"}, "tuning must be another file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    fake_runs, change, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        benchmark_tiny(**{"output": "r.jsonl", **SMALL, **change})
    assert not fake_runs
    assert not list(Path().iterdir())


def test_the_command(fake_runs, tmp_path, capsys):
    arguments = ["benchmark", "tiny", "--output", str(tmp_path / "r.jsonl"), "--subjects", "0", "2"]
    arguments += ["--seeds", "1", "--steps", "2", "--images-per-prompt", "2"]
    arguments += ["--sampling-steps", "1", "--json", str(tmp_path / "f.json")]
    assert cli.main(arguments) == 0
    assert len(fake_runs) == 2 * len(NAMES)
    assert "| dtap-0.75 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["subjects"] == 2
    for bad, message in {
        ("--rank", "8"): "rank does not go with the benchmark tiny",
        ("--subjects", "dog"): "subjects must be whole numbers, got 'dog'",
    }.items():
        assert cli.main([*arguments, *bad]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["benchmark", "dreambooth", "--seeds", "1"]) == 2
    assert "seeds goes with the dataset tiny only" in capsys.readouterr().err
