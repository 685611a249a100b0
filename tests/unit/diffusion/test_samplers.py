"""Sampling along known flows."""

import pytest
import torch

from library.diffusion.samplers import euler_flow, flow_sigmas


def latents(seed):
    return torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
def test_a_straight_flow_ends_at_its_latents_in_any_number_of_steps(steps):
    clean, noise = latents(1), latents(2)
    result = euler_flow(lambda x, t: noise - clean, noise, flow_sigmas(steps))
    torch.testing.assert_close(result, clean, atol=1e-5, rtol=0)


def test_noise_levels_fall_from_1_to_0():
    sigmas = flow_sigmas(28)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        flow_sigmas(0)


def test_guidance_mixes_both_halves_of_one_batch():
    seen = []

    def predict(x, timesteps):
        seen.append((len(x), timesteps.tolist()))
        return torch.cat([torch.full_like(x[:2], 3.0), torch.full_like(x[2:], 1.0)])

    start = torch.zeros(2, 1, 2, 2)
    result = euler_flow(predict, start, torch.tensor([1.0, 0.5, 0.0]), guidance_scale=4.0)
    assert seen == [(4, [1000.0] * 4), (4, [500.0] * 4)]
    assert torch.equal(result, torch.full_like(start, -(1 + 4 * (3 - 1.0))))


def test_without_guidance_no_negative_is_asked_for():
    rows = []

    def predict(x, timesteps):
        rows.append(len(x))
        return x

    euler_flow(predict, latents(1), flow_sigmas(3), guidance_scale=1.0)
    assert rows == [2, 2, 2]


def test_latents_stay_float32_and_timesteps_are_not_rounded():
    timesteps = []

    def predict(x, t):
        assert x.dtype == torch.float32
        timesteps.append(t[0].item())
        return x.to(torch.bfloat16)

    start = latents(1).to(torch.bfloat16)
    assert euler_flow(predict, start, flow_sigmas(4)).dtype == torch.float32
    assert timesteps[1] == pytest.approx(857.6923, abs=1e-3)


def test_noise_is_not_written_to_and_steps_are_reported():
    start, reports = latents(3), []
    before = start.clone()
    euler_flow(lambda x, t: x, start, flow_sigmas(3), on_step=lambda done, total: reports.append((done, total)))
    assert torch.equal(start, before)
    assert reports == [(1, 3), (2, 3), (3, 3)]
