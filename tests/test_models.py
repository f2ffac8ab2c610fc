"""Models: opened from folders and objects, nothing of the user's changed."""

import torch
from pipelines import micro_pipeline

import sopt
from sopt.models import inject_lora, open_model
from sopt.steps.seeds import Tag, seed64
from sopt_kernels import noise


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_loaded_pipeline_comes_back_unchanged_and_trains_like_its_folder(
    settings, quick, tmp_path
):
    pipeline = micro_pipeline()
    modules = pipeline.unet, pipeline.vae, pipeline.text_encoder
    flags = [[p.requires_grad for p in module.parameters()] for module in modules]
    states = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
    mode = [module.training for module in modules]
    run = sopt.train(**settings | {"model": pipeline, "output": str(tmp_path / "object")})
    for module, flag, state in zip(modules, flags, states, strict=True):
        assert [p.requires_grad for p in module.parameters()] == flag
        assert same_bits(module.state_dict(), state)
    assert [module.training for module in modules] == mode
    assert not pipeline.unet.is_gradient_checkpointing
    assert run.adapter.read_bytes() == sopt.train(**settings).adapter.read_bytes()


def test_a_half_precision_pipeline_keeps_its_dtype(settings, quick):
    pipeline = micro_pipeline()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.half()
    sopt.train(**settings | {"model": pipeline, "steps": 2})
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert all(p.dtype == torch.float16 for p in module.parameters())


def test_a_folder_with_half_precision_variants_only_is_read(tmp_path):
    pipeline = micro_pipeline()
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.half()
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    model = open_model(tmp_path / "half")
    for module in (model.load("unet"), model.load("vae"), model.load("text_encoder")):
        assert all(weight.dtype == torch.float32 for weight in module.parameters())
    assert same_bits(
        model.load("unet").state_dict(),
        {name: tensor.float() for name, tensor in pipeline.unet.state_dict().items()},
    )


def test_models_say_what_they_are(micro_model):
    assert (micro_model.vae_factor, micro_model.native_resolution) == (4, 32)
    assert (micro_model.smallest_resolution, micro_model.num_train_timesteps) == (8, 1000)
    assert micro_model.prediction_type == "epsilon"


def test_the_adapter_starts_as_the_identity_with_gaussian_a(micro_model):
    adapter = inject_lora(micro_model.load("unet"), rank=4, seed=7)
    a = torch.cat([p.flatten() for name, p in adapter.items() if ".lora_A." in name])
    b = torch.cat([p.flatten() for name, p in adapter.items() if ".lora_B." in name])
    assert torch.count_nonzero(b) == 0
    for name, parameter in adapter.items():
        if ".lora_A." in name:
            z = noise(parameter.shape, seed64(7, 0, 0, Tag.ADAPTER_INIT), name)
            assert torch.equal(parameter, z / 4)
    # n normal values of deviation 1 / rank: their root mean square is within 6 / sqrt(2 n) of it.
    assert abs(4 * a.square().mean().sqrt() - 1) < 6 / (2 * a.numel()) ** 0.5
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.values())
    assert next(iter(adapter)) == (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight"
    )
    assert len(adapter) == 2 * 4 * 2 * 7  # A and B, four projections, two attentions, seven blocks


def test_pipeline_of_a_model_is_stock_and_its_own(micro_folder):
    model = open_model(micro_folder)
    pipeline = model.pipeline(unet=model.load("unet"))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.unet.dtype == torch.float32
