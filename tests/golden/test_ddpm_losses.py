"""Schedule, weights, losses and noise of SD 1.x, SD 2.x and SDXL against stored reference values (data/SOURCES.d)."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from library.diffusion.betas import PUBLISHED
from library.diffusion.ddpm import (
    DdpmObjective,
    alphas_cumprod,
    debiased_weights,
    min_snr_weights,
    noise_like_weights,
    velocity_like_weights,
    with_zero_terminal_snr,
)
from library.diffusion.loss import LossSettings, elementwise_loss, huber_thresholds
from library.diffusion.noise import NoiseSettings, coarse_noise, draw_noise, offset_noise, with_unit_deviation
from library.diffusion.objective import FlowObjective
from library.training.stepping.step import compute_loss

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads(gzip.decompress((DATA / "ddpm_losses.json.gz").read_bytes()))
TIMESTEPS = torch.tensor(GOLDEN["timesteps"])
LOSSES, NOISE, STATISTICS = GOLDEN["losses"], GOLDEN["noise"], GOLDEN["statistics"]

each_schedule = pytest.mark.parametrize("schedule", ["normal", "zero_terminal_snr"])


def betas_of(schedule):
    betas = PUBLISHED.betas()
    return with_zero_terminal_snr(betas) if schedule == "zero_terminal_snr" else betas


def objective_of(schedule, **settings):
    return DdpmObjective(zero_terminal_snr=schedule == "zero_terminal_snr", **settings)


def snr_of(schedule):
    objective = objective_of(schedule)
    return objective.snr(objective.at(TIMESTEPS))


def numbers(values):
    """As floats; "NaN" and "Infinity" stand for themselves."""
    return torch.tensor([float(value) for value in values])


def assert_equal_where_finite(ours, stored):
    stored = numbers(stored)
    is_finite = stored.isfinite()
    assert is_finite.sum() >= 17
    torch.testing.assert_close(ours[is_finite], stored[is_finite], rtol=1e-5, atol=0)
    assert ours.isfinite().all()


# Schedule and weights


@each_schedule
def test_schedule_equals_the_stored_one(schedule):
    betas, stored = betas_of(schedule), GOLDEN[schedule]
    kept = alphas_cumprod(betas)
    # A beta is 1 minus a ratio near 1, so its last bits are those of the square root of this or that processor.
    torch.testing.assert_close(betas[TIMESTEPS], numbers(stored["betas"]), rtol=2e-5, atol=5e-7)
    torch.testing.assert_close(kept[TIMESTEPS], numbers(stored["alphas_cumprod"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(snr_of(schedule), numbers(stored["snr"]), rtol=1e-5, atol=0)


@each_schedule
def test_min_snr_weights_equal_the_stored_ones(schedule):
    for case in GOLDEN[schedule]["min_snr"]:
        weights = min_snr_weights(snr_of(schedule), case["gamma"], is_velocity=case["v_prediction"])
        assert_equal_where_finite(weights, case["weights"])


@each_schedule
def test_debiased_weights_equal_the_stored_ones(schedule):
    for case in GOLDEN[schedule]["debiased_estimation"]:
        weights = debiased_weights(snr_of(schedule), is_velocity=case["v_prediction"])
        assert_equal_where_finite(weights, case["weights"])


@each_schedule
def test_weights_of_the_velocity_as_of_noise_equal_the_stored_ones(schedule):
    stored = GOLDEN[schedule]["scale_v_pred_loss_like_noise_pred"]
    assert_equal_where_finite(noise_like_weights(snr_of(schedule)), stored)


@each_schedule
def test_weights_of_an_added_velocity_loss_equal_the_stored_ones(schedule):
    for case in GOLDEN[schedule]["add_v_prediction_like_loss"]:
        weights = velocity_like_weights(snr_of(schedule), case["v_pred_like_loss"])
        assert_equal_where_finite(weights, case["weights"])


@each_schedule
def test_the_objective_weighs_by_its_own_schedule(schedule):
    stored = GOLDEN[schedule]
    objective = objective_of(schedule, v_parameterization=True, min_snr_gamma=5.0, debiased_estimation_loss=True)
    ones = torch.ones(len(TIMESTEPS), 1, 1, 1)
    weight = objective.terms(ones, ones, ones, ones, objective.at(TIMESTEPS)).weight
    (min_snr,) = (case for case in stored["min_snr"] if case["gamma"] == 5.0 and case["v_prediction"])
    (debiased,) = (case for case in stored["debiased_estimation"] if case["v_prediction"])
    wanted = numbers(min_snr["weights"]) * numbers(debiased["weights"])
    torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=0)


# Losses


def name_of(case):
    return ",".join(str(case[name]) for name in ("loss_type", "huber_schedule", "huber_c", "huber_scale"))


def settings_of(case):
    return LossSettings(case.get("loss_type", "huber"), case["huber_schedule"], case["huber_c"], case["huber_scale"])


@pytest.mark.parametrize("case", LOSSES["cases"], ids=name_of)
def test_loss_equals_the_stored_one(case):
    objective, timesteps = DdpmObjective(), torch.tensor(LOSSES["timesteps"])
    thresholds = huber_thresholds(settings_of(case), timesteps, objective.snr(objective.at(timesteps)))
    estimate, target = torch.tensor(LOSSES["pred"]), torch.tensor(LOSSES["target"])
    losses = elementwise_loss(estimate, target, case["loss_type"], thresholds)
    if case["threshold"] is not None:
        torch.testing.assert_close(thresholds, torch.tensor(case["threshold"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses, torch.tensor(case["none"]), rtol=1e-5, atol=1e-6)
    assert losses.mean().item() == pytest.approx(case["mean"], rel=1e-5)
    assert losses.sum().item() == pytest.approx(case["sum"], rel=1e-5)


@pytest.mark.parametrize("case", LOSSES["with_flow_match_scheduler"], ids=lambda case: case["huber_schedule"])
def test_flow_has_the_stored_thresholds_and_one_for_snr_too(case):
    objective, timesteps = FlowObjective(), torch.tensor(LOSSES["timesteps"])
    settings = LossSettings("huber", case["huber_schedule"], case.get("huber_c", 0.1), case.get("huber_scale", 1.0))
    thresholds = huber_thresholds(settings, timesteps, objective.snr(objective.at(timesteps)))
    wanted = case.get("threshold") or [0.9 * (1 - t / 1000) ** 2 + 0.1 for t in LOSSES["timesteps"]]
    torch.testing.assert_close(thresholds, torch.tensor(wanted), rtol=1e-5, atol=0)


# Noise


def given(name):
    return torch.tensor(NOISE[name])


def close(ours, stored):
    torch.testing.assert_close(ours, torch.tensor(stored), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", NOISE["apply_noise_offset"], ids=lambda case: str(case["noise_offset"]))
def test_offset_noise_equals_the_stored_one(case):
    ours = offset_noise(
        given("base_noise"), given("latents"), given("offset_draw"), case["noise_offset"], case["adaptive_noise_scale"]
    )
    close(ours, case["output"])


@pytest.mark.parametrize("case", NOISE["noisy_latents"], ids=lambda case: ",".join(case["options"]) or "plain")
def test_noisy_latents_equal_the_stored_ones(case):
    options, noise, latents = case["options"], given("base_noise"), given("latents")
    share = NOISE["uniform_draw"]
    if "noise_offset" in options:
        strength = options["noise_offset"] * (share if "noise_offset_random_strength" in options else 1)
        noise = offset_noise(noise, latents, given("offset_draw"), strength, options.get("adaptive_noise_scale"))
    close(noise, case["noise"])
    if "ip_noise_gamma" in options:
        gamma = options["ip_noise_gamma"] * (share if "ip_noise_gamma_random_strength" in options else 1)
        noise = noise + gamma * given("ip_draw")
    objective = DdpmObjective()
    close(objective.corrupt(latents, noise, objective.at(torch.tensor(case["timesteps"]))), case["noisy_latents"])


def name_of_options(case):
    return ",".join(f"{name}={value}" for name, value in case["options"].items())


@pytest.mark.parametrize("case", STATISTICS["noise"], ids=name_of_options)
def test_noise_has_the_stored_moments(case):
    noise = draw_noise(NoiseSettings(**case["options"]), range(3000), torch.zeros(3000, 4, 16, 16))
    is_random = any(name.endswith("random_strength") for name in case["options"])
    tolerance = 0.15 if is_random else 0.05
    moments = {
        "mean_square_of_effective_noise": noise.added.square().mean().item(),
        "mean_square_of_per_channel_mean_of_returned_noise": noise.target.mean((2, 3)).square().mean().item(),
    }
    assert moments == pytest.approx({name: case[name] for name in moments}, rel=tolerance)


@pytest.mark.parametrize("case", STATISTICS["multires"], ids=lambda case: str(case["iterations"]))
def test_coarse_noise_has_the_stored_moments(case):
    iterations, discount = case["iterations"], case["discount"]
    batch, *shape = case["shape"]
    stds, spreads = [], []
    for first in range(0, 800 * batch, batch):
        seeds = range(first, first + batch)
        coarse = [coarse_noise(seed, shape, iterations=iterations, discount=discount) for seed in seeds]
        plain = torch.randn(case["shape"], generator=torch.Generator().manual_seed(first))
        noise = with_unit_deviation(plain + torch.stack(coarse))
        stds.append(noise.std().item())
        spreads.append(noise.mean((2, 3)).std().item())
    assert math.fsum(stds) / len(stds) == pytest.approx(case["std"], rel=0.05)
    assert math.fsum(spreads) / len(spreads) == pytest.approx(case["mean_std_of_channel_means"], rel=0.05)


# What a training calls


def losses_of(case, objective, *, mask=None, loss_weights=None):
    """`compute_loss` with noise and latents for which the target is the stored one."""
    timesteps = torch.tensor(LOSSES["timesteps"])
    draw = objective.at(timesteps)
    target, latents = torch.tensor(LOSSES["target"]), torch.tensor(LOSSES["pred"]).flip(0)
    noise = target
    if objective.v_parameterization:  # v = signal * noise - deviation * latents
        deviation = draw.sigmas.view(-1, 1, 1, 1)
        noise = (target + deviation * latents) / (1 - deviation**2).sqrt()
    return compute_loss(
        latents,
        noise,
        draw,
        lambda noisy_latents, timesteps: torch.tensor(LOSSES["pred"]),
        objective,
        loss=settings_of(case),
        mask=mask,
        loss_weights=loss_weights,
    )


@pytest.mark.parametrize("is_velocity", [False, True], ids=["noise", "velocity"])
@pytest.mark.parametrize("case", LOSSES["cases"], ids=name_of)
def test_loss_of_a_step_is_the_stored_one_with_mask_prior_weight_and_min_snr(case, is_velocity):
    objective = DdpmObjective(v_parameterization=is_velocity, min_snr_gamma=5.0, debiased_estimation_loss=True)
    stored, timesteps = torch.tensor(case["none"]), torch.tensor(LOSSES["timesteps"])
    assert losses_of(case, DdpmObjective(v_parameterization=is_velocity)).mean().item() == pytest.approx(
        case["mean"], rel=1e-5
    )
    mask = torch.rand(len(stored), 1, *stored.shape[2:], generator=torch.Generator().manual_seed(0))
    prior = torch.linspace(0.5, 1.0, len(stored))
    snr = objective.snr(objective.at(timesteps))
    wanted = (stored * mask).mean((1, 2, 3)) * prior
    wanted *= min_snr_weights(snr, 5.0, is_velocity=is_velocity) * debiased_weights(snr, is_velocity=is_velocity)
    torch.testing.assert_close(losses_of(case, objective, mask=mask, loss_weights=prior), wanted, rtol=1e-5, atol=1e-7)


def test_a_step_is_taken_from_the_stored_noisy_latents():
    for case in NOISE["noisy_latents"]:
        seen = []
        objective, noise = DdpmObjective(), torch.tensor(case["noise"])
        draw, added = objective.at(torch.tensor(case["timesteps"])), None
        if "ip_noise_gamma" in case["options"]:
            share = NOISE["uniform_draw"] if "ip_noise_gamma_random_strength" in case["options"] else 1
            added = noise + case["options"]["ip_noise_gamma"] * share * given("ip_draw")
        compute_loss(
            given("latents"),
            noise,
            draw,
            lambda latents, timesteps, seen=seen: seen.append(latents) or latents,
            objective,
            loss=LossSettings(),
            added_noise=added,
        )
        close(seen[0], case["noisy_latents"])
