"""In the style of diffusers' training scripts: a LoRA on the U-Net, with accelerate.

What differs from such a script: latents, noise and timesteps are drawn once a step and kept for all
forward passes of it, and ``zeroth_order.accumulate`` takes the place of ``accelerator.backward``.
Trains on the bundled model and pictures drawn here.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig

import sopt
from sopt.optim import ZOSGD


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of ``count`` pictures of one colour each, and the prompt's embedding."""
    colours = torch.rand(count, 3, 1, 1) * 2 - 1
    pixels = colours.expand(count, 3, 64, 64)
    latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    tokens = pipeline.tokenizer(
        "a sks dog", padding="max_length", max_length=pipeline.tokenizer.model_max_length,
        truncation=True, return_tensors="pt",
    )  # fmt: skip
    return latents, pipeline.text_encoder(tokens.input_ids)[0]


def main(steps: int = 60) -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    pipeline = StableDiffusionPipeline.from_pretrained(sopt.tiny.path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    unet = pipeline.unet
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    latents, prompt = encode(pipeline, 4)

    unet.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    lora = [(name, p) for name, p in unet.named_parameters() if p.requires_grad]
    zeroth_order = ZOSGD(lora, lr=1e-1, eps=1e-2, num_perturbations=2, noise="rademacher")
    unet, optimizer = accelerator.prepare(unet, zeroth_order)
    unet.eval()

    # A few draws that come again: single ones differ too much to see the loss fall.
    timesteps = torch.tensor([100, 300, 500, 700])
    noise = torch.randn_like(latents)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    encoder_hidden_states = prompt.expand(len(latents), -1, -1)
    losses = []
    for _ in range(steps):

        def closure() -> torch.Tensor:
            predicted = unet(noisy, timesteps, encoder_hidden_states).sample
            return F.mse_loss(predicted.float(), noise.float())

        loss = zeroth_order.accumulate(closure)
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} after {zeroth_order.steps} steps")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
