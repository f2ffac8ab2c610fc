"""Random models: the published architectures exactly, at a sane scale, the same bits each time."""

from __future__ import annotations

import pytest
import torch
from pipelines import FAMILY_RESOLUTION, family_pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sopt import InputError
from sopt.memory import LiveStorage
from sopt.models import LORA_TARGETS, open_model
from sopt.models.kinds import build_on_meta
from sopt.models.random import FAMILIES, draw_weights, open_random
from sopt.models.random_tokenizer import build_tokenizer
from sopt_kernels import noise

# As published: sopt/configs/README.md.
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 123_060_480, 340_387_840, 694_659_840
VAE = 83_653_863
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "sd21-base": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    "sd21": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": OPEN_CLIP_G,
    },
    "ssd1b": {
        "unet": 1_331_334_404,
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": OPEN_CLIP_G,
    },
}
COMPONENTS = [(family, name) for family in FAMILIES for name in PARAMETERS[family]]
END = 49407
TOKENIZERS = {  # and the id of the padding token
    ("sd15", "tokenizer"): END,
    ("sd21-base", "tokenizer"): 0,
    ("sd21", "tokenizer"): 0,
    ("sdxl", "tokenizer"): END,
    ("sdxl", "tokenizer_2"): 0,
    ("ssd1b", "tokenizer"): END,
    ("ssd1b", "tokenizer_2"): 0,
}


def shapes(family, component):
    """The network on the meta device."""
    model = open_random(family)
    return build_on_meta(model.kind, component, model.configs[component])


def small_text_encoder(seed, dtype=torch.float32):
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    with torch.device("meta"):
        network = CLIPTextModel(config)
    return draw_weights(network, "text_encoder", dtype, seed)


def same(module, other):
    weights, others = module.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


@pytest.mark.parametrize("family, component", COMPONENTS)
def test_a_component_has_the_published_size_and_configuration(family, component):
    network = shapes(family, component)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[family][component]
    built = network.config if component in ("unet", "vae") else network.config.to_dict()
    published = open_random(family).configs[component]
    assert dict(built) | published == dict(built)


@pytest.mark.parametrize(
    "family, per_rank", [("sd15", 199_296), ("sd21-base", 207_488), ("sd21", 207_488)]
)
def test_a_lora_has_the_published_size(family, per_rank):
    modules = shapes(family, "unet").named_modules()
    targets = [m for name, m in modules if name.endswith(LORA_TARGETS)]
    assert len(targets) == 128  # 16 transformer blocks, 2 attentions, 4 projections
    assert sum(m.in_features + m.out_features for m in targets) == per_rank


def test_a_model_is_never_in_memory_twice():
    model = open_model("random:sd15")
    with LiveStorage() as live:
        before = live.bytes
        module = model.load("vae", torch.bfloat16)
        peak = live.peak - before
    assert 2 * VAE <= peak <= 2 * VAE + 64  # bytes: a seed and a coefficient besides
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_the_seed_decides_every_bit():
    generator = torch.random.get_rng_state()
    module = small_text_encoder(seed=1)
    assert same(module, small_text_encoder(seed=1))
    assert not same(module, small_text_encoder(seed=2))
    assert same(module.to(torch.bfloat16), small_text_encoder(seed=1, dtype=torch.bfloat16))
    assert torch.equal(generator, torch.random.get_rng_state())


def test_weights_are_drawn_at_the_documented_scale():
    module = small_text_encoder(seed=3)
    for path, part in module.named_modules():
        for key, weight in part.named_parameters(recurse=False):
            if isinstance(part, nn.LayerNorm) or key == "bias":
                assert torch.equal(weight, torch.full_like(weight, key == "weight"))
                continue
            if isinstance(part, nn.Embedding):
                std = 0.02
            elif path.endswith(("out_proj", "fc2")):
                std = 0.5 * part.in_features**-0.5
            else:
                std = part.in_features**-0.5
            # A sample's standard deviation has the relative one (2 n)^-1/2: six times that.
            assert weight.std().item() == pytest.approx(std, rel=6 * (2 * weight.numel()) ** -0.5)
    key = "encoder.layers.1.self_attn.q_proj.weight"
    drawn = noise((64, 64), 3, f"text_encoder.{key}")
    assert torch.equal(module.state_dict()[key], drawn * 64**-0.5)


def test_position_ids_count_up():
    ids = small_text_encoder(seed=0).embeddings.position_ids
    assert torch.equal(ids, torch.arange(77)[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "ssd1b"])
def test_activations_are_of_order_one(family, dtype):
    pipeline = family_pipeline(family, dtype)
    deviations = {}

    def record(name):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                deviations[name] = first.float().std().item()

        return hook

    unet = pipeline.unet
    for name, part in unet.named_modules():
        part.register_forward_hook(record(name))
    side = FAMILY_RESOLUTION // 8
    latents = noise((1, 4, side, side), 0, "latents").to(dtype)
    with torch.no_grad():
        text, _, pooled, _ = (
            pipeline.encode_prompt("a sks dog", do_classifier_free_guidance=False)
            if "text_encoder_2" in pipeline.components
            else (*pipeline.encode_prompt("a sks dog", "cpu", 1, False), None, None)
        )
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]], dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        prediction = unet(latents, 500, text, added_cond_kwargs=added, return_dict=False)[0]
        pictures = pipeline.vae.decode(latents, return_dict=False)[0]
    # At full size: 0.1 to 5. Outputs of time embeddings are the smallest.
    assert len(deviations) > 300
    assert min(deviations.values()) > 0.05
    assert max(deviations.values()) < 5
    assert 0.2 < prediction.float().std() < 2
    assert 0.2 < pictures.float().std() < 2


@pytest.mark.parametrize("family, component", TOKENIZERS)
def test_a_tokenizer_has_the_published_size_and_special_tokens(family, component):
    tokenizer = build_tokenizer(family, component)
    assert len(tokenizer) == len(tokenizer.get_vocab()) == 49408
    assert sorted(tokenizer.get_vocab().values()) == list(range(49408))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, END)
    assert tokenizer.unk_token_id == END
    pad = TOKENIZERS[family, component]
    ids = tokenizer("a dog", padding="max_length", truncation=True).input_ids
    assert ids[0] == 49406
    assert ids[3:] == [END] + [pad] * 73  # 77 in all, whichever the padding
    long = tokenizer("dog " * 100, truncation=True).input_ids
    assert len(long) == 77
    assert long[-1] == END


def test_common_words_are_single_tokens_and_others_a_few():
    tokenizer = build_tokenizer("sd15")
    assert tokenizer.tokenize("A photo of a sks dog on the beach") == [
        *("a</w>", "photo</w>", "of</w>", "a</w>", "sks</w>", "dog</w>"),
        *("on</w>", "the</w>", "beach</w>"),
    ]
    assert len(tokenizer.tokenize("quixotic")) <= 4
    text = "naïve 日本 😀"  # by bytes
    ids = tokenizer(text).input_ids
    assert END not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_tokenizer_is_the_same_each_time_and_from_files(tmp_path):
    tokenizer = build_tokenizer("sdxl", "tokenizer_2")
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a watercolor painting of fifty zebras, 4k"
    ids = tokenizer(text, padding="max_length").input_ids
    assert loaded(text, padding="max_length").input_ids == ids
    known = [49406, 320, 876, 916, 320, 784, 1031, END]
    assert tokenizer("a photo of a sks dog").input_ids == known


def test_an_unknown_family_is_refused():
    with pytest.raises(InputError, match=r"unknown random model 'sdx-l'.*'sdxl'"):
        open_model("random:sdx-l")
