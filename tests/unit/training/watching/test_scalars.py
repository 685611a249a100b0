"""Names and numbers that trackers get."""

import math

from library.training.watching.loss_records import TimestepBin
from library.training.watching.scalars import epoch_scalars, step_scalars, validation_scalars


def test_a_step_has_the_names_that_users_know():
    assert step_scalars(
        loss=0.5,
        average=0.4,
        rates={"unet": 1e-4, "textencoder": 1e-5},
        effective_rates={"unet": 2e-4},
        norms={"avg_grad_norm": 0.3, "avg_key_norm": 0.2},
        max_norm={"keys_scaled": 3, "max_key_norm": 0.9},
    ) == {
        "loss/current": 0.5,
        "loss/average": 0.4,
        "lr/unet": 1e-4,
        "lr/textencoder": 1e-5,
        "lr/d*lr/unet": 2e-4,
        "norm/avg_grad_norm": 0.3,
        "norm/avg_key_norm": 0.2,
        "max_norm/keys_scaled": 3.0,
        "max_norm/max_key_norm": 0.9,
    }


def test_what_is_not_known_or_not_finite_is_left_out():
    assert step_scalars(loss=math.nan, average=None, rates={"unet": 1.0}, norms={"avg_grad_norm": math.inf}) == {
        "lr/unet": 1.0
    }


def test_an_epoch_has_its_mean_and_its_timesteps():
    bins = [TimestepBin(0, 100, 9, 0.7, 2, 0.5), TimestepBin(100, 200, 3, 0.6, 0, None)]
    assert epoch_scalars(0.25, bins) == {"loss/epoch_average": 0.25, "loss/timestep/000-100": 0.5}


def test_divergence_is_what_validation_is_above_training():
    assert validation_scalars(0.5, 0.375, is_epoch_end=True) == {
        "loss/validation/epoch_average": 0.5,
        "loss/validation/epoch_divergence": 0.125,
    }
    assert validation_scalars(0.5, None, is_epoch_end=False) == {"loss/validation/step_average": 0.5}
