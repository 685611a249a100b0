"""The flow objective: settings, and what it does at the ends of the noise range."""

import dataclasses

import pytest
import torch

from library.diffusion.flow import WEIGHTING_SCHEMES, loss_weights, shift_sigmas
from library.diffusion.objective import Draw, FlowObjective
from library.errors import OptionError


def draw_at(*timesteps):
    timesteps = torch.tensor(timesteps, dtype=torch.float32)
    return Draw(timesteps, timesteps / 1000)


def latents_and_noise(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 4, 6, generator=generator).to(dtype), torch.randn(2, 2, 4, 6, generator=generator).to(
        dtype
    )


def test_clean_at_sigma_0_and_noise_at_sigma_1():
    latents, noise = latents_and_noise()
    noisy = FlowObjective().corrupt(latents, noise, draw_at(0, 1000))
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[1], noise[1])


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_true_velocity_has_no_loss(scheme):
    objective, draw = FlowObjective(weighting_scheme=scheme), draw_at(3, 777)
    latents, noise = latents_and_noise()
    noisy = objective.corrupt(latents, noise, draw)
    terms = objective.terms(noise - latents, latents, noise, noisy, draw)
    torch.testing.assert_close(terms.estimate, terms.target, atol=1e-5, rtol=0)


def test_everything_is_float32_for_half_precision_inputs():
    objective, draw = FlowObjective(), draw_at(999, 501)
    latents, noise = latents_and_noise(torch.bfloat16)
    noisy = objective.corrupt(latents, noise, draw)
    terms = objective.terms(noise, latents, noise, noisy, draw)
    assert {t.dtype for t in (noisy, terms.estimate, terms.target, terms.weight)} == {torch.float32}
    assert draw.timesteps.tolist() == [999, 501]


def test_sigma_sqrt_at_timestep_0_takes_the_weight_of_timestep_1():
    weights = loss_weights("sigma_sqrt", torch.tensor([0.0, 0.001]))
    assert weights[0] == weights[1]
    assert weights[1] == pytest.approx(1e6, rel=1e-5)


def test_equal_ends_fix_the_timestep():
    objective = FlowObjective(weighting_scheme="logit_normal", min_timestep=300, max_timestep=300)
    assert objective.draw(torch.rand(5), torch.randn(5)).timesteps.tolist() == [300] * 5


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"weighting_scheme": "sigma"}, "--weighting_scheme sigma"),
        ({"training_shift": 0.0}, "--training_shift"),
        ({"training_shift": float("nan")}, "--training_shift"),
        ({"logit_std": -1.0}, "--logit_std"),
        ({"min_timestep": 500, "max_timestep": 400}, "--min_timestep 500"),
        ({"max_timestep": 1001}, "--max_timestep 1001"),
        ({"min_timestep": -1}, "--min_timestep -1"),
    ],
)
def test_settings_out_of_range_are_named(settings, flag):
    with pytest.raises(OptionError, match=flag):
        FlowObjective(**settings)


def test_objective_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FlowObjective().training_shift = 3.0


def test_shift_must_be_above_0():
    with pytest.raises(ValueError, match="above 0"):
        shift_sigmas(torch.tensor([0.5]), 0.0)
