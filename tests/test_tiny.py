"""The bundled model: drawings, captions, judge, and the demo that uses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

import sopt
from sopt.errors import InputError
from sopt.tiny import judge
from sopt.tiny.drawings import draw
from sopt.tiny.scenes import (
    CLASSES,
    VOCABULARIES,
    full_caption,
    is_held_out,
    place,
    random_caption,
    random_scene,
    random_subject,
    vocabulary,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_drawing_is_a_function_of_its_scene_and_shows_the_identity(kind, rng):
    scene = random_scene(rng)
    scene = replace(scene, subject=replace(scene.subject, kind=kind))
    other = replace(scene.subject, identity=tuple(1 - v for v in scene.subject.identity))
    picture = np.asarray(draw(scene))
    assert picture.shape == (64, 64, 3)
    assert np.array_equal(picture, np.asarray(draw(scene)))
    assert not np.array_equal(picture, np.asarray(draw(replace(scene, subject=other))))


def test_pretraining_never_sees_a_held_out_combination(rng):
    def combination(scene):
        return scene.subject.kind, scene.subject.colour, scene.background

    assert not any(is_held_out(*combination(random_scene(rng))) for _ in range(500))
    assert all(is_held_out(*combination(random_scene(rng, held_out=True))) for _ in range(50))


def test_the_tokenizer_knows_every_word_as_one_token_and_spells_the_rest():
    tokenizer = CLIPTokenizer.from_pretrained(sopt.tiny.path() / "tokenizer")
    for word in vocabulary():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Zebra & naïve 犬!")


def test_full_captions_fit_into_the_prompt_and_tell_scenes_apart(rng):
    tokenizer = CLIPTokenizer.from_pretrained(sopt.tiny.path() / "tokenizer")
    scenes = [random_scene(rng) for _ in range(300)]
    assert max(len(tokenizer(full_caption(s)).input_ids) for s in scenes) <= 24
    by_caption = {}
    for scene in scenes:
        # All attributes of a scene but the second colour of plain subjects' patterns are named.
        assert by_caption.setdefault(full_caption(scene), scene.labels()) == scene.labels()


def test_the_bundled_pipeline_loads_in_one_dtype_without_being_told():
    pipeline = StableDiffusionPipeline.from_pretrained(sopt.tiny.path())
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {weight.dtype for weight in module.parameters()} == {torch.float32}


def test_one_caption_in_ten_is_empty(rng):
    scene = random_scene(rng)
    empty = sum(random_caption(scene, rng) == "" for _ in range(2000))
    assert abs(empty - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5  # five deviations: 6e-7 of seeds


def test_the_judge_reads_drawings_as_well_as_its_committed_figures_say(rng):
    scenes = [place(random_subject(rng), rng) for _ in range(200)]
    probabilities, embedding = judge.read([draw(scene) for scene in scenes])
    figures = json.loads((judge.WEIGHTS.parent / "figures.json").read_text())
    for name in VOCABULARIES:
        p = figures["judge_on_held_out_drawings"][name]
        wanted = torch.tensor([scene.labels()[name] for scene in scenes])
        right = (probabilities[name].argmax(dim=1) == wanted).float().mean().item()
        # Binomial: five deviations of both samples, 200 here and 960 there.
        assert right > p - 5 * (max(p * (1 - p), 0.01) * (1 / 200 + 1 / 960)) ** 0.5
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(200), rtol=1e-6, atol=0)


def test_subject_score_is_near_1_for_own_drawings_and_low_for_others_alike():
    own_scores, other_scores = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        subject = random_subject(rng)
        known = judge.reference(subject)
        stranger = replace(subject, identity=tuple(rng.random(len(subject.identity))))
        for scores, shown in ((own_scores, subject), (other_scores, stranger)):
            scores.append(judge.subject_score([draw(place(shown, rng)) for _ in range(16)], known))
    # By construction the likeness of own drawings averages 1 and that of others 0 before it is cut
    # off below; what the attributes' probabilities and the cut leave of that is measured.
    assert 0.8 < np.mean(own_scores) < 1.15
    assert np.mean(other_scores) < 0.5 * np.mean(own_scores)


def test_prompt_score_is_the_mean_probability_of_what_is_named(rng):
    scene = place(random_subject(rng), rng, "snow")
    pictures = [draw(scene)]
    probabilities, _ = judge.read(pictures)
    snow = probabilities["background"][0, VOCABULARIES["background"].index("snow")]
    kind = probabilities["class"][0, scene.labels()["class"]]
    score = judge.prompt_score(pictures, {"background": "snow", "class": scene.subject.kind})
    assert score == pytest.approx(((snow + kind) / 2).item(), rel=1e-6)


def test_the_demo_does_not_overwrite_other_pictures(tmp_path):
    from sopt.demo import demo

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "01.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"01\.png is another picture"):
        demo(tmp_path)
    assert (tmp_path / "photos" / "01.png").read_bytes() == b"mine"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", [{"steps": 0}, {"seed": -1}, {"seed": 2**64}])
def test_the_demo_checks_its_settings_before_it_draws(tmp_path, bad):
    from sopt.demo import demo

    with pytest.raises(InputError, match=next(iter(bad))):
        demo(tmp_path / "demo", **bad)
    assert not (tmp_path / "demo").exists()


def test_the_demo_does_not_overwrite_another_grid(tmp_path):
    from sopt.demo import demo

    (tmp_path / "grid.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"grid\.png is not of this demo"):
        demo(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.slow
def test_the_demo_teaches_the_model_its_subject(tmp_path):
    from sopt.demo import PHOTOS, demo

    figures = demo(tmp_path)
    assert len(list((tmp_path / "photos").glob("*.png"))) == PHOTOS
    assert set(figures["peak_bytes"]) >= {"load", "cache", "train-bp", "train-zo", "save", "sample"}
    for name in ("subject_before", "subject_after", "prompt_before", "prompt_after"):
        assert 0 <= figures[name] < 1.5
    assert figures["subject_after"] > 1.5 * figures["subject_before"]
    with Image.open(figures["grid"]) as grid:
        assert grid.size[0] > 8 * 64
    assert Path(figures["adapter"]).exists()
