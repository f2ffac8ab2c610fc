"""Seeds of a run: the generator of the design, and no two draws alike."""

import itertools

import pytest
import torch

import sopt_kernels
from sopt.schedules import make_schedule
from sopt.steps.seeds import Tag, integer, noise, seed64, uniform


def philox4x32_10(counter, key):
    """From the paper (Salmon et al., SC'11), in Python integers; the package has its own."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("run_seed", [0, 1, 0x1234_5678_9ABC_DEF0, 2**64 - 1])
@pytest.mark.parametrize(
    "step, index, tag", [(0, 0, 8), (1, 0, 1), (1000, 7, 1), (2**32 - 1, 3, 5)]
)
def test_seed_is_the_first_two_words_of_the_counter(run_seed, step, index, tag):
    words = philox4x32_10((step, index, 0, tag), (run_seed % 2**32, run_seed // 2**32))
    assert seed64(run_seed, step, index, Tag(tag)) == words[0] + 2**32 * words[1]


def test_tags_are_those_that_runs_were_logged_with():
    names = "DIRECTION ROUNDING IMAGE TIMESTEP BRANCH DIFFUSION_NOISE VAE_LATENT ADAPTER_INIT"
    assert [tag.name for tag in Tag] == [*names.split(), "HOLLOW_POOL", "DROPOUT"]
    assert [int(tag) for tag in Tag] == list(range(1, 11))


def test_no_two_draws_of_a_run_share_a_seed():
    draws = itertools.product(range(50), range(4), Tag)
    seeds = [seed64(7, step, index, tag) for step, index, tag in draws]
    assert len(set(seeds)) == len(seeds)


def test_runs_with_neighbouring_seeds_share_no_draw():
    seeds = [seed64(run, step, 0, Tag.TIMESTEP) for run in range(30) for step in range(1, 60)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("high_word", [0, 2**63])
def test_scalars_use_the_low_word_only_and_stay_in_range(high_word):
    assert uniform(high_word) == 0
    assert uniform(high_word | 0xFF) == 0
    assert uniform(high_word | 0x100) == 2.0**-24
    assert uniform(high_word | 0xFFFFFFFF) == 1 - 2.0**-24
    assert integer(high_word, 3, 10) == 3
    assert integer(high_word | 0xFFFFFFFF, 3, 10) == 9
    assert integer(high_word | 0xFFFFFFFF, 0, 1) == 0


def test_timesteps_and_pictures_are_drawn_evenly():
    # Bins of binomial counts, 4000 draws in 8 bins: mean 500, standard deviation 21; 6 of them is
    # a false alarm in fewer than 1 of 10^7 choices of the seed.
    draws = [integer(seed64(0, step, 0, Tag.TIMESTEP), 0, 8) for step in range(1, 4001)]
    assert all(abs(draws.count(value) - 500) < 6 * 21 for value in range(8))


@pytest.mark.parametrize("run_seed", [0, 1, 2])
def test_share_of_zeroth_order_steps_in_a_dtap_run_of_1000_steps(run_seed):
    schedule = make_schedule("dtap", 1000, 1000)
    zo = [
        uniform(seed64(run_seed, step, 0, Tag.BRANCH))
        < schedule(step, integer(seed64(run_seed, step, 0, Tag.TIMESTEP), 0, 1000))
        for step in range(1, 1001)
    ]
    # 250.4 expected; the sum of 1000 draws of variance p (1 - p) <= 0.188 deviates by 13.7: 4 sigma
    # is a false alarm for 1 seed in 16 000. The printed Algorithm 1 would give 750.
    assert abs(sum(zo) - 250.4) < 4 * 13.7


def test_noise_tensors_are_those_of_the_kernels_and_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    drawn = noise((2, 3, 5), 11, "diffusion_noise", torch.device("cpu"))
    stream = sopt_kernels.stream_id("diffusion_noise")
    assert torch.equal(drawn, sopt_kernels.noise((2, 3, 5), 11, stream))
    assert not torch.equal(drawn, noise((2, 3, 5), 11, "vae_latent", torch.device("cpu")))
    assert torch.equal(state, torch.get_rng_state())
