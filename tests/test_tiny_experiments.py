"""The experiments on the bundled model: their steps are those of ``sopt.train``, their sums are
right."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_lines import line

import sopt
from bench import tiny_equal, tiny_experiments, tiny_page, tiny_variants
from bench.tiny_steps import Steps
from sopt.evaluation.tiny.methods import METHODS
from sopt.evaluation.tiny.scores import make_task
from sopt.files import load_tensors
from sopt.tiny.drawings import draw

STEPS = 4


def by_turns(step, timestep):
    return float(step % 2)


@pytest.fixture(scope="module")
def steps():
    """A finished run with steps of both kinds by turns."""
    found = Steps(make_task(0), 3, "random", steps=STEPS, schedule=by_turns)
    assert {found.draw(i).zeroth_order for i in range(1, STEPS + 1)} == {True, False}
    found.run(range(1, STEPS + 1))
    return found


def test_the_steps_are_those_of_a_run(steps, tmp_path):
    settings = METHODS["random"].training(STEPS, {"schedule": by_turns})
    pictures = [draw(scene) for scene in make_task(0).photos]
    run = sopt.train(
        images=pictures, prompt=steps.prompt, output=str(tmp_path / "run"), seed=3, **settings
    )
    expected, _ = load_tensors(run.adapter)
    found, _ = load_tensors(steps.save(tmp_path / "steps.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_loss_is_of_the_weights_that_are_there(steps):
    kept, loss = steps.copy(), steps.loss()
    assert loss["all"] == pytest.approx((loss["low"] + loss["high"]) / 2)
    assert loss["low"] > loss["high"]  # little noise is hard to see
    steps.put({name: torch.full_like(x, torch.inf) for name, x in kept.items()})
    assert steps.loss()["all"] == float("inf")
    steps.put(kept)
    assert steps.loss() == loss


def test_a_change_is_relative_to_the_weights(steps):
    blocks = tiny_experiments.by_block(steps.copy())
    assert list(blocks) == ["down.0", "down.1", "mid", "up.0", "up.1"]
    adapter = steps.copy()
    name = blocks["mid"][0].replace("lora_B", "lora_A")
    pair = [name, name.replace("lora_A", "lora_B")]
    layer = dict(steps.unet.named_modules())[name.removeprefix("unet.")[: -len(".lora_A.weight")]]
    both = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).norm()
    expected = (both / layer.base_layer.weight.norm()).item()
    found = tiny_experiments.relative_change(steps.unet, pair, adapter)
    assert found == pytest.approx(expected, rel=1e-5)  # sums of squares in another order


@pytest.mark.parametrize("name", list(tiny_variants.VARIANTS))
def test_a_variant_moves_what_it_says(name, monkeypatch):
    monkeypatch.setattr(tiny_variants, "STEPS", 6)
    monkeypatch.setattr(tiny_variants, "BASE", "reversed")  # mostly zeroth-order
    rate = 0.0 if name == "skipped" else 0.05
    usual = tiny_variants.train("dtap", 0, 4, 1e-3, 0.05).copy()
    found = tiny_variants.train(name, 0, 4, 1e-3, rate).copy()
    assert all(x.isfinite().all() for x in found.values())
    same = all(torch.equal(found[key], usual[key]) for key in usual)
    assert same == (name == "dtap")


def test_b_alone_moves_in_its_steps(steps):
    kept = steps.copy()
    tiny_variants.only_b(steps, 9, 800)
    for name, weight in steps.adapter.items():
        assert torch.equal(weight, kept[name]) == ("lora_A" in name)
    steps.put(kept)


def test_a_step_along_adam_moves_by_its_rate(steps):
    kept = steps.copy()
    steps.set_rate(1e-3)
    tiny_variants.along_adam(steps, 9, 800)
    moves = torch.cat([(x.detach() - kept[n]).flatten() for n, x in steps.adapter.items()])
    # Root mean square; each weight was rounded to float32, half a unit of values up to 1.
    assert moves.square().mean().sqrt().item() == pytest.approx(1e-3, abs=2**-24)
    steps.put(kept)


def test_the_average_is_over_the_steps_from_one_on():
    steps = SimpleNamespace(adapter={"x": torch.tensor([0.0])})
    average = tiny_variants.Average(steps, 3)
    for value in (1.0, 2.0, 3.0, 5.0):
        steps.adapter["x"].fill_(value)
        average.add(None)
    assert average.mean()["x"].item() == 4.0


def test_only_methods_at_other_rates_run_again():
    lines = [
        line("drawings", 0, 0, 1.0, {}),
        line("zeroth-order", 0, 0, 0.1, {"zo_lr": 0.05}),
        line("tap", 0, 0, 0.1, {"lr": 1.25e-4, "zo_lr": 0.01}),
        line("dtap-0.75", 0, 0, 0.1, {"lr": 2.5e-4, "zo_lr": 0.01}),
        line("dtap-average", 0, 0, 0.1, {"lr": 5e-4, "average": 0.5}),
        line("token-backprop", 0, 0, 0.1, {"lr": 2e-3}),
    ]
    assert tiny_equal.at_other_rates(lines) == {
        "tap": {"lr": 2.5e-4, "zo_lr": 0.01},
        "dtap-average": {"lr": 2.5e-4, "average": 0.5},
    }


def test_methods_at_equal_rates_are_paired_with_the_others_of_the_table(tmp_path, monkeypatch):
    slow, fast = {"lr": 1.25e-4, "zo_lr": 0.01}, {"lr": 2.5e-4, "zo_lr": 0.01}
    table, again = [], []
    for subject, hard in enumerate((0.0, 0.1, 0.3)):
        table += [
            line("others", subject, 0, 0.0, {}),
            line("drawings", subject, 0, 1.0, {}),
            line("dtap-0.75", subject, 0, 0.4 - hard, fast),
            line("tap", subject, 0, 0.3 - hard, slow),
        ]
        again.append(line("tap", subject, 0, 0.35 - hard, fast))
    monkeypatch.setattr(tiny_page, "RESULTS", tmp_path)
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(each) + "\n" for each in table))
    found = "\n".join(tiny_page.equal({"runs": again}))
    assert "| tap | lr 0.00025, zo_lr 0.01 | 0.22 |" in found  # 0.35, 0.25, 0.05
    assert "+0.05 (+0.05 to +0.05) | holds |" in found  # not the 0.1 of the slow rate
    assert "| dtap-0.75 |" not in found
    assert "better than random" not in found
