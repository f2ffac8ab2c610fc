"""Scores against cosines computed here, pair by pair; datasets and prompts as published."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from backbones import CLIP_SIDE, DINO_SIDE
from PIL import Image
from pipelines import save_pictures
from published import LISTS, save_dreambooth
from transformers import CLIPModel, CLIPTokenizer, ViTModel

import sopt
from sopt import InputError, cli
from sopt.evaluation.datasets import read_subjects
from sopt.evaluation.metrics import to_input
from sopt.evaluation.prompts import fill, without_word

# Sums of float32 networks in another order; the cosines themselves are float64. 1e-5 was the
# most that batches of 1 and of 4 differed by.
TOLERANCE = 1e-4

# (v / 255 - mean) / deviation in float32, in units u = 2^-24: the quotient and the difference are
# off by u, the mean by u / 2, all over at least 0.22, which makes 11.4 u; the deviation, the last
# division, and the float64 that it is compared with, rounded once, by u each of at most 2.7.
NORMALIZED = 20 * 2.0**-24

# Mean and deviation of red, green and blue: ImageNet's, which DINO's evaluation takes, and CLIP's.
NORMALIZATION = {
    "dino": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}


def picture(seed, size=(300, 260)):
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)


def cosine(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def as_published(image, shorter, side, name):
    """The shorter side to so many pixels, the square in the middle, normalised: (1, 3, side, side).

    Sides round down in resizing, the crop's corner to the even neighbour, as in torchvision.
    """
    least = min(image.size)
    width, height = (side * shorter // least for side in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = np.asarray(resized.crop((left, top, left + side, top + side))) / 255
    mean, deviation = map(np.array, NORMALIZATION[name])
    return torch.tensor((square - mean) / deviation, dtype=torch.float32).permute(2, 0, 1)[None]


@pytest.fixture
def by_hand(backbones):
    """Embeddings by the networks called directly, one picture or text at a time."""
    dino = ViTModel.from_pretrained(backbones["dino"], add_pooling_layer=False)
    clip = CLIPModel.from_pretrained(backbones["clip"])
    tokenizer = CLIPTokenizer.from_pretrained(backbones["clip"])

    class Embed:
        @staticmethod
        @torch.no_grad()
        def dino(image):
            pixels = as_published(image, DINO_SIDE * 256 // 224, DINO_SIDE, "dino")
            return dino(pixels).last_hidden_state[0, 0]

        @staticmethod
        @torch.no_grad()
        def clip(image, text="a"):
            tokens = tokenizer(text, return_tensors="pt")  # short enough for its 16
            pixels = as_published(image, CLIP_SIDE, CLIP_SIDE, "clip")
            out = clip(pixel_values=pixels, **tokens)
            return out.image_embeds[0], out.text_embeds[0]

    return Embed


def test_scores_are_the_cosines_of_all_pairs(by_hand, backbones):
    drawn = [picture(seed) for seed in range(4)]
    real = [picture(seed, (240, 320)) for seed in range(10, 13)]
    prompts = {"image-1": "a sks dog wet", "image-2": "a sks dog wet",
               "image-3": "a red sks dog", "image-4": "a red sks dog"}  # fmt: skip
    scores = sopt.evaluate(drawn, real, prompts=prompts, batch_size=3, **backbones)

    dino = [cosine(by_hand.dino(x), by_hand.dino(r)) for x in drawn for r in real]
    clip = [cosine(by_hand.clip(x)[0], by_hand.clip(r)[0]) for x in drawn for r in real]
    texts = ["a dog wet"] * 2 + ["a red dog"] * 2
    text = [cosine(*by_hand.clip(x, t)) for x, t in zip(drawn, texts, strict=True)]
    apart = [1 - cosine(by_hand.dino(drawn[i]), by_hand.dino(drawn[i + 1])) for i in (0, 2)]
    for name, pairs in [("dino", dino), ("clip_i", clip), ("clip_t", text), ("diversity", apart)]:
        assert scores[name] == pytest.approx(np.mean(pairs), abs=TOLERANCE), name
        assert np.ptp(pairs) > 10 * TOLERANCE, name  # else the mean would say nothing
    # Neither the best pair, nor the prompt with the rare word.
    assert abs(scores["dino"] - max(dino)) > 10 * TOLERANCE
    with_token = [cosine(*by_hand.clip(x, prompts[f"image-{i}"])) for i, x in enumerate(drawn, 1)]
    assert abs(scores["clip_t"] - np.mean(with_token)) > 10 * TOLERANCE
    assert (scores["images"], scores["references"], scores["prompts"]) == (4, 3, 2)
    for name in ("dino", "clip"):
        assert scores["backbones"][name]["name"] == backbones[name]
        assert len(scores["backbones"][name]["weights"]) >= 16


def test_a_picture_compared_with_itself_scores_1(backbones):
    scores = sopt.evaluate(picture(0), picture(0), prompts="a sks dog", **backbones)
    assert scores["dino"] == pytest.approx(1, abs=1e-6)
    assert scores["clip_i"] == pytest.approx(1, abs=1e-6)
    assert scores["diversity"] is None
    twice = sopt.evaluate([picture(0)] * 2, picture(1), prompts="a dog", **backbones)
    assert twice["diversity"] == pytest.approx(0, abs=1e-6)


def test_the_transform_is_the_published_one():
    image = picture(0, (300, 400))
    # 256 / 300 of the sides; then (341 - 224) / 2 = 58.5 rounds to 58, the even neighbour.
    resized = image.resize((256, 341), Image.Resampling.BICUBIC).crop((16, 58, 240, 282))
    for name, (mean, deviation) in NORMALIZATION.items():
        expected = (np.asarray(resized) / 255 - np.array(mean)) / np.array(deviation)
        given = to_input(image, 256, 224, name)
        np.testing.assert_allclose(given.permute(1, 2, 0), expected, rtol=0, atol=NORMALIZED)
        published = as_published(image, 256, 224, name)[0]
        np.testing.assert_allclose(given, published, rtol=0, atol=NORMALIZED)
    wide = picture(0, (500, 256))  # no resizing: its very pixels
    middle = np.asarray(wide.crop((138, 16, 362, 240)))
    given = to_input(wide, 256, 224, "dino").permute(1, 2, 0).numpy()
    mean, deviation = np.array(NORMALIZATION["dino"])
    atol = NORMALIZED * deviation.max() * 255
    np.testing.assert_allclose((given * deviation + mean) * 255, middle, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a sks dog in the snow", "sks", "a dog in the snow"),
        ("a  <new1> cat swimming", "<new1>", "a cat swimming"),
        ("a dog of sksland, sks", "sks", "a dog of sksland,"),
        ("a dog", "sks", "a dog"),
    ],
)
def test_the_rare_word_is_taken_out(prompt, word, expected):
    assert without_word(prompt, word) == expected


def test_a_template_is_filled_at_every_place():
    assert fill("{} and {}.", "sks", "dog") == "sks dog and sks dog."


# -- datasets ---------------------------------------------------------------------------------


@pytest.fixture
def dreambooth(tmp_path):
    return save_dreambooth(tmp_path / "dreambooth")


@pytest.fixture
def concepts(tmp_path):
    folder = tmp_path / "customconcept101"
    (folder / "prompts").mkdir(parents=True)
    (folder / "benchmark_dataset").mkdir()
    save_pictures(folder / "benchmark_dataset" / "pet_cat1", 2)
    (folder / "prompts" / "cat.txt").write_text("{} on a roof.\nA drawing of a {}.\n")
    record = {
        "instance_prompt": "photo of a <new1> house cat",
        "class_prompt": "cat",
        "instance_data_dir": "./benchmark_dataset/pet_cat1",
        "class_data_dir": "./regularization/pet_cat",
        "prompt_filename": "prompts/cat.txt",
    }
    (folder / "dataset.json").write_text(json.dumps([record]))
    return folder


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_dreambooth_is_read_as_published(dreambooth, inside):
    vase, cat = read_subjects("dreambooth", dreambooth / inside)
    assert (vase.name, vase.noun, cat.name, cat.noun) == ("vase", "vase", "cat2", "cat")
    assert vase.templates == ("a {} under a lamp", "a green {}")
    assert cat.templates == ("a {} under a lamp", "a {} wearing gloves")
    assert cat.training_prompt("sks") == "a sks cat"
    assert cat.folder == dreambooth / "dataset" / "cat2"
    assert read_subjects("dreambooth", dreambooth, ["cat2"]) == [cat]


def test_customconcept101_is_read_as_published(concepts):
    (cat,) = read_subjects("customconcept101", concepts)
    assert (cat.name, cat.noun) == ("pet_cat1", "house cat")
    assert cat.training_prompt("sks") == "photo of a sks house cat"
    assert cat.templates == ("{} on a roof.", "A drawing of a {}.")


def test_the_lists_are_parsed_and_never_executed(dreambooth):
    file = dreambooth / "dataset" / "prompts_and_classes.txt"
    file.write_text(LISTS.replace("'a green {0} {1}'.format(", "print('a {0} {1}'.format("))
    with pytest.raises(InputError, match=r"line 13 of .* is not understood: \"print"):
        read_subjects("dreambooth", dreambooth)


def test_a_dataset_that_lacks_something_is_refused(dreambooth, concepts, tmp_path):
    file = dreambooth / "dataset" / "prompts_and_classes.txt"
    for text, message in [
        (LISTS.partition("Live")[0], "has nothing under 'Live Subject Prompts'"),
        (LISTS.replace("vase,vase\ncat2,cat\n", ""), "has nothing under 'Classes'"),
        (LISTS.replace("vase,vase", "vase,vase\nbowl,bowl\nteapot,teapot"),
         r"lacks the pictures of 2 of 4 subjects \(bowl, teapot\)"),
    ]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_subjects("dreambooth", dreambooth)
    with pytest.raises(InputError, match="unknown subject 'cat': did you mean 'cat2'"):
        read_subjects("dreambooth", dreambooth, ["cat"])
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*prompts_and_classes\.txt"):
        read_subjects("dreambooth", dreambooth)
    with pytest.raises(
        InputError, match="unknown benchmark 'dreamboth': did you mean 'dreambooth'"
    ):
        read_subjects("dreamboth", dreambooth)
    with pytest.raises(InputError, match="data: there is no folder"):
        read_subjects("dreambooth", tmp_path / "none")
    prompts = concepts / "prompts" / "cat.txt"
    for text, message in [("", "is empty"), ("a cat\n", "has no {} for the subject")]:
        prompts.write_text(text)
        with pytest.raises(InputError, match=message):
            read_subjects("customconcept101", concepts)
    prompts.unlink()
    with pytest.raises(InputError, match=r"cannot read .*cat\.txt"):
        read_subjects("customconcept101", concepts)
    for text, message in [("[", "is not JSON"), ("[]", "list of concepts"), ("[{}]", "must have")]:
        (concepts / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_subjects("customconcept101", concepts)


# -- bad input of evaluate --------------------------------------------------------------------


def test_pictures_of_the_class_are_not_the_subjects(backbones, tmp_path):
    save_pictures(tmp_path / "both" / "img" / "10_sks dog", 2)
    save_pictures(tmp_path / "alone", 2)
    arguments = {"prompts": "a dog", **backbones}
    alone = sopt.evaluate(picture(5), str(tmp_path / "alone"), **arguments)
    save_pictures(tmp_path / "both" / "reg" / "1_dog", 4)
    both = sopt.evaluate(picture(5), str(tmp_path / "both"), **arguments)
    assert both["references"] == 2
    assert both["dino"] == alone["dino"]


def test_pictures_and_prompts_must_match(backbones, tmp_path):
    folder = tmp_path / "drawn"
    save_pictures(folder, 2)  # 0.png, 1.png
    real = picture(1)
    for prompts, message in [
        (None, "prompts is missing"),
        ({"0": "a dog", "1": "a dog", "2": "a cat"}, "1 of the 3 pictures .* are not there: 2"),
        ({"0": "a dog"}, "no prompt for the picture '1'"),
        ({"0": "a dog", "1": " "}, "must be texts that are not empty"),
        (7, "must be texts that are not empty"),
        ("sks ", "must say more than the rare word 'sks', .* got 'sks '"),
        ({"0": "a dog", "1": "sks"}, "must say more than the rare word 'sks', .* got 'sks'"),
        ("none.json", "cannot read none.json"),
    ]:
        with pytest.raises(InputError, match=message):
            sopt.evaluate(str(folder), real, prompts=prompts, **backbones)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^references: the folder .*empty has no \.jpg"):
        sopt.evaluate(str(folder), str(tmp_path / "empty"), prompts="a dog", **backbones)
    (folder / "0.jpg").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(InputError, match=r"cannot tell 0\.jpg and 0\.png apart"):
        sopt.evaluate(str(folder), real, prompts={"0": "a dog", "1": "a dog"}, **backbones)
    (folder / "0.jpg").unlink()
    content = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"0\.png is damaged"):
        sopt.evaluate(str(folder), real, prompts="a dog", **backbones)
    with pytest.raises(InputError, match="mode F"):
        sopt.evaluate(Image.new("F", (8, 8), math.nan), real, prompts="a dog", **backbones)
    with pytest.raises(InputError, match="batch_size must be"):
        sopt.evaluate(real, real, prompts="a dog", batch_size=0, **backbones)


@pytest.mark.parametrize("images", ["run", "run/samples", ".", ["run/samples"], "link"])
def test_the_sample_from_before_a_runs_training_is_refused(
    images, tmp_path, backbones, monkeypatch
):
    samples = tmp_path / "run" / "samples"
    save_pictures(samples, 2)
    (samples / "0.png").rename(samples / "before.png")
    (tmp_path / "link").symlink_to(samples)
    monkeypatch.chdir(samples if images == "." else tmp_path)
    config = tmp_path / "run" / "config.yaml"
    config.write_text("of: another program")
    sopt.evaluate(images, picture(1), prompts="a dog", **backbones)
    settings = dict.fromkeys(("model", "images", "prompt", "output"), "x")
    config.write_text(json.dumps(settings))  # JSON is YAML
    with pytest.raises(InputError, match=r"before\.png is of a run, .* --adapter .*run`, or name "):
        sopt.evaluate(images, picture(1), **backbones)
    (samples / "before.png").unlink()  # those of a run that drew none are somebody's own
    sopt.evaluate(images, picture(1), prompts="a dog", **backbones)


def test_an_embedding_that_is_not_finite_is_refused(backbones, tmp_path):
    network = ViTModel.from_pretrained(backbones["dino"], add_pooling_layer=False)
    network.layernorm.weight.data[0] = math.nan
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="embedding of the picture image-1 is not finite"):
        sopt.evaluate(
            picture(0), picture(1), prompts="a", dino=str(tmp_path), clip=backbones["clip"]
        )


def test_the_command_prints_and_writes_the_scores(backbones, tmp_path, capsys):
    folder = tmp_path / "dog"
    folder.mkdir()
    save_pictures(folder / "samples", 2)
    (folder / "prompts.json").write_text(json.dumps({"0": "a sks dog", "1": "a sks dog"}))
    arguments = ["evaluate", "--images", folder, "--references", folder / "samples"]
    names = itertools.chain(*((f"--{name}", value) for name, value in backbones.items()))
    arguments += [*names, "--json", tmp_path / "scores.json"]
    assert cli.main(list(map(str, arguments))) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    printed = capsys.readouterr().out
    assert f"clip_t      {scores['clip_t']:.4f}" in printed
    assert backbones["dino"] in printed
    assert "of          images 2, references 2, prompts 1\n" in printed
    # Two pictures against themselves: two pairs of cosine 1, and twice the pair that is apart.
    assert scores["dino"] == pytest.approx(1 - scores["diversity"] / 2, abs=1e-6)
    (folder / "prompts.json").write_text(json.dumps({"0": "a sks dog", "1": "a red sks dog"}))
    assert cli.main(list(map(str, arguments[:-2]))) == 0
    assert "diversity   - (needs two pictures of a prompt)\n" in capsys.readouterr().out
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err.startswith("sopt: images is missing")
