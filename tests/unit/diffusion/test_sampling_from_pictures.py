"""Sampling that begins at a picture, and what may be done after each step."""

import pytest
import torch

from library.diffusion.ddpm_samplers import DDPM_SAMPLERS, sample_ddpm
from library.diffusion.samplers import Start, euler_flow, flow_sigmas

SHAPE = (2, 4, 6, 5)
STEPS = 8
PLAIN = [name for name in DDPM_SAMPLERS if not name.startswith("k_")]
DETERMINISTIC = [name for name in PLAIN if not name.endswith("_a")]


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


CLEAN, NOISE = drawn(1), drawn(2)


def never(latents, timesteps):
    raise AssertionError("nothing is to be predicted")


def noise_of(latents, timesteps):
    """What a model that knows the noise says of all latents."""
    return NOISE


def velocity(latents, timesteps):
    return NOISE - CLEAN


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_a_model_that_knows_the_noise_finds_the_picture_wherever_sampling_begins(sampler, strength):
    found = sample_ddpm(noise_of, NOISE, sampler=sampler, num_steps=STEPS, start=Start(CLEAN, strength))
    # some samplers end a little above no noise, as the published models do
    assert (found - CLEAN).abs().max() < 0.2
    assert (found - CLEAN).abs().mean() < 0.05


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_flow_finds_the_picture_too(strength):
    found = euler_flow(velocity, NOISE, flow_sigmas(STEPS), start=Start(CLEAN, strength))
    torch.testing.assert_close(found, CLEAN, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", PLAIN)
def test_at_strength_0_nothing_is_predicted_and_the_picture_stays(sampler):
    assert (sample_ddpm(never, NOISE, sampler=sampler, num_steps=STEPS, start=Start(CLEAN, 0.0)) == CLEAN).all()
    assert (euler_flow(never, NOISE, flow_sigmas(STEPS), start=Start(CLEAN, 0.0)) == CLEAN).all()


@pytest.mark.parametrize("sampler", PLAIN)
def test_strength_is_the_share_of_the_steps(sampler):
    """Samplers of second order predict twice in a step, but once in the last."""
    counts = []
    for strength in (0.5, 1.0):
        sample_ddpm(
            noise_of,
            NOISE,
            sampler=sampler,
            num_steps=STEPS,
            start=Start(CLEAN, strength),
            on_step=lambda done, count: counts.append(count) if done == count else None,
        )
    assert counts[0] in (STEPS // 2, STEPS - 1, STEPS // 2 + 1)
    assert counts[1] in (STEPS, 2 * STEPS - 1, STEPS + 1)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmsolver++"])
def test_after_each_step_noised_is_as_noisy_as_the_latents(sampler):
    differences = []

    def look(latents, state):
        differences.append((state.noised(CLEAN, NOISE) - latents).abs().max().item())
        return latents

    sample_ddpm(noise_of, NOISE, sampler=sampler, num_steps=STEPS, start=Start(CLEAN, 1.0), after_step=look)
    assert len(differences) == STEPS
    assert max(differences[:-1]) < 1e-3  # the last step of ddim ends a little above no noise


def test_after_each_step_of_a_flow_too():
    seen = []

    def look(latents, state):
        torch.testing.assert_close(state.noised(CLEAN, NOISE), latents, atol=1e-5, rtol=1e-5)
        seen.append((state.done, state.count, state.timestep is None))
        return latents

    euler_flow(velocity, NOISE, flow_sigmas(3), start=Start(CLEAN, 1.0), after_step=look)
    assert seen == [(1, 3, False), (2, 3, False), (3, 3, True)]


def test_what_after_step_gives_is_gone_on_with():
    kept = sample_ddpm(
        noise_of, NOISE, sampler="euler", num_steps=STEPS, after_step=lambda latents, state: torch.zeros_like(latents)
    )
    assert (kept == 0).all()


@pytest.mark.parametrize("sampler", ["euler_a", "dpm_2_a"])
def test_noise_on_the_way_is_that_of_the_row_s_seed_wherever_it_is(sampler):
    both = sample_ddpm(noise_of, NOISE, sampler=sampler, num_steps=4, seed=[5, 6])
    turned = sample_ddpm(lambda x, t: NOISE.flip(0), NOISE.flip(0), sampler=sampler, num_steps=4, seed=[6, 5])
    torch.testing.assert_close(both, turned.flip(0), atol=1e-5, rtol=1e-5)
    other = sample_ddpm(noise_of, NOISE, sampler=sampler, num_steps=4, seed=[5, 7])
    torch.testing.assert_close(other[0], both[0], atol=1e-5, rtol=1e-5)
    assert (other[1] - both[1]).abs().mean() > 0.01
