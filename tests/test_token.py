"""A new word's embeddings: in the text encoders, their gradients, several at once, in files."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from pipelines import FAMILY_RESOLUTION, RESOLUTION, save_family_pipeline

from sopt import InputError
from sopt.config import TrainConfig
from sopt.data import Picture
from sopt.files import load_tensors, save_tensors
from sopt.models import open_model
from sopt.models.added_tokens import AddedRows, add_tokens, token_names
from sopt.sampling import generate
from sopt.steps.loss import Sample, diffusion_loss, diffusion_losses
from sopt.token.files import load_token, save_token, token_file_names
from sopt.token.text import TokenText
from sopt.token.words import check_captions, learn_word
from sopt_kernels import noise

TOKEN = "<x>"
CAPTION = f"a {TOKEN} a"
FLOAT32 = 2.0**-24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(micro_folder, tmp_path_factory):
    """A model of each structure: one text encoder, and two."""
    sdxl = tmp_path_factory.mktemp("models") / "sdxl"
    return {"micro": micro_folder, "sdxl": save_family_pipeline(sdxl, "sdxl")}


def settings(**changes):
    needed = {"images": "-", "prompt": CAPTION, "output": "-", "train": "token"}
    return TrainConfig.create(
        **needed | {"token": TOKEN, "initializer": "a", "method": "zeroth-order"} | changes
    )


def text_of(model, num_vectors=1, dtype=torch.float32):
    words = learn_word(settings(num_vectors=num_vectors), model)
    return TokenText(model, TOKEN, num_vectors, words, dtype, CPU)


def randomize(text):
    with torch.no_grad():
        for name, row in text.rows.items():
            row.copy_(0.3 * noise(tuple(row.shape), 3, name))


def sample_of(model, prompt, side):
    latents = (1, 4, side // model.vae_factor, side // model.vae_factor)
    added = None
    if prompt.pooled is not None:
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
        added = {"text_embeds": prompt.pooled, "time_ids": sizes}
    return Sample(noise(latents, 1, "x"), noise(latents, 2, "e"), 700, prompt.tokens, added=added)


SIDES = {"micro": RESOLUTION, "sdxl": FAMILY_RESOLUTION}


def stock(folder, family):
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_rows_start_as_the_initializer_and_the_table_is_not_copied(folders):
    model = open_model(folders["sdxl"])
    text = text_of(model, num_vectors=3, dtype=torch.bfloat16)
    assert list(text.rows) == ["text_encoder.token.<x>", "text_encoder_2.token.<x>"]
    for encoder, row in zip(text.encoders.values(), text.rows.values(), strict=True):
        embedding = encoder.get_input_embeddings()
        assert isinstance(embedding, AddedRows)
        index = model.tokenizer().convert_tokens_to_ids(model.tokenizer().tokenize("a"))[0]
        assert row.dtype == torch.float32
        assert row.requires_grad
        assert torch.equal(row, embedding.table.weight[index].float().expand(3, -1))
        shapes = {tuple(p.shape) for p in encoder.parameters()}
        vocabulary, width = embedding.table.weight.shape
        assert (vocabulary + 3, width) not in shapes
        trained = [p for p in encoder.parameters() if p.requires_grad]
        assert len(trained) == 1
        assert trained[0] is row


@pytest.mark.parametrize("family", ["micro", "sdxl"])
@pytest.mark.parametrize("num_vectors", [1, 2])
def test_gradients_are_those_of_the_full_table(folders, family, num_vectors):
    model = open_model(folders[family])
    unet, scheduler = model.load("unet"), model.noise_scheduler()
    text = text_of(model, num_vectors)
    randomize(text)
    sample = sample_of(model, text.encode(CAPTION), SIDES[family])
    loss = diffusion_loss(unet, scheduler, sample)
    loss.backward()

    pipeline = stock(folders[family], family)
    names = ["", "_2"][: len(text.rows)]
    tables = []
    for suffix, row in zip(names, text.rows.values(), strict=True):
        encoder, tokenizer = (
            getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
        )  # fmt: skip
        pipeline.load_textual_inversion(
            {TOKEN: row.detach()}, token=TOKEN, text_encoder=encoder, tokenizer=tokenizer
        )
        tables.append(encoder.get_input_embeddings().weight.requires_grad_())
    encoded = pipeline.encode_prompt(
        prompt=CAPTION, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    pooled = encoded[2] if family == "sdxl" else None
    reference = replace(sample, prompt=encoded[0])
    if pooled is not None:
        reference = replace(reference, added=sample.added | {"text_embeds": pooled})
    expected = diffusion_loss(pipeline.unet, scheduler, reference)
    assert loss.item() == expected.item()
    expected.backward()
    for row, table in zip(text.rows.values(), tables, strict=True):
        gradient = table.grad[-num_vectors:]
        assert gradient.abs().max() > 0
        # The same operations in the same order.
        assert torch.equal(row.grad, gradient)


@pytest.mark.parametrize("family", ["micro", "sdxl"])
def test_candidates_at_once_are_those_one_by_one(folders, family):
    model = open_model(folders[family])
    scheduler, count = model.noise_scheduler(), 5

    def losses(dtype, chunks):
        text, unet = text_of(model, 2, dtype), model.load("unet", dtype)
        candidates = {
            name: 0.3 * noise((count, *row.shape), 4, name) for name, row in text.rows.items()
        }
        found = []
        with torch.no_grad():
            for chunk in chunks:
                part = {name: x[chunk] for name, x in candidates.items()}
                sample = sample_of(model, text.encode(CAPTION, part), SIDES[family])
                if dtype == torch.float64:
                    sample = replace(
                        sample,
                        latents=sample.latents.double(),
                        noise=sample.noise.double(),
                        added=sample.added
                        and {name: value.double() for name, value in sample.added.items()},
                    )
                found.append(diffusion_losses(unet, scheduler, sample))
        return torch.cat(found).double()

    each = [slice(i, i + 1) for i in range(count)]
    truth = losses(torch.float64, each)
    alone, together = losses(torch.float32, each), losses(torch.float32, [slice(None)])
    assert truth.unique().numel() == count
    spread = (truth.max() - truth.min()).item()
    # The prediction of the float64 model is rounded to float32 as well, and so is the loss: two
    # roundings; beyond that a batch may be off as single forwards are.
    bound = 2 * (alone - truth).abs().max() + 4 * FLOAT32 * truth.max()
    assert (together - truth).abs().max() <= bound < 0.01 * spread


def test_a_candidate_stands_for_the_rows(folders):
    text = text_of(open_model(folders["micro"]), 2)
    candidates = {name: noise((3, *row.shape), 4, name) for name, row in text.rows.items()}
    with torch.no_grad():
        for i in range(3):
            (alone,) = [x[i : i + 1] for x in candidates.values()]
            found = text.encode(CAPTION, dict.fromkeys(text.rows, alone)).tokens
            (row,) = text.rows.values()
            row.copy_(alone[0])
            assert torch.equal(found, text.encode(CAPTION).tokens)


def test_the_loss_of_one_candidate_is_the_loss(folders):
    model = open_model(folders["sdxl"])
    text, unet = text_of(model), model.load("unet")
    randomize(text)
    scheduler = model.noise_scheduler()
    with torch.no_grad():
        sample = sample_of(model, text.encode(CAPTION), SIDES["sdxl"])
        for min_snr in (None, 0.01):
            (one,) = diffusion_losses(unet, scheduler, sample, min_snr=min_snr)
            expected = diffusion_loss(unet, scheduler, sample, min_snr=min_snr)
            # Means of as many squares, added in another order: at most one rounding per square.
            assert abs(one - expected) <= sample.latents.numel() * FLOAT32 * expected


def test_a_failure_within_an_encoder_leaves_no_candidates_behind(folders, monkeypatch):
    text = text_of(open_model(folders["micro"]))
    before = text.encode(CAPTION).tokens
    candidates = {name: torch.zeros(2, *row.shape) for name, row in text.rows.items()}
    with monkeypatch.context() as patch:
        patch.setattr("sopt.token.text.run_encoder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            text.encode(CAPTION, candidates)
    assert torch.equal(text.encode(CAPTION).tokens, before)


@pytest.mark.parametrize("family", ["micro", "sdxl"])
@pytest.mark.parametrize("num_vectors", [1, 3])
def test_stock_diffusers_loads_the_files_and_draws_our_pictures(
    folders, family, num_vectors, tmp_path
):
    model = open_model(folders[family])
    text = text_of(model, num_vectors)
    randomize(text)
    rows = dict(zip(text.encoders, text.rows.values(), strict=True))
    save_token(tmp_path, TOKEN, rows)
    main, *others = token_file_names(TOKEN, len(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([main, *others])
    pipeline = stock(folders[family], family)
    files = others or [main]
    for suffix, file in zip(["", "_2"], files, strict=False):
        pipeline.load_textual_inversion(
            tmp_path / file,
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
        )
    generator = torch.Generator("cpu").manual_seed(0)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0}
    side = SIDES[family]
    picture = pipeline(CAPTION, generator=generator, height=side, width=side, **options).images[0]
    (ours,) = generate(
        folders[family], tmp_path / main, prompt=CAPTION, steps=2, guidance=5.0, resolution=side
    )
    assert ours.tobytes() == picture.tobytes()
    (without,) = generate(folders[family], prompt="a a a", steps=2, guidance=5.0, resolution=side)
    assert without.tobytes() != ours.tobytes()
    tensors, metadata = load_tensors(tmp_path / main)
    assert metadata == {"format": "pt"}
    expected = {"clip_l", "clip_g"} if family == "sdxl" else {TOKEN}
    assert tensors.keys() == expected
    loaded = load_token(tmp_path / main)
    assert loaded.token == TOKEN
    assert all(torch.equal(loaded.rows[name], row) for name, row in rows.items())


def test_files_of_other_programs_are_read(tmp_path):
    for keys, token in [
        (["emb_params"], "dog"),
        (["emp_params"], "dog"),
        (["clip_l", "clip_g"], "dog"),
        (["<d>"], "<d>"),
    ]:
        save_tensors(tmp_path / "dog.safetensors", {k: torch.ones(2, 8) for k in keys}, {})
        loaded = load_token(tmp_path / "dog.safetensors")
        assert loaded.token == token
        assert len(loaded.rows) == len(keys)
    save_tensors(tmp_path / "l.safetensors", {"a.lora_A": torch.ones(1), "b": torch.ones(1)}, {})
    assert load_token(tmp_path / "l.safetensors") is None
    unequal = {"clip_l": torch.ones(1, 8), "clip_g": torch.ones(2, 8)}
    save_tensors(tmp_path / "u.safetensors", unequal, {})
    with pytest.raises(InputError, match="as many vectors"):
        load_token(tmp_path / "u.safetensors")


def test_a_token_of_another_model_is_refused_before_anything_is_loaded(folders, tmp_path):
    save_tensors(tmp_path / "w.safetensors", {"<w>": torch.ones(1, 768)}, {})
    with pytest.raises(InputError, match=r"of another model: .*768.*16"):
        generate(folders["micro"], tmp_path / "w.safetensors", prompt="a <w>")
    save_tensors(tmp_path / "w.safetensors", {"<w>": torch.ones(1, 16)}, {})
    with pytest.raises(InputError, match=r"adapter_scale=0\.5 does not go with a token"):
        generate(folders["micro"], tmp_path / "w.safetensors", prompt="a", adapter_scale=0.5)
    save_tensors(tmp_path / "w.safetensors", {"a</w>": torch.ones(1, 16)}, {})
    with pytest.raises(InputError, match="knows 'a</w>' already"):
        generate(folders["micro"], tmp_path / "w.safetensors", prompt="a")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"token": "a", "initializer": "b"}, "the tokenizer knows 'a' already"),
        ({"token": "!", "initializer": "b"}, "the tokenizer knows '!' already"),
        ({"initializer": "catdog"}, "initializer='catdog' must be one token"),
    ],
)
def test_words_that_will_not_do(folders, changes, message):
    with pytest.raises(InputError, match=message):
        learn_word(settings(**changes), open_model(folders["micro"]))


def test_a_second_vector_may_not_be_known_either(folders):
    tokenizer = open_model(folders["micro"]).tokenizer()
    known, first = add_tokens(tokenizer, "<y>_1", 1)
    assert first == len(tokenizer)
    with pytest.raises(InputError, match="knows '<y>_1' already"):
        add_tokens(known, "<y>", 2)
    assert token_names("<y>", 2) == ["<y>", "<y>_1"]
    assert "<y>_1" not in tokenizer.get_vocab()  # the model's own stays as it is


def test_captions_must_have_the_word_before_the_cut(folders):
    model = open_model(folders["micro"])
    config = settings()
    words = learn_word(config, model)
    picture = Picture("one", None, CAPTION)
    check_captions(config, words, [picture])
    for caption in ("a dog", "a " * 100 + TOKEN):
        with pytest.raises(InputError, match="the caption of one must have the token '<x>' within"):
            check_captions(config, words, [replace(picture, caption=caption)])
    with pytest.raises(InputError, match="prior preservation"):
        check_captions(config, words, [replace(picture, regularization=True)])
