"""What the bundled model's pictures are scored by: layouts, structure, prompts, groups."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sopt.errors import InputError
from sopt.evaluation.tiny import scores as module
from sopt.evaluation.tiny.methods import CEILING, FLOOR
from sopt.evaluation.tiny.scores import diversity, draw_real, make_task, overall, score
from sopt.tiny import judge
from sopt.tiny.backgrounds import background
from sopt.tiny.drawings import LAYOUT, draw, layout
from sopt.tiny.prompts import GROUPS, prompts_for
from sopt.tiny.scenes import BACKGROUNDS, CLASSES, Scene, place, random_subject, vocabulary
from sopt.tiny.segmenter import WEIGHTS, segment
from sopt.tiny.structure import agreement, structure_score


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_layout_says_where_the_drawing_differs_from_its_background(kind, rng):
    subject = replace(random_subject(rng), kind=kind, accessory="hat")
    scene = place(subject, rng)
    shown, bare = layout(scene), np.asarray(background(scene, 64), np.int32)
    assert set(np.unique(shown)) == set(range(len(LAYOUT)))
    changed = np.abs(np.asarray(draw(scene), np.int32) - bare).max(axis=2) > 0
    # The layout has no outlines and no half-covered pixels, and a part may have the sky's colour.
    assert np.mean(changed[shown > 0]) > 0.97
    outside = changed & (shown == 0)
    near = np.zeros_like(outside)
    for down in range(-2, 3):
        for across in range(-2, 3):
            near |= np.roll(shown > 0, (down, across), (0, 1))
    assert (outside & ~near).sum() <= 8  # outlines reach further at sharp corners


def test_agreement_is_the_mean_overlap_of_silhouette_and_parts():
    seen = torch.tensor([[[1, 1], [2, 0]], [[0, 0], [0, 0]]])
    drawn = torch.tensor([[[1, 2], [2, 0]], [[1, 1], [2, 0]]])
    # Against the first: silhouettes are alike; of the body 1 of 2 pixels, of the parts 1 of 2.
    expected = [[(1 + (1 / 2 + 1 / 2) / 2) / 2, 1.0], [0.0, 0.0]]
    np.testing.assert_allclose(agreement(seen, drawn).numpy(), expected, rtol=1e-6)


def test_the_segmenter_reads_drawings_as_well_as_its_committed_figures_say(rng):
    scenes = [place(random_subject(rng), rng) for _ in range(100)]
    read = segment([draw(scene) for scene in scenes]).numpy()
    drawn = np.stack([layout(scene) for scene in scenes])
    figures = json.loads((WEIGHTS.parent / "figures.json").read_text())
    for label, name in enumerate(LAYOUT):
        a, b = read == label, drawn == label
        # 100 drawings here and 400 there: of other samples of 100 none differed by half of this.
        assert (a & b).sum() / (a | b).sum() > (
            figures["segmenter_on_held_out_drawings"][name] - 0.04
        )


def test_structure_is_highest_for_the_subject_in_any_colours_and_pose():
    means = np.zeros(3)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        subject = random_subject(rng)
        recoloured = replace(subject, colour="green", second_colour="pink", pattern="plain")
        alike = replace(recoloured, identity=tuple(rng.random(10).tolist()))
        (kind,) = {"dog", "car"} - {subject.kind} if subject.kind in ("dog", "car") else {"car"}
        other = replace(recoloured, kind=kind)
        for i, shown in enumerate((recoloured, alike, other)):
            means[i] += structure_score([draw(place(shown, rng)) for _ in range(6)], subject) / 6
    assert means[0] > means[1] + 0.05
    assert means[1] > means[2] + 0.05


def test_prompts_ask_for_what_the_subject_does_not_have(rng):
    words = set(vocabulary())
    for _ in range(50):
        subject, seen = random_subject(rng), [BACKGROUNDS[i] for i in rng.permutation(8)[:5]]
        prompts = prompts_for(subject, seen, rng)
        assert [prompt.group for prompt in prompts] == [g for g in GROUPS for _ in range(2)]
        assert len({prompt.template for prompt in prompts}) == 8
        own = Scene(subject, seen[0], "left").labels()
        for prompt in prompts:
            ((name, wanted),) = prompt.named.items()
            shown = Scene(prompt.shown, prompt.background or seen[0], "left").labels()
            assert shown[name] != own[name]
            assert wanted == judge.VOCABULARIES[name][shown[name]]
            assert set(prompt.text("sks dog").split()) <= words


def test_a_task_is_a_function_of_its_number():
    assert make_task(3) == make_task(3)
    assert make_task(3).subject != make_task(4).subject
    photos = make_task(3).photos
    assert len({scene.background for scene in photos}) == 5
    contexts = [p.background for p in make_task(3).prompts if p.group == "context"]
    assert not {scene.background for scene in photos} & set(contexts)


def test_drawings_of_the_subject_score_above_those_of_others():
    found = {}
    for method in (CEILING, FLOOR):
        row = score(make_task(0), draw_real(make_task(0), method, 0, 6))
        found[method] = {name: overall(row, name) for name in ("subject", "prompt", "structure")}
        assert row["training"]["prompt"] is None
    for name, low in found[FLOOR].items():
        assert found[CEILING][name] > low + 0.1


def test_scores_are_means_of_the_judges_by_group(monkeypatch):
    task = make_task(0)
    pictures = draw_real(task, CEILING, 1, 2)
    monkeypatch.setattr(module, "structure_score", lambda images, subject: 0.5)
    found = score(task, pictures)
    by_hand = [
        judge.prompt_score(drawn, dict(prompt.named))
        for prompt, drawn in zip(task.prompts, pictures, strict=True)
        if prompt.group == "style"
    ]
    assert len(by_hand) == 2
    assert found["style"]["prompt"] == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert found["style"]["structure"] == 0.5
    groups = [found[group]["subject"] for group in GROUPS]
    assert overall(found, "subject") == pytest.approx(np.mean(groups), rel=1e-12)


def test_diversity_is_one_minus_the_mean_cosine_of_pairs():
    features = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    # Cosines 0, sqrt(1/2), sqrt(1/2).
    assert diversity(features) == pytest.approx(1 - 2 * 0.5**0.5 / 3, rel=1e-12)
    assert diversity(np.ones((2, 4))) == pytest.approx(0, abs=1e-12)
    task = make_task(0)
    assert score(task, draw_real(task, CEILING, 0, 1))["training"]["diversity"] is None


def test_missing_pictures_and_scores_that_are_not_finite_are_refused(monkeypatch):
    task = make_task(0)
    with pytest.raises(InputError, match="there are no pictures of the prompt 'a subject'"):
        score(task, [[] for _ in task.prompts])
    monkeypatch.setattr(module, "structure_score", lambda images, subject: float("nan"))
    with pytest.raises(InputError, match=r"structure score .* is nan"):
        score(task, [[Image.new("RGB", (64, 64))] * 2 for _ in task.prompts])
