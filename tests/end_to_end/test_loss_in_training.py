"""Options of the loss in a short training."""

import pytest

STEPS = "--max_train_steps=3"


def test_huber_trains_with_the_schedule_that_is_the_default(training):
    dataset = training.dataset(training.pictures())
    default = training.unet_only(dataset, STEPS, "--loss_type=huber")
    named = training.unet_only(dataset, STEPS, "--loss_type=huber", "--huber_schedule=snr")
    other = training.unet_only(dataset, STEPS, "--loss_type=huber", "--huber_schedule=constant")
    assert default.losses == named.losses
    assert default.losses != pytest.approx(other.losses, rel=1e-3)
