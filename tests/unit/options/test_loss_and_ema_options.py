"""Options of the loss and of averaged weights: which have a meaning for a flow, and which beside which."""

import shlex
from dataclasses import fields

import pytest

from library.families.sd3.options import IGNORED, NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.groups import LossOptions
from library.options.spec import parse_options

NEEDED = "--pretrained_model_name_or_path=sd3.safetensors --dataset_config=d.toml --output_dir=out "
NEEDED += "--network_module=networks.lora "
OF_A_FLOW = {
    *("loss_type", "huber_schedule", "huber_c", "huber_scale"),
    *("min_timestep", "max_timestep", "prior_loss_weight", "masked_loss"),
}
OTHERS = {
    "noise_offset": "0.1",
    "noise_offset_random_strength": None,
    "adaptive_noise_scale": "0.1",
    "multires_noise_iterations": "6",
    "multires_noise_discount": "0.5",
    "ip_noise_gamma": "0.1",
    "ip_noise_gamma_random_strength": None,
    "zero_terminal_snr": None,
    "min_snr_gamma": "5",
    "scale_v_pred_loss_like_noise_pred": None,
    "v_pred_like_loss": "0.5",
    "debiased_estimation_loss": None,
}


def warnings_of(command):
    return parse_options(Sd3NetworkOptions, shlex.split(NEEDED + command), **NETWORK_SCRIPT).warnings


def test_each_option_of_the_loss_has_a_meaning_for_sd3_or_is_ignored_with_a_reason():
    assert {item.name for item in fields(LossOptions)} - set(IGNORED) == OF_A_FLOW
    assert set(OTHERS) <= set(IGNORED)


def test_all_options_without_meaning_are_one_warning():
    (line,) = warnings_of(" ".join(f"--{name}" + f"={value}" * (value is not None) for name, value in OTHERS.items()))
    assert all(f"--{name}" in line for name in OTHERS)
    assert "SD3 predicts the flow" in line


@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
def test_huber_with_the_default_schedule_has_no_warning(loss_type):
    assert warnings_of(f"--loss_type={loss_type} --huber_c=0.2") == ()


@pytest.mark.parametrize(
    ("command", "flags", "reason"),
    [
        ("--huber_c=0.2 --huber_schedule=constant", "--huber_schedule, --huber_c", "only --loss_type huber and"),
        ("--loss_type=huber --huber_scale=2", "--huber_scale", "only --huber_schedule constant and exponential use it"),
        ("--ema_device=cpu", "--ema_device", "only --ema_decay uses it"),
    ],
)
def test_options_without_effect_are_named(command, flags, reason):
    (line,) = warnings_of(command)
    assert line.startswith(f"Options without effect here: {flags} (")
    assert reason in line


@pytest.mark.parametrize(
    "command", ["--loss_type=huber --huber_scale=2 --huber_schedule=exponential", "--ema_decay=0.99 --ema_device=cpu"]
)
def test_what_has_an_effect_is_no_warning(command):
    assert warnings_of(command) == ()


def test_averaging_is_off_and_beside_the_weights_unless_told_otherwise():
    options = parse_options(Sd3NetworkOptions, shlex.split(NEEDED), **NETWORK_SCRIPT)
    assert options.ema.ema_decay is None and options.ema.ema_device == "gpu"
