"""Timesteps, densities, loss weights and sampling noise levels against stored reference values (data/SOURCES.d)."""

import json
from pathlib import Path

import pytest
import torch

from library.diffusion.flow import loss_weights, sample_density
from library.diffusion.objective import FlowObjective
from library.diffusion.samplers import flow_sigmas

GOLDEN = json.loads((Path(__file__).parent / "data" / "sd3_timesteps.json").read_text())
CASES = GOLDEN["cases"]
SETTINGS = ("logit_mean", "logit_std", "mode_scale", "training_shift", "min_timestep", "max_timestep")


def objective(case):
    given = {name: case[name] for name in SETTINGS if case.get(name) is not None}
    return FlowObjective(weighting_scheme=case["scheme"], **given)


def name_of(case):
    return ",".join(str(case[name]) for name in ("scheme", *SETTINGS) if case.get(name) is not None)


def fixed_draws():
    return torch.tensor(GOLDEN["u"]), torch.tensor(GOLDEN["z"])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_fixed_draws_give_the_stored_timesteps(case):
    draw = objective(case).draw(*fixed_draws())
    wanted = torch.tensor(case["timesteps"], dtype=torch.float32)
    # a last-bit difference before truncation may move a timestep by one
    assert (draw.timesteps - wanted).abs().max() <= 1
    assert (draw.timesteps != wanted).sum() <= 1
    assert torch.equal(draw.sigmas, draw.timesteps / 1000)


@pytest.mark.parametrize("case", [case for case in CASES if case["density"]], ids=name_of)
def test_densities_equal_the_stored_ones(case):
    settings = objective(case)
    levels = sample_density(
        settings.weighting_scheme,
        *fixed_draws(),
        logit_mean=settings.logit_mean,
        logit_std=settings.logit_std,
        mode_scale=settings.mode_scale,
    )
    torch.testing.assert_close(levels, torch.tensor(case["density"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_free_draws_have_the_stored_distribution(case):
    generator = torch.Generator().manual_seed(3)
    uniform, normal = torch.rand(200_000, generator=generator), torch.randn(200_000, generator=generator)
    timesteps = objective(case).draw(uniform, normal).timesteps
    stored = case["sampled"]
    quantiles = torch.quantile(timesteps, torch.tensor(stored["quantile_levels"]))
    torch.testing.assert_close(quantiles, torch.tensor(stored["timestep_quantiles"]), atol=6, rtol=0)
    assert timesteps.mean() == pytest.approx(stored["mean"], abs=6)
    assert timesteps.std() == pytest.approx(stored["std"], abs=6)


@pytest.mark.parametrize("scheme", GOLDEN["loss_weights"])
def test_loss_weights_equal_the_stored_ones_where_those_are_finite(scheme):
    weights = loss_weights(scheme, torch.tensor(GOLDEN["loss_weight_sigmas"]))
    stored = [float(value) for value in GOLDEN["loss_weights"][scheme]]
    finite = torch.tensor([value != float("inf") for value in stored])
    torch.testing.assert_close(weights[finite], torch.tensor(stored)[finite], rtol=1e-5, atol=0)
    assert weights.isfinite().all()
    assert finite.sum() == (40 if scheme == "sigma_sqrt" else 41)


@pytest.mark.parametrize("steps", GOLDEN["sampling_sigmas_shift3_by_steps"])
def test_sampling_noise_levels_equal_the_stored_ones(steps):
    stored = torch.tensor(GOLDEN["sampling_sigmas_shift3_by_steps"][steps])
    torch.testing.assert_close(flow_sigmas(int(steps), shift=3.0), stored, atol=1e-6, rtol=0)
