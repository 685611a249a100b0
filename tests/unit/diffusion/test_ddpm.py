"""The objective of SD 1.x, SD 2.x and SDXL: what is compared, at the ends of the noise range, with which weight."""

import dataclasses

import pytest
import torch

from library.diffusion.betas import BetaSchedule
from library.diffusion.ddpm import (
    DdpmObjective,
    debiased_weights,
    min_snr_weights,
    noise_like_weights,
    velocity_like_weights,
)
from library.diffusion.loss import LossSettings, reduce_per_sample
from library.errors import OptionError
from library.training.stepping.step import OutputPreservation, compute_loss

SNR = torch.tensor([2000.0, 1.0, 0.1, 0.0])
L2 = LossSettings()


def latents_and_noise(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 4, 6, generator=generator).to(dtype) for _ in range(2)]


def terms_of(objective, timesteps, prediction, dtype=torch.float32):
    latents, noise = latents_and_noise(dtype)
    draw = objective.at(torch.tensor(timesteps))
    noisy = objective.corrupt(latents, noise, draw)
    return noisy, objective.terms(prediction, latents, noise, noisy, draw)


def test_the_target_is_the_noise():
    _, noise = latents_and_noise()
    _, terms = terms_of(DdpmObjective(), [3, 900], noise)
    assert torch.equal(terms.target, noise) and torch.equal(terms.estimate, noise)


def test_velocity_and_noisy_latents_give_back_latents_and_noise():
    objective = DdpmObjective(v_parameterization=True)
    latents, noise = latents_and_noise()
    noisy, terms = terms_of(objective, [3, 900], latents)
    sigmas = objective.at(torch.tensor([3, 900])).sigmas.view(-1, 1, 1, 1)
    signal = (1 - sigmas**2).sqrt()
    torch.testing.assert_close(signal * noisy - sigmas * terms.target, latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(sigmas * noisy + signal * terms.target, noise, atol=1e-4, rtol=0)


def test_zero_terminal_snr_ends_in_noise_and_a_velocity_of_minus_the_latents():
    objective = DdpmObjective(v_parameterization=True, zero_terminal_snr=True)
    latents, noise = latents_and_noise()
    noisy, terms = terms_of(objective, [999, 999], latents)
    assert torch.equal(noisy, noise)
    assert torch.equal(terms.target, -latents)
    assert objective.at(torch.tensor([999])).sigmas.tolist() == [1]


def test_zero_terminal_snr_leaves_the_first_step_as_it_is():
    first = torch.tensor([0])
    kept = [objective.at(first).sigmas for objective in (DdpmObjective(), DdpmObjective(zero_terminal_snr=True))]
    torch.testing.assert_close(*kept)


def test_everything_is_float32_for_half_precision_inputs():
    noisy, terms = terms_of(DdpmObjective(v_parameterization=True), [1, 2], torch.zeros(2, 2, 4, 6), torch.bfloat16)
    assert {tensor.dtype for tensor in (noisy, terms.estimate, terms.target, terms.weight)} == {torch.float32}


def test_weights_of_noise_prediction_by_hand():
    torch.testing.assert_close(min_snr_weights(SNR, 5.0, is_velocity=False), torch.tensor([0.0025, 1, 1, 1]))
    torch.testing.assert_close(velocity_like_weights(SNR, 2.0)[:3], torch.tensor([3.002, 5, 23]))
    torch.testing.assert_close(debiased_weights(SNR, is_velocity=False)[:3], torch.tensor([0.0316228, 1, 3.162278]))


def test_weights_of_the_velocity_by_hand():
    torch.testing.assert_close(min_snr_weights(SNR, 5.0, is_velocity=True), torch.tensor([5 / 2001, 0.5, 1 / 11, 0]))
    torch.testing.assert_close(noise_like_weights(SNR), torch.tensor([1000 / 1001, 0.5, 1 / 11, 0]))
    torch.testing.assert_close(debiased_weights(SNR, is_velocity=True), torch.tensor([1 / 1001, 0.5, 1 / 1.1, 1]))


def test_all_weights_multiply_each_other():
    objective = DdpmObjective(min_snr_gamma=5.0, v_pred_like_loss=0.5, debiased_estimation_loss=True)
    wanted = min_snr_weights(SNR, 5.0, is_velocity=False)
    wanted = wanted * velocity_like_weights(SNR, 0.5) * debiased_weights(SNR, is_velocity=False)
    torch.testing.assert_close(objective.weights(SNR), wanted)


def test_weights_before_the_mean_are_the_loss_changed_one_after_the_other():
    objective = DdpmObjective(min_snr_gamma=5.0, v_pred_like_loss=0.5, debiased_estimation_loss=True)
    snr = SNR[:3]
    elements, mask = torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4)
    loss = (elements * mask).mean((1, 2, 3))
    loss = loss * snr.clamp(max=5) / snr
    capped = snr.clamp(max=1000)
    loss = loss + 0.5 * loss * (capped + 1) / capped
    loss = loss / capped.sqrt()
    torch.testing.assert_close(reduce_per_sample(elements, objective.weights(snr), mask), loss)


def test_without_options_every_weight_is_1():
    assert DdpmObjective().weights(SNR).tolist() == [1, 1, 1, 1]
    assert DdpmObjective(min_snr_gamma=0.0, v_pred_like_loss=0.0).weights(SNR).tolist() == [1, 1, 1, 1]


def test_the_whole_loss_of_noise_prediction():
    objective = DdpmObjective(min_snr_gamma=5.0)
    latents, noise = latents_and_noise()
    draw = objective.at(torch.tensor([10, 700]))
    losses = compute_loss(latents, noise, draw, lambda x, t: 0.5 * x, objective, loss=L2)
    noisy = objective.corrupt(latents, noise, draw)
    snr = objective.snr(draw)
    torch.testing.assert_close(losses, (0.5 * noisy - noise).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr)


def test_a_preserved_sample_has_no_loss_while_the_model_is_unchanged():
    objective = DdpmObjective(v_parameterization=True)
    latents, noise = latents_and_noise()

    def predict(noisy_latents, timesteps):
        return 0.5 * noisy_latents

    kept = OutputPreservation(torch.arange(2), predict)
    draw = objective.at(torch.tensor([10, 700]))
    assert compute_loss(latents, noise, draw, predict, objective, loss=L2, preservation=kept).abs().max() == 0


def test_draws_cover_every_timestep_and_no_other():
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert DdpmObjective().draw(uniform, uniform).timesteps.tolist() == list(range(1000))
    uniform = torch.tensor([0.0, 0.49, 0.51, 1 - 2**-24])
    assert DdpmObjective(min_timestep=900).draw(uniform, uniform).timesteps.tolist() == [900, 949, 951, 999]


@pytest.mark.parametrize(("end", "expected"), [(300, 300), (1000, 999)])
def test_equal_ends_fix_the_timestep(end, expected):
    objective = DdpmObjective(min_timestep=end, max_timestep=end)
    assert objective.draw(torch.rand(5), torch.randn(5)).timesteps.tolist() == [expected] * 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_timestep": 500, "max_timestep": 400}, "--min_timestep 500 and --max_timestep 400"),
        ({"max_timestep": 1001}, "--max_timestep 1001"),
        ({"min_snr_gamma": -1.0}, "--min_snr_gamma must be at least 0, got -1.0"),
        ({"v_pred_like_loss": float("nan")}, "--v_pred_like_loss must be at least 0, got nan"),
        ({"scale_v_pred_loss_like_noise_pred": True}, "--scale_v_pred_loss_like_noise_pred needs --v_parameterization"),
        (
            {"v_pred_like_loss": 0.1, "v_parameterization": True},
            "--v_pred_like_loss and --v_parameterization exclude each other",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(settings, words):
    with pytest.raises(OptionError, match=words):
        DdpmObjective(**settings)


def test_objective_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DdpmObjective().min_snr_gamma = 3.0


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "exp"}, {"first": 0.0}, {"last": 1.0}, {"values": (0.1,) * 999}, {"values": (0.1,) * 999 + (1.0,)}],
)
def test_a_schedule_of_an_unknown_kind_or_with_betas_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be (one of|between|1000)"):
        BetaSchedule(**wrong)
