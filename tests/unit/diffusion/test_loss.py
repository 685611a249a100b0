"""Point losses, thresholds and reduction, by hand."""

import pytest
import torch

from library.diffusion.loss import LossSettings, elementwise_loss, huber_thresholds, reduce_per_sample
from library.errors import OptionError

ESTIMATE = torch.tensor([[[[1.0, -2.0]]], [[[0.0, 3.0]]]])  # [2, 1, 1, 2]
THRESHOLDS = torch.tensor([0.5, 2.0])


def losses(loss_type):
    return elementwise_loss(ESTIMATE, torch.zeros_like(ESTIMATE), loss_type, THRESHOLDS).flatten()


def test_l2_and_l1():
    assert losses("l2").tolist() == [1, 4, 0, 9]
    assert losses("l1").tolist() == [1, 2, 0, 3]


def test_huber_and_smooth_l1_use_each_samples_threshold():
    d, c = torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.5, 0.5, 2.0, 2.0])
    wanted = 2 * ((d**2 + c**2).sqrt() - c)
    torch.testing.assert_close(losses("smooth_l1"), wanted)
    torch.testing.assert_close(losses("huber"), c * wanted)


def test_huber_is_quadratic_for_small_differences():
    small = torch.full((1, 1, 1, 1), 1e-5)
    loss = elementwise_loss(small, torch.zeros_like(small), "huber", torch.tensor([0.1]))
    assert loss.item() == pytest.approx(1e-10, rel=1e-4)


def test_gradient_is_finite_at_no_difference():
    estimate = torch.zeros(1, 1, 2, 2, requires_grad=True)
    elementwise_loss(estimate, torch.zeros(1, 1, 2, 2), "huber", torch.tensor([0.1])).sum().backward()
    assert estimate.grad.abs().max() == 0


def test_thresholds_follow_their_schedule():
    timesteps = torch.tensor([0.0, 500.0, 1000.0])
    constant = huber_thresholds(LossSettings("huber", "constant", 0.01, 2.0), timesteps)
    falling = huber_thresholds(LossSettings("huber", "exponential", 0.01, 2.0), timesteps)
    torch.testing.assert_close(constant, torch.tensor([0.02, 0.02, 0.02]))
    torch.testing.assert_close(falling, torch.tensor([2.0, 0.2, 0.02]))


def test_mask_lowers_the_loss_because_all_elements_count():
    elements = torch.ones(2, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert reduce_per_sample(elements, torch.tensor([2.0, 3.0]), mask).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"loss_type": "l3"}, "--loss_type l3"),
        ({"loss_type": "huber", "huber_schedule": "snr"}, "--huber_schedule snr"),
        ({"loss_type": "huber", "huber_c": 0.0}, "--huber_c"),
        ({"loss_type": "smooth_l1", "huber_scale": -1.0}, "--huber_scale"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, flag):
    with pytest.raises(OptionError, match=flag):
        LossSettings(**settings)


def test_schedule_does_not_matter_without_a_threshold():
    assert not LossSettings("l2", "snr").has_threshold
