"""The backbones of the evaluation: what they see, and what is said of those that will not do."""

import shutil

import pytest
import torch
from transformers import CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from sopt import InputError
from sopt.models.backbones import ClipBackbone, DinoBackbone

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "own", "seen"),
    [(ViTConfig, 48, 48), (ViTConfig, 256, 256), (Dinov2Config, 42, 42), (Dinov2Config, 518, 224)],
)
def test_a_backbone_sees_pictures_of_a_side_it_takes(kind, own, seen, tmp_path):
    """DINOv2 interpolates its positions, and is evaluated at 224; other ViTs have one side."""
    config = kind(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=own, patch_size=14 if kind is Dinov2Config else 16,
    )  # fmt: skip
    network = Dinov2Model(config) if kind is Dinov2Config else ViTModel(config)
    network.save_pretrained(tmp_path)
    backbone = DinoBackbone(str(tmp_path), CPU)
    assert backbone.side == seen
    assert backbone.embed(torch.rand(2, 3, seen, seen)).shape == (2, 16)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_backbone_that_is_not_there_says_how_to_get_it(offline, monkeypatch):
    def asked(name):  # takes half a minute where the hub does not answer
        raise AssertionError(name)

    monkeypatch.setattr("sopt.models.backbones.AutoConfig.from_pretrained", asked)
    with pytest.raises(
        InputError, match=r"'nobody/none': there is no such folder.*`hf download nobody/none`"
    ) as caught:
        DinoBackbone("nobody/none", CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match=r"clip '\./no/folder': there is no such folder, .* hub id"
    ):
        ClipBackbone("./no/folder", CPU)


def test_a_backbone_of_another_kind_or_format_is_refused(backbones, tmp_path):
    with pytest.raises(InputError, match=r"dino .* must be a model of type vit .*, got clip"):
        DinoBackbone(backbones["clip"], CPU)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="has no safetensors weights that can be read"):
        ClipBackbone(str(tmp_path), CPU)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(InputError, match=r"weights in pytorch_model\.bin alone, .*AutoTokenizer"):
        ClipBackbone(str(tmp_path), CPU)


def test_a_backbone_in_the_hubs_cache_without_safetensors_is_told_from_none(
    offline, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--clip" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "pytorch_model.bin"):
        (snapshot / name).write_text('{"model_type": "clip"}')
    refs = tmp_path / "models--some--clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    with pytest.raises(
        InputError, match=r"'some/clip' has its weights in pytorch_model\.bin alone"
    ):
        ClipBackbone("some/clip", CPU)


def test_a_backbone_without_some_weights_is_refused(backbones, tmp_path):
    network = ViTModel.from_pretrained(backbones["dino"], add_pooling_layer=False)
    state = {name: x for name, x in network.state_dict().items() if "layernorm.weight" not in name}
    network.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match=r"lacks weights: layernorm\.weight, of 1"):
        DinoBackbone(str(tmp_path), CPU)


def test_a_backbone_whose_file_is_cut_off_is_refused(backbones, tmp_path):
    folder = shutil.copytree(backbones["dino"], tmp_path / "cut")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut': its weights are damaged, or not a safetensors"):
        DinoBackbone(str(folder), CPU)


def test_a_clip_without_its_tokenizer_is_refused(backbones, tmp_path):
    """transformers makes one up, to which all texts are the same."""
    network = CLIPModel.from_pretrained(backbones["clip"])
    network.save_pretrained(tmp_path)
    tokenizer = ClipBackbone(backbones["clip"], CPU).tokenizer
    known = len(tokenizer)
    message = f"of {known} tokens, and has one of"
    with pytest.raises(InputError, match=f"{message} 2: where"):
        ClipBackbone(str(tmp_path), CPU)
    (tmp_path / "added_tokens.json").write_text('{"<new>": 2}')
    with pytest.raises(InputError, match=message):
        ClipBackbone(str(tmp_path), CPU)
    (tmp_path / "added_tokens.json").unlink()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    ClipBackbone(str(tmp_path), CPU)  # a token too many, which no prompt has
    network.config.text_config.vocab_size = 2
    network.text_model.resize_token_embeddings(2)
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="of 2 tokens, and has one of"):
        ClipBackbone(str(tmp_path), CPU)
    network.text_model.resize_token_embeddings(known + 64)
    network.config.text_config.vocab_size = known + 64
    network.save_pretrained(tmp_path)
    ClipBackbone(str(tmp_path), CPU)  # more rows than tokens, as some have
