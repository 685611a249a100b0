"""From the options of a script to the objective of a U-Net."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from library.diffusion.ddpm import DdpmObjective
from library.diffusion.noise import NoiseSettings
from library.errors import OptionError
from library.families.unet.objective import NOISE, SCHEDULE_AND_WEIGHTS, make_objective, noise_settings
from library.options.groups.loss import LossOptions
from library.options.groups.model import ModelOptions

GIVEN = {
    "min_timestep": 10,
    "max_timestep": 900,
    "zero_terminal_snr": True,
    "min_snr_gamma": 5.0,
    "scale_v_pred_loss_like_noise_pred": True,
    "debiased_estimation_loss": True,
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.02,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.2,
    "ip_noise_gamma": 0.05,
    "ip_noise_gamma_random_strength": True,
}


def options(**loss):
    return SimpleNamespace(model=ModelOptions(v_parameterization=True), loss=LossOptions(**loss))


def test_every_option_arrives_in_the_objective():
    objective = make_objective(noise_settings(options(**GIVEN)))
    assert objective.v_parameterization
    for name, value in GIVEN.items():
        assert getattr(objective.noise_settings if name in NOISE else objective, name) == value


def test_what_is_not_given_is_plain():
    assert make_objective(noise_settings(options())) == DdpmObjective(v_parameterization=True)
    assert make_objective({}) == DdpmObjective()


def test_no_setting_of_the_objective_but_the_schedule_of_a_folder_is_without_an_option():
    elsewhere = {"noise_settings", "schedule", "v_parameterization"}
    assert {field.name for field in dataclasses.fields(DdpmObjective)} - elsewhere == set(SCHEDULE_AND_WEIGHTS)
    assert {field.name for field in dataclasses.fields(NoiseSettings)} == set(NOISE)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(OptionError, match="v_pred_like_loss and --v_parameterization exclude"):
        make_objective(noise_settings(options(v_pred_like_loss=1.0)))
