"""Weights of the loss by timestep, and prior preservation, against plain arithmetic."""

import logging
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pipelines import save_micro_pipeline, save_pictures

import sopt
from sopt import InputError
from sopt.cache import Cache, EncodedPicture
from sopt.data import Picture
from sopt.models.conditioning import Prompt
from sopt.steps.backprop import backprop_step
from sopt.steps.loss import Sample, diffusion_loss, min_snr_weight
from sopt.steps.seeds import Tag, seed64
from sopt.steps.zeroth_order import zeroth_order_step
from sopt_kernels import noise

FLOAT32 = 2.0**-24  # relative rounding error of one operation
GAMMA = 5.0
TYPES = ["epsilon", "v_prediction", "sample"]


def snr_of(timestep):
    """Of the linear betas 1e-4 .. 0.02, in float64."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timestep]
    return (kept / (1 - kept)).item()


@pytest.mark.parametrize("timestep", [0, 50, 200, 500, 999])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_weight_is_that_of_the_paper(prediction_type, timestep):
    snr = snr_of(timestep)
    assert (snr > GAMMA) == (timestep in (0, 50))
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    weight = min_snr_weight(DDPMScheduler(prediction_type=prediction_type), timestep, GAMMA)
    # t + 1 roundings of the scheduler's float32 product, which 1 - product magnifies by SNR + 1 at
    # most; at t = 0 that is 1e4 for one rounding, and of the betas as well.
    assert weight == pytest.approx(
        min(snr, GAMMA) / divisor, rel=4 * (timestep + 1) * FLOAT32 * (snr + 1)
    )


@pytest.mark.parametrize("timestep", [50, 500, 999])
def test_one_prediction_weighs_the_same_in_every_parameterization(timestep):
    generator = torch.Generator().manual_seed(0)
    x, e, guess = (
        torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    losses = []
    for prediction_type in TYPES:
        scheduler = DDPMScheduler(prediction_type=prediction_type)
        kept = scheduler.alphas_cumprod[timestep].double()
        a, b = kept.sqrt(), (1 - kept).sqrt()
        e_guess = (a * x + b * e - a * guess) / b  # the noise, if the latents were the guess
        said = {"epsilon": e_guess, "v_prediction": a * e_guess - b * guess, "sample": guess}
        unet = lambda *arguments, said=said[prediction_type], **options: (said,)  # noqa: E731
        unet.dtype = torch.float32
        sample = Sample(x, e, timestep, x)
        losses.append(diffusion_loss(unet, scheduler, sample, min_snr=GAMMA).item())
    expected = min(snr_of(timestep), GAMMA) * (x - guess).square().mean().item()
    # Rounded to float32: target and prediction, whose difference is of their size; the factors of
    # add_noise and get_velocity; and alphas_cumprod, as above.
    tolerance = 4 * (timestep + 1) * FLOAT32 * (snr_of(timestep) + 1) + 100 * FLOAT32
    assert losses == pytest.approx([expected] * 3, rel=tolerance)


def test_infinite_snr_has_finite_weights():
    for prediction_type, expected in zip(TYPES, [0, 0, GAMMA], strict=True):
        scheduler = DDPMScheduler(prediction_type=prediction_type)
        scheduler.alphas_cumprod[0] = 1
        assert min_snr_weight(scheduler, 0, GAMMA) == expected


def test_zero_snr_has_finite_weights():
    for prediction_type, expected in zip(TYPES, [1, 0, 0], strict=True):
        scheduler = DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
        scheduler.alphas_cumprod[-1] = 0
        assert min_snr_weight(scheduler, 999, GAMMA) == expected


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("min_snr", [None, GAMMA])
def test_each_term_has_the_weight_of_its_own_timestep(prediction_type, min_snr):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 4, 6, 6, generator=generator) for _ in range(6)]
    prior = Sample(*tensors[:2], 30, tensors[2])  # SNR well above gamma
    subject = Sample(*tensors[3:5], 900, tensors[5])  # and well below

    def unet(noisy, timesteps, encoder_hidden_states, added_cond_kwargs, return_dict):
        return (0.5 * noisy + encoder_hidden_states,)

    unet.dtype = torch.float32

    def plain(sample):
        kept = scheduler.alphas_cumprod[sample.timestep].double()
        a, b = kept.sqrt(), (1 - kept).sqrt()
        x, e = sample.latents.double(), sample.noise.double()
        target = {"epsilon": e, "v_prediction": a * e - b * x, "sample": x}[prediction_type]
        error = (0.5 * (a * x + b * e) + sample.prompt.double() - target).square().mean().item()
        if min_snr is None:
            return error
        snr = (kept / (1 - kept)).item()
        return {
            "epsilon": min(snr, min_snr) / snr,
            "v_prediction": min(snr, min_snr) / (snr + 1),
            "sample": min(snr, min_snr),
        }[prediction_type] * error

    both = Sample(*tensors[3:5], 900, tensors[5], prior)
    options = {"min_snr": min_snr, "prior_weight": 0.3}
    alone = diffusion_loss(unet, scheduler, subject, **options).item()
    loss = diffusion_loss(unet, scheduler, both, **options)
    assert loss.dtype == torch.float32
    # a dozen float32 operations on each of the numbers whose squares are averaged
    assert alone == pytest.approx(plain(subject), rel=30 * FLOAT32)
    assert loss.item() == pytest.approx(plain(subject) + 0.3 * plain(prior), rel=30 * FLOAT32)


def test_both_kinds_of_step_follow_the_sum_of_the_two_terms():
    scheduler = DDPMScheduler()
    weight = torch.full((1, 4, 6, 6), 0.25, requires_grad=True)
    x, e, p, q = (noise((1, 4, 6, 6), 7, name) for name in "xepq")
    sample = Sample(x, e, 900, p, Sample(e, x, 30, q))

    def unet(noisy, timesteps, encoder_hidden_states, added_cond_kwargs, return_dict):
        return (weight * encoder_hidden_states,)

    unet.dtype = torch.float32

    def loss():
        return diffusion_loss(unet, scheduler, sample, min_snr=GAMMA, prior_weight=0.5)

    w = 0.25
    weights = [1.0, 0.5 * GAMMA / snr_of(30)]
    gradient = sum(
        factor * 2 * c.double() * (w * c.double() - y.double()) / y.numel()
        for factor, c, y in zip(weights, (p, q), (e, x), strict=True)
    )
    seen = []
    optimizer = torch.optim.SGD([weight], lr=0.0)
    weight.register_post_accumulate_grad_hook(
        lambda parameter: seen.append(parameter.grad.double())
    )
    backprop_step({"w": weight}, loss, optimizer)
    # alphas_cumprod at 30, as above; the rest are a few float32 operations
    tolerance = 4 * 31 * FLOAT32 * (snr_of(30) + 1)
    assert (seen[0] - gradient).abs().max() <= tolerance * gradient.abs().max()
    update = zeroth_order_step({"w": weight}, loss, [3], lr=-1.0, eps=0.125)
    slope = (gradient * noise(weight.shape, 3, "w").double()).sum().item()
    # the loss is quadratic: no truncation; both losses are rounded a few times in float32
    assert update.coefficients[0] == pytest.approx(
        slope, abs=tolerance + 40 * FLOAT32 * update.loss / 0.125
    )


def test_pictures_are_drawn_by_their_repeats_and_priors_apart():
    image = Image.new("RGB", (1, 1))
    repeats = {"a": (3, False), "b": (1, False), "p": (1, True), "q": (1, True)}
    pictures = [Picture(name, image, name, n, prior) for name, (n, prior) in repeats.items()]
    shape = (1, 4, 2, 2)
    moments = [
        EncodedPicture(torch.full(shape, i), torch.zeros(shape), 1.0, None)
        for i in (0.0, 1.0, 2.0, 3.0)
    ]
    prompts = {name: Prompt(torch.full((1, 3, 2), ord(name))) for name in repeats}
    cache = Cache(pictures, prompts, {8: moments})
    steps = 4000
    drawn = [cache.draw(0, step, 500, 8) for step in range(1, steps + 1)]
    for sample in drawn:
        assert (sample.latents[0, 0, 0, 0].item(), sample.prompt[0, 0, 0].item()) in [
            (0, 97),
            (1, 98),
        ]
        prior = sample.prior
        assert (prior.latents[0, 0, 0, 0].item(), prior.prompt[0, 0, 0].item()) in [
            (2, 112),
            (3, 113),
        ]
        assert prior.timestep == sample.timestep == 500
        assert prior.prior is None
    # six standard deviations of a binomial share: a false alarm in 5e8
    a = sum(sample.latents.sum().item() == 0 for sample in drawn) / steps
    assert abs(a - 0.75) < 6 * (0.75 * 0.25 / steps) ** 0.5
    p = sum(sample.prior.latents[0, 0, 0, 0].item() == 2 for sample in drawn) / steps
    assert abs(p - 0.5) < 6 * (0.25 / steps) ** 0.5
    seed = seed64(0, 1, 1, Tag.DIFFUSION_NOISE)
    assert torch.equal(drawn[0].prior.noise, noise(shape, seed, "diffusion_noise"))
    assert not torch.equal(drawn[0].prior.noise, drawn[0].noise)


@pytest.mark.usefixtures("quick")
def test_a_run_trains_on_captions_and_prior_pictures(
    settings, monkeypatch, caplog, tmp_path, pictures
):
    subjects = tmp_path / "subjects"
    shutil.copytree(pictures, subjects)
    for number in range(3):
        (subjects / f"{number}.txt").write_text(f"a sks dog {'near ' * number}home")
    model = save_micro_pipeline(tmp_path / "v", prediction_type="v_prediction")
    settings |= {
        "model": str(model), "images": str(subjects), "prior_weight": 0.5, "min_snr": GAMMA,
        "prior_images": str(save_pictures(tmp_path / "class", 2)), "prior_prompt": "a dog",
    }  # fmt: skip
    seen = []

    def recorded(unet, scheduler, sample, **options):
        loss = diffusion_loss(unet, scheduler, sample, **options)
        with torch.no_grad():
            parts = [
                diffusion_loss(unet, scheduler, part).item()
                for part in (
                    Sample(sample.latents, sample.noise, sample.timestep, sample.prompt),
                    sample.prior,
                )
            ]
        snr = 1 / (1 / scheduler.alphas_cumprod[sample.timestep].double().item() - 1)
        weight = min(snr, GAMMA) / (snr + 1)
        assert loss.item() == pytest.approx(weight * (parts[0] + 0.5 * parts[1]), rel=8 * FLOAT32)
        seen.append((torch.is_grad_enabled(), sample))
        return loss

    monkeypatch.setattr("sopt.training.diffusion_loss", recorded)
    with caplog.at_level(logging.INFO, logger="sopt"):
        run = sopt.train(**settings)
    assert "2.png          1  a sks dog near near home\nfor prior preservation:" in caplog.text
    assert "1.png          1  a dog\n" in caplog.text
    assert {gradient for gradient, _ in seen} == {True, False}
    assert len({sample.prompt for _, sample in seen}) > 1
    assert len({sample.prior.prompt for _, sample in seen}) == 1
    assert {entry["branch"] for entry in run.history} == {"bp", "zo"}
    moved = shutil.copytree(tmp_path / "class", tmp_path / "moved")
    assert sopt.train(**settings | {"prior_images": str(moved)}).history == run.history
    for change in ({"prior_prompt": "a cat"}, {"min_snr": 1.0}, {"prior_weight": 1.0}):
        with pytest.raises(InputError, match=f"holds a run with {next(iter(change))}="):
            sopt.train(**settings | change)
    (moved / "0.png").unlink()
    with pytest.raises(InputError, match="holds a run with prior_images='2 pictures"):
        sopt.train(**settings | {"prior_images": str(moved)})
    (subjects / "0.txt").write_text("another")
    with pytest.raises(InputError, match="holds a run with images='3 pictures"):
        sopt.train(**settings)


def test_a_plan_counts_the_prior_term(micro_folder):
    settings = {"method": "backprop-high", "checkpointing": False, "min_snr": GAMMA}
    (plain,) = sopt.plan(str(micro_folder), **settings)
    (prior,) = sopt.plan(str(micro_folder), **settings, prior_images="class", prior_prompt="a dog")
    assert prior.phases["train-bp"] > plain.phases["train-bp"]


def test_a_prior_weight_without_prior_pictures_is_refused(settings):
    with pytest.raises(InputError, match=r"prior_weight=0\.5 has no effect without prior_images"):
        sopt.train(**settings | {"prior_weight": 0.5})
