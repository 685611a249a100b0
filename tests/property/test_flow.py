"""Properties of the rectified flow that hold for all settings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from library.diffusion.flow import WEIGHTING_SCHEMES, loss_weights, shift_sigmas
from library.diffusion.objective import FlowObjective
from library.diffusion.samplers import flow_sigmas

EVEN = torch.linspace(0, 1, 64, dtype=torch.float64)


@st.composite
def objectives(draw):
    low = draw(st.integers(0, 1000))
    return FlowObjective(
        weighting_scheme=draw(st.sampled_from(WEIGHTING_SCHEMES)),
        training_shift=draw(st.floats(0.05, 20)),
        logit_mean=draw(st.floats(-3, 3)),
        logit_std=draw(st.floats(0, 3)),
        mode_scale=draw(st.floats(-20, 20)),
        min_timestep=low,
        max_timestep=draw(st.integers(low, 1000)),
    )


@given(st.floats(0.05, 20.0))
def test_shift_keeps_order_and_ends(shift):
    shifted = shift_sigmas(EVEN, shift)
    assert (shifted.diff() > 0).all()
    assert shifted[0] == 0 and shifted[-1] == pytest.approx(1)


@given(st.floats(0.05, 20.0))
def test_inverse_shift_undoes_a_shift(shift):
    torch.testing.assert_close(shift_sigmas(shift_sigmas(EVEN, shift), 1 / shift), EVEN)


@given(objectives(), st.integers(0, 2**31))
def test_timesteps_are_whole_numbers_in_their_range_and_weights_finite(objective, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = objective.draw(torch.rand(32, generator=generator), torch.randn(32, generator=generator))
    assert torch.equal(draw.timesteps, draw.timesteps.round())
    assert draw.timesteps.min() >= objective.min_timestep
    assert draw.timesteps.max() <= objective.max_timestep
    weights = loss_weights(objective.weighting_scheme, draw.sigmas)
    assert weights.isfinite().all() and (weights > 0).all()
    assert draw.timesteps.dtype == draw.sigmas.dtype == weights.dtype == torch.float32


@given(objectives(), st.integers(0, 2**31))
def test_a_draw_depends_on_its_own_sample_only(objective, seed):
    generator = torch.Generator().manual_seed(seed)
    uniform, normal = torch.rand(8, generator=generator), torch.randn(8, generator=generator)
    whole = objective.draw(uniform, normal).timesteps
    halves = [objective.draw(uniform[part], normal[part]).timesteps for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(whole, torch.cat(halves))


@given(st.integers(1, 200), st.floats(0.1, 10))
def test_sampling_goes_down_from_noise_to_clean(steps, shift):
    sigmas = flow_sigmas(steps, shift)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
