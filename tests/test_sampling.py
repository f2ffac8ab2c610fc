"""The pictures of ``generate`` are those of stock diffusers, and nothing else changes."""

import math
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from pipelines import PROMPT, micro_pipeline

from sopt.errors import InputError
from sopt.export import DIFFUSERS_FILE, save_diffusers_lora, save_kohya_lora
from sopt.files import load_tensors, save_tensors
from sopt.sampling import GRID_GAP, LABEL_HEIGHT, generate, picture_grid
from sopt_kernels import noise, stream_id

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK, ALPHA = 2, 3.0
STEPS = 3
RUN = "model: {}\nimages: photos\nprompt: a sks dog\noutput: run\n"  # the settings of a run


@pytest.fixture(scope="module")
def model(micro_folder):
    return micro_folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder with both adapter files, of random A and B."""
    folder = tmp_path_factory.mktemp("run")
    adapter = {}
    for path, module in micro_pipeline().unet.named_modules():
        if path.endswith(TARGETS):
            out_features, in_features = module.weight.shape
            for part, shape in [("A", (RANK, in_features)), ("B", (out_features, RANK))]:
                name = f"unet.{path}.lora_{part}.weight"
                adapter[name] = noise(shape, 1, stream_id(name))
    save_diffusers_lora(folder / DIFFUSERS_FILE, adapter, RANK, ALPHA, TARGETS)
    save_kohya_lora(
        folder / "run_kohya.safetensors", adapter, RANK, ALPHA, prompt=PROMPT, resolution=32,
        prediction_type="epsilon", family="sd15",
    )  # fmt: skip
    return folder


def difference(one, other):
    return abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()


def stock_picture(model, lora=None, seed=0, scale=1.0, **options):
    """What a user of diffusers alone would write."""
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="dog")
        pipeline.set_adapters("dog", scale)
    generator = torch.Generator("cpu").manual_seed(seed)
    options = {"guidance_scale": 7.5, "num_inference_steps": STEPS} | options
    return pipeline(PROMPT, generator=generator, **options).images[0]


@pytest.mark.parametrize("name", [None, DIFFUSERS_FILE, "run_kohya.safetensors"])
def test_a_picture_is_that_of_stock_diffusers(model, run_folder, name):
    lora = None if name is None else run_folder / name
    picture = generate(model, lora, prompt=PROMPT, seed=5, steps=STEPS)[0]
    assert picture.size == (32, 32)
    assert difference(picture, stock_picture(model, lora, seed=5)) == 0


def test_the_bundled_models_guidance_is_lower():
    (drawn,), (low,), (usual,) = (
        generate("tiny", prompt=PROMPT, steps=STEPS, **settings)
        for settings in ({}, {"guidance": 2.0}, {"guidance": 7.5})
    )
    assert difference(drawn, low) == 0
    assert difference(drawn, usual) > 0


def test_every_setting_reaches_the_pipeline(model, run_folder):
    picture = generate(
        model, run_folder, prompt=PROMPT, seed=9, steps=STEPS, guidance=3.0,
        negative_prompt="a cat", adapter_scale=0.5, resolution=40,
    )[0]  # fmt: skip
    stock = stock_picture(
        model, run_folder / DIFFUSERS_FILE, seed=9, scale=0.5, guidance_scale=3.0,
        negative_prompt="a cat", height=40, width=40,
    )  # fmt: skip
    assert picture.size == (40, 40)
    assert difference(picture, stock) == 0


def test_the_adapter_changes_the_picture_and_a_scale_of_zero_does_not(model, run_folder):
    plain = generate(model, prompt=PROMPT, steps=STEPS)[0]
    adapted = generate(model, run_folder, prompt=PROMPT, steps=STEPS)[0]
    unscaled = generate(model, run_folder, prompt=PROMPT, steps=STEPS, adapter_scale=0.0)[0]
    assert difference(plain, adapted) > 20
    assert difference(plain, unscaled) == 0


def test_both_files_of_a_run_give_the_same_picture(model, run_folder):
    folder = generate(model, run_folder, prompt=PROMPT, steps=STEPS)[0]
    kohya = generate(model, run_folder / "run_kohya.safetensors", prompt=PROMPT, steps=STEPS)[0]
    result = SimpleNamespace(adapter=run_folder / DIFFUSERS_FILE)  # as train() returns it
    assert difference(folder, kohya) == 0
    assert difference(folder, generate(model, result, prompt=PROMPT, steps=STEPS)[0]) == 0


def test_picture_i_has_the_seed_plus_i(model):
    pictures = generate(model, prompt=PROMPT, seed=7, steps=STEPS, num_images=3)
    assert len(pictures) == 3
    assert difference(pictures[0], pictures[1]) > 0
    again = generate(model, prompt=PROMPT, seed=9, steps=STEPS)[0]
    assert difference(pictures[2], again) == 0


def test_several_prompts_are_drawn_as_each_alone_would_be(model, run_folder):
    prompts = [PROMPT, "a red car", PROMPT]
    settings = {"steps": STEPS, "num_images": 2, "batch_size": 2, "guidance": 3.0}
    together = generate(model, run_folder, prompt=prompts, seed=4, **settings)
    alone = []
    for number, prompt in enumerate(prompts):
        alone += generate(model, run_folder, prompt=prompt, seed=4 + 1000 * number, **settings)
    assert [difference(a, b) for a, b in zip(together, alone, strict=True)] == [0] * 6
    assert difference(together[0], together[4]) > 0
    # Batches that reach from one prompt into the next, without the adapter of a run at a high rate,
    # which amplifies the other order of sums to some levels, also of a single prompt's pictures.
    pairs, mixed = (
        generate(model, prompt=prompts, seed=4, **settings | {"batch_size": size})
        for size in (2, 3)
    )
    apart = min(difference(pairs[0], other) for other in pairs[1:])
    for one, other in zip(pairs, mixed, strict=True):
        assert difference(one, other) < apart / 20


def test_pictures_drawn_together_are_those_drawn_alone(model, run_folder):
    alone = generate(model, run_folder, prompt=PROMPT, seed=3, steps=STEPS, num_images=3)
    together = generate(
        model, run_folder, prompt=PROMPT, seed=3, steps=STEPS, num_images=3, batch_size=2
    )
    # Sums run in another order, and this random network amplifies it: 2 levels were seen. Pictures
    # of different seeds lie more than a hundred apart.
    apart = difference(alone[0], alone[1])
    assert apart > 100
    for one, other in zip(alone, together, strict=True):
        print(difference(one, other), apart)


def test_global_generators_are_neither_read_nor_advanced(model, run_folder):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    torch.manual_seed(1)
    before = states()
    first = generate(model, run_folder, prompt=PROMPT, steps=STEPS)[0]
    assert states() == before
    torch.manual_seed(2)
    assert difference(first, generate(model, run_folder, prompt=PROMPT, steps=STEPS)[0]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loaded_pipeline_is_left_as_it_is(run_folder, dtype):
    pipeline = micro_pipeline()
    pipeline.unet.to(dtype)
    weights = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    generate(pipeline, run_folder, prompt=PROMPT, steps=STEPS)
    after = pipeline.unet.state_dict()
    assert after.keys() == weights.keys()  # no LoRA layer is left
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert pipeline.unet.dtype == dtype


def test_an_adapter_of_another_model_is_refused_in_one_sentence(model, tmp_path):
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = {
        f"unet.{path}.lora.down.weight": torch.ones(2, 320),
        f"unet.{path}.lora.up.weight": torch.ones(320, 2),
    }
    deep = {name.replace("down_blocks.0", "down_blocks.3"): each for name, each in wide.items()}
    for tensors, message in [
        (wide, r"of another model: .*attn1_to_q is \(320, 320\) there, .* \(8, 8\)"),
        (deep, r"of another model: .*down_blocks_3.* does not exist"),
        ({"weight": torch.ones(2)}, "has no LoRA of a U-Net"),
    ]:
        save_tensors(tmp_path / "other.safetensors", tensors, {})
        with pytest.raises(InputError, match=message) as caught:
            generate(model, tmp_path / "other.safetensors", prompt=PROMPT)
        assert "\n" not in str(caught.value)


def test_the_model_is_that_of_the_adapters_run_if_not_given(model, tmp_path, run_folder):
    run = shutil.copytree(run_folder, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(RUN.format(model))
    options = {"prompt": PROMPT, "steps": STEPS, "resolution": 64}
    expected = np.asarray(generate(model, run, **options)[0])
    result = SimpleNamespace(adapter=run / DIFFUSERS_FILE, config=SimpleNamespace(model=model))
    for adapter in (run, run / DIFFUSERS_FILE, result):
        assert np.array_equal(generate(adapter=adapter, **options)[0], expected)
    config.write_text(RUN.format("a StableDiffusionPipeline given as an object"))
    with pytest.raises(InputError, match=r"model is missing: the run in .* had a StableDiff"):
        generate(adapter=run, **options)
    config.write_text(RUN.format("[1]"))
    with pytest.raises(InputError, match=r"model is missing: the run in .* had \[1\]"):
        generate(adapter=run, **options)


def test_a_config_yaml_of_another_program_says_nothing_of_the_model(tmp_path, run_folder):
    file = shutil.copy(run_folder / DIFFUSERS_FILE, tmp_path)
    for text in ("model: {name_or_path: foo}\n", "model: foo\n"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(InputError, match="of another model: "):  # than tiny, of no known one
            generate(adapter=file, prompt=PROMPT)


def test_an_adapter_of_a_run_of_another_model_names_it(tmp_path, run_folder):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "config.yaml").write_text(RUN.format("sd15.safetensors"))
    with pytest.raises(InputError, match=r"another model, of a run of model='sd15\.safetensors'"):
        generate("tiny", run, prompt=PROMPT)


def test_a_bad_adapter_file_is_refused(model, tmp_path, run_folder):
    whole = (run_folder / DIFFUSERS_FILE).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    for adapter, message in [
        (tmp_path / "none.safetensors", "there is no file or folder"),
        (tmp_path, f"has no {DIFFUSERS_FILE}"),
        (tmp_path / "cut.safetensors", r"cut\.safetensors is damaged"),
    ]:
        with pytest.raises(InputError, match=message):
            generate(model, adapter, prompt=PROMPT)
    (tmp_path / "config.yaml").write_text(RUN.format("tiny"))
    with pytest.raises(InputError, match=f"has no {DIFFUSERS_FILE}: if its run was stopped"):
        generate(model, tmp_path, prompt=PROMPT)


def test_damaged_settings_of_a_run_are_told(tmp_path, run_folder):
    """Without them the model would be the bundled one."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    for text, message in [("", "must be a mapping"), ("model: [", "is not a YAML file")]:
        (run / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=rf"config\.yaml {message}"):
            generate(adapter=run, prompt=PROMPT)


def test_pictures_that_are_not_finite_are_refused(model, tmp_path, run_folder):
    tensors, metadata = load_tensors(run_folder / DIFFUSERS_FILE)
    damaged = {name: torch.full_like(tensor, math.nan) for name, tensor in tensors.items()}
    save_tensors(tmp_path / "nan.safetensors", damaged, metadata)
    with pytest.raises(
        InputError, match="the pictures of 'a sks dog' have values that are not fin"
    ):
        generate(model, tmp_path / "nan.safetensors", prompt=PROMPT, steps=STEPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": None}, "prompt must be a text"),
        ({"prompt": []}, "prompt must be a text, or several, got none"),
        ({"prompt": ["a dog", 1]}, "prompt must be a text, got 1"),
        ({"prompt": ["a", "b"], "num_images": 1001}, "num_images must be at most 1000 with sev"),
        ({"prompt": ["a", "b"], "seed": 2**64 - 1000}, "seed must be .* the 1001 counted"),
        ({"steps": 0}, "steps must be .* at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"num_images": -1}, "num_images must be .* at least 1, got -1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64 - 1, "num_images": 2}, "seed must be"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"adapter_scale": "1"}, "adapter_scale must be a finite number"),
        ({"device": "gpu"}, "device must be one of cpu.* on this machine, got 'gpu'"),
        ({"device": "cuda:99"}, "device must be one of cpu.* on this machine, got 'cuda:99'"),
    ],
)
def test_a_bad_setting_is_reported_before_the_model_is_opened(settings, message):
    with pytest.raises(InputError, match=message):
        generate("no/such/model", **({"prompt": PROMPT} | settings))


@pytest.mark.parametrize("resolution", [0, -32, 30, 2])
def test_a_resolution_that_the_vae_cannot_make_is_refused(model, resolution):
    with pytest.raises(InputError, match=f"multiple of 8 .*, got {resolution}"):
        generate(model, prompt=PROMPT, resolution=resolution)


def test_the_largest_seed_draws(model):
    assert len(generate(model, prompt=PROMPT, seed=2**64 - 1, steps=1)) == 1


def test_a_grid_shows_every_picture_under_its_label():
    colours = [["red", "green"], ["blue"]]
    rows = [[Image.new("RGB", (16, 24), colour) for colour in row] for row in colours]
    grid = np.asarray(picture_grid(rows, ["before", "after"]))
    cell = 24 + LABEL_HEIGHT + GRID_GAP
    assert grid.shape == (GRID_GAP + 2 * cell, GRID_GAP + 2 * (16 + GRID_GAP), 3)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = GRID_GAP + number * cell + LABEL_HEIGHT, GRID_GAP + column * (16 + GRID_GAP)
            np.testing.assert_array_equal(grid[top : top + 24, left : left + 16], picture)
    assert (grid[GRID_GAP : GRID_GAP + LABEL_HEIGHT] < 128).any()  # the label
    assert picture_grid(rows).size[1] == 2 * (24 + GRID_GAP) + GRID_GAP


@pytest.mark.parametrize(("rows", "labels"), [([], None), ([[]], None), ([["x"]], ["a", "b"])])
def test_a_grid_of_nothing_is_refused(rows, labels):
    with pytest.raises(InputError, match="picture_grid needs"):
        picture_grid(rows, labels)
