"""Noise of a batch: what belongs to a sample only, what goes where, and settings that cannot work."""

import pytest
import torch

from library.diffusion.ddpm import DdpmObjective
from library.diffusion.noise import NoiseSettings, coarse_noise, draw_noise, offset_noise, plain_noise
from library.diffusion.objective import FlowObjective
from library.errors import OptionError
from library.rng import normal_per_sample

SEEDS = [11, 12, 13, 14]
EVERYTHING = NoiseSettings(
    noise_offset=0.1,
    noise_offset_random_strength=True,
    adaptive_noise_scale=0.2,
    multires_noise_iterations=6,
    ip_noise_gamma=0.3,
    ip_noise_gamma_random_strength=True,
)


def latents(seed=0, shape=(4, 4, 8, 12)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_without_settings_noise_is_plain_and_the_same_in_input_and_target():
    noise = draw_noise(NoiseSettings(), SEEDS, latents())
    assert torch.equal(noise.target, normal_per_sample(SEEDS, (4, 8, 12)))
    assert noise.added is noise.target


@pytest.mark.parametrize("objective", [FlowObjective(), DdpmObjective()])
def test_objectives_draw_plain_noise_unless_told_otherwise(objective):
    noise = objective.draw_noise(SEEDS, latents())
    assert torch.equal(noise.target, plain_noise(SEEDS, latents()))
    assert noise.added is noise.target


def test_a_sample_has_the_same_noise_alone_and_in_any_batch():
    together = draw_noise(EVERYTHING, SEEDS, latents())
    for place, seed in enumerate(SEEDS):
        alone = draw_noise(EVERYTHING, [seed], latents()[place : place + 1])
        assert torch.equal(alone.target[0], together.target[place])
        assert torch.equal(alone.added[0], together.added[place])


def test_noise_neither_reads_nor_moves_the_generator_of_torch():
    torch.manual_seed(1)
    first, after = draw_noise(EVERYTHING, SEEDS, latents()), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(draw_noise(EVERYTHING, SEEDS, latents()).added, first.added)


def test_latents_are_not_written_to():
    given = latents()
    draw_noise(EVERYTHING, SEEDS, given)
    assert torch.equal(given, latents())


def test_an_offset_moves_whole_channels_by_a_draw_of_their_own():
    moved = draw_noise(NoiseSettings(noise_offset=0.5), SEEDS, latents()).target - plain_noise(SEEDS, latents())
    shifts = moved.mean((2, 3))
    torch.testing.assert_close(moved, shifts[:, :, None, None].expand_as(moved), atol=1e-5, rtol=0)
    assert len(set(shifts.flatten().tolist())) == 16


def test_a_random_offset_is_weaker_and_of_another_strength_in_each_sample():
    full = draw_noise(NoiseSettings(noise_offset=0.5), SEEDS, latents()).target
    drawn = draw_noise(NoiseSettings(noise_offset=0.5, noise_offset_random_strength=True), SEEDS, latents()).target
    plain = plain_noise(SEEDS, latents())
    shares = ((drawn - plain) / (full - plain)).mean((1, 2, 3))
    assert ((shares > 0) & (shares < 1)).all()
    assert len(set(shares.tolist())) == 4


def test_a_negative_adaptive_scale_does_not_turn_the_offset_round():
    zeros, ones = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    draw = torch.ones(1, 1, 1, 1)
    assert offset_noise(zeros, 10 * ones, draw, 0.1, -0.2).abs().max() == 0
    torch.testing.assert_close(offset_noise(zeros, -ones, draw, 0.1, 0.2), 0.3 * ones)


def test_only_the_input_gets_the_input_noise():
    noise = draw_noise(NoiseSettings(ip_noise_gamma=0.3), SEEDS, latents())
    assert torch.equal(noise.target, plain_noise(SEEDS, latents()))
    extra = (noise.added - noise.target) / 0.3
    assert extra.std().item() == pytest.approx(1, abs=0.1)
    assert abs((extra * noise.target).mean().item()) < 0.1


def test_coarse_noise_ends_with_a_deviation_of_1_in_each_sample():
    noise = draw_noise(NoiseSettings(multires_noise_iterations=8, multires_noise_discount=0.9), SEEDS, latents())
    torch.testing.assert_close(noise.target.std((1, 2, 3)), torch.ones(4))


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 2, 64), (3, 7, 5)])
def test_coarse_noise_ends_at_a_side_of_1(shape):
    few = coarse_noise(5, shape, iterations=8, discount=0.5)
    assert few.shape == shape
    assert torch.equal(few, coarse_noise(5, shape, iterations=1000, discount=0.5))


def test_one_level_of_coarse_noise_is_of_the_full_size():
    assert coarse_noise(5, (1, 32, 32), iterations=1, discount=0.1).std().item() == pytest.approx(1, abs=0.1)


def test_a_discount_of_0_leaves_the_full_size_only():
    one = coarse_noise(5, (2, 9, 9), iterations=1, discount=0.0)
    assert torch.equal(one, coarse_noise(5, (2, 9, 9), iterations=4, discount=0.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_offset": -0.1}, "--noise_offset must be at least 0, got -0.1"),
        ({"noise_offset": float("nan")}, "--noise_offset must be at least 0, got nan"),
        ({"multires_noise_iterations": -1}, "--multires_noise_iterations"),
        ({"multires_noise_discount": -1.0}, "--multires_noise_discount"),
        ({"ip_noise_gamma": float("inf")}, "--ip_noise_gamma"),
        ({"adaptive_noise_scale": 0.1}, "--adaptive_noise_scale needs --noise_offset"),
        ({"adaptive_noise_scale": float("nan"), "noise_offset": 0.1}, "--adaptive_noise_scale must be a number"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, words):
    with pytest.raises(OptionError, match=words):
        NoiseSettings(**settings)
