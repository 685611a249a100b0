"""Latents that grow while they are sampled."""

import pytest
import torch

from library.diffusion.ddpm_samplers import sample_ddpm
from library.diffusion.gradual_latents import GROWING_SAMPLERS, Growth, Unsharp, sample_growing
from library.errors import OptionError

NOISE = torch.randn(2, 4, 32, 48, generator=torch.Generator().manual_seed(5))
FULL = Growth(ratio=1.0)


def predict(latents, timesteps):
    """Of a model that knows pictures which are 0.3 everywhere, and says something of its own of neighbours."""
    return 0.8 * latents - 0.2 * latents.roll(1, -1) + timesteps.view(-1, 1, 1, 1) * 1e-4


@pytest.mark.parametrize("sampler", GROWING_SAMPLERS)
@pytest.mark.parametrize("is_velocity", [False, True])
@pytest.mark.parametrize("seed", [3, (3, 8)])
def test_latents_that_are_whole_from_the_start_are_those_of_the_sampler(sampler, is_velocity, seed):
    settings = {"sampler": sampler, "num_steps": 7, "is_velocity": is_velocity, "seed": seed}
    usual = sample_ddpm(predict, NOISE, **settings)
    torch.testing.assert_close(sample_growing(predict, NOISE, growth=FULL, **settings), usual, rtol=1e-3, atol=1e-3)


def test_a_schedule_that_ends_in_pure_noise_is_the_same_too():
    settings = {"sampler": "euler_a", "num_steps": 7, "is_velocity": True, "is_zero_terminal": True, "seed": 1}
    usual = sample_ddpm(predict, NOISE, **settings)
    ours = sample_growing(predict, NOISE, growth=FULL, **settings)
    torch.testing.assert_close(ours, usual, rtol=1e-2, atol=1e-2)


def sizes_seen(growth, num_steps=20, sampler="euler_a"):
    seen = []

    def remembering(latents, timesteps):
        seen.append((float(timesteps[0]), *latents.shape[-2:]))
        return predict(latents, timesteps)

    result = sample_growing(remembering, NOISE, growth=growth, sampler=sampler, num_steps=num_steps)
    assert result.shape == NOISE.shape
    assert result.isfinite().all()
    return seen


def test_latents_grow_below_the_timestep_after_so_many_steps_each():
    seen = sizes_seen(Growth(timestep=700, ratio=0.5, ratio_step=0.25, every_n_steps=3))
    sizes = [size for _, *size in seen]
    assert sizes[0] == [16, 24]
    assert sizes[-1] == [32, 48]
    changes = [number for number in range(1, len(sizes)) if sizes[number] != sizes[number - 1]]
    assert [sizes[number] for number in changes] == [[24, 32], [32, 48]]
    assert changes[1] - changes[0] == 3
    assert seen[changes[0] - 1][0] < 700 <= seen[changes[0] - 2][0]


def test_the_plain_sampler_grows_too():
    assert sizes_seen(Growth(timestep=700, ratio_step=0.5), sampler="k_euler")[0][1:] == (16, 24)


def test_too_few_steps_are_named():
    with pytest.raises(OptionError, match=r"in 3 steps latents grow to 40x24 of 48x32 only"):
        sample_growing(predict, NOISE, growth=Growth(ratio=0.5, ratio_step=0.34), sampler="euler", num_steps=3)


@pytest.mark.parametrize("is_of_result", [True, False])
def test_sharpening_and_the_scale_of_noise_change_the_result(is_of_result):
    def drawn(**changes):
        growth = Growth(timestep=900, ratio_step=0.25, **changes)
        return sample_growing(predict, NOISE, growth=growth, sampler="euler_a", num_steps=12, seed=2)

    plain = drawn()
    assert (drawn(unsharp=Unsharp(3, 0.5, 0.5, is_of_result)) - plain).abs().max() > 1e-3
    assert (drawn(noise_scale=1.1) - plain).abs().max() > 1e-3
    torch.testing.assert_close(drawn(unsharp=Unsharp(3, 0.5, 0.0, is_of_result)), plain)


def test_sharpening_leaves_plains_and_strengthens_edges():
    edge = torch.zeros(1, 2, 8, 8)
    edge[..., 4:] = 1
    sharp = Unsharp(3, 1.0, 1.0, True).of(edge)
    torch.testing.assert_close(sharp[..., :3], edge[..., :3])
    torch.testing.assert_close(sharp[..., 5:], edge[..., 5:])
    assert (sharp[..., 3] < -0.1).all()
    assert (sharp[..., 4] > 1.1).all()
