"""Properties of diffusion in discrete steps that hold for all settings."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from library.diffusion.ddpm import DdpmObjective
from library.diffusion.loss import LossSettings, huber_thresholds
from library.diffusion.noise import NoiseSettings
from library.diffusion.objective import FlowObjective

ALL = torch.arange(1000)
OBJECTIVES = (FlowObjective(), DdpmObjective(), DdpmObjective(zero_terminal_snr=True))
maybe = st.none() | st.floats(0.01, 50)


@st.composite
def objectives(draw):
    low = draw(st.integers(0, 1000))
    is_velocity = draw(st.booleans())
    return DdpmObjective(
        v_parameterization=is_velocity,
        zero_terminal_snr=draw(st.booleans()),
        min_timestep=low,
        max_timestep=draw(st.integers(low, 1000)),
        min_snr_gamma=draw(maybe),
        scale_v_pred_loss_like_noise_pred=is_velocity and draw(st.booleans()),
        v_pred_like_loss=None if is_velocity else draw(maybe),
        debiased_estimation_loss=draw(st.booleans()),
    )


@given(objectives())
def test_weights_are_finite_everywhere_and_0_only_in_pure_noise(objective):
    weights = objective.weights(objective.snr(objective.at(ALL)))
    assert weights.isfinite().all()
    assert (weights[:999] > 0).all() and weights[999] >= 0


@given(objectives(), st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=1, max_size=8))
def test_timesteps_are_whole_numbers_in_their_range(objective, uniform):
    draw = objective.draw(torch.tensor(uniform), torch.zeros(len(uniform)))
    assert torch.equal(draw.timesteps, draw.timesteps.round())
    assert draw.timesteps.min() >= min(objective.min_timestep, 999)
    assert draw.timesteps.max() <= min(max(objective.min_timestep, objective.max_timestep - 1), 999)
    assert ((draw.sigmas > 0) & (draw.sigmas <= 1)).all()


@given(st.booleans())
def test_every_step_is_noisier_than_the_one_before(zero_terminal_snr):
    objective = DdpmObjective(zero_terminal_snr=zero_terminal_snr)
    draw = objective.at(ALL)
    assert (draw.sigmas.diff() >= 0).all()
    assert (objective.snr(draw).diff() < 0).all()


@given(st.floats(0.001, 0.999), st.sampled_from(OBJECTIVES))
def test_snr_thresholds_fall_from_about_1_to_huber_c(huber_c, objective):
    draw = objective.at(ALL)
    thresholds = huber_thresholds(LossSettings("huber", "snr", huber_c), draw.timesteps, objective.snr(draw))
    assert (thresholds.diff() <= 0).all()
    assert thresholds[0] > 0.9 and thresholds[0] <= 1
    assert huber_c - 1e-6 <= thresholds[-1] < huber_c + 0.01


@settings(max_examples=40)
@given(
    st.builds(
        NoiseSettings,
        noise_offset=st.floats(0.01, 1),
        noise_offset_random_strength=st.booleans(),
        adaptive_noise_scale=st.none() | st.floats(-1, 1),
        multires_noise_iterations=st.none() | st.integers(0, 10),
        multires_noise_discount=st.floats(0, 1),
        ip_noise_gamma=st.none() | st.floats(0, 1),
        ip_noise_gamma_random_strength=st.booleans(),
    ),
    st.lists(st.integers(0, 2**62), min_size=2, max_size=4),
)
def test_noise_of_a_batch_is_the_noise_of_its_samples(noise_settings, seeds):
    objective = DdpmObjective(noise_settings=noise_settings)
    latents = torch.linspace(-2, 2, len(seeds) * 4 * 6 * 8).view(-1, 4, 6, 8)
    together = objective.draw_noise(seeds, latents)
    parts = [objective.draw_noise([seed], latents[place : place + 1]) for place, seed in enumerate(seeds)]
    assert torch.equal(together.target, torch.cat([part.target for part in parts]))
    assert torch.equal(together.added, torch.cat([part.added for part in parts]))
    assert together.added.isfinite().all()
