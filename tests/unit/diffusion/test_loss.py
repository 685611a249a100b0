"""Point losses, thresholds and reduction, by hand."""

import pytest
import torch

from library.diffusion.loss import LOSS_TYPES, LossSettings, elementwise_loss, huber_thresholds, reduce_per_sample
from library.diffusion.objective import FlowObjective
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


def test_in_a_flow_the_snr_threshold_falls_with_the_square_of_the_signal():
    objective, settings = FlowObjective(), LossSettings("huber", "snr", 0.2)
    draw = objective.at(torch.tensor([0, 250, 500, 1000]))
    thresholds = huber_thresholds(settings, draw.timesteps, objective.snr(draw))
    torch.testing.assert_close(thresholds, torch.tensor([1, 0.8 * 0.5625 + 0.2, 0.8 * 0.25 + 0.2, 0.2]))


def test_the_snr_threshold_has_no_factor():
    timesteps, snr = torch.tensor([100.0, 900.0]), torch.tensor([3.0, 0.1])
    plain, scaled = (huber_thresholds(LossSettings("huber", "snr", 0.1, f), timesteps, snr) for f in (1.0, 7.0))
    assert torch.equal(plain, scaled)


def test_the_snr_schedule_needs_ratios():
    with pytest.raises(ValueError, match="signal-to-noise"):
        huber_thresholds(LossSettings("huber", "snr"), torch.tensor([5.0]))


@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
def test_the_snr_schedule_trains_at_both_ends_of_a_flow(loss_type):
    objective, estimate = FlowObjective(), torch.full((2, 1, 2, 2), 0.5, requires_grad=True)
    draw = objective.at(torch.tensor([0, 1000]))
    thresholds = huber_thresholds(LossSettings(loss_type, "snr"), draw.timesteps, objective.snr(draw))
    elementwise_loss(estimate, torch.zeros(2, 1, 2, 2), loss_type, thresholds).sum().backward()
    assert estimate.grad.isfinite().all() and (estimate.grad > 0).all()


def test_losses_of_half_precision_are_float32():
    estimate, target = ESTIMATE.to(torch.bfloat16), torch.full_like(ESTIMATE, 1 / 3)
    for loss_type in LOSS_TYPES:
        loss = elementwise_loss(estimate, target, loss_type, THRESHOLDS)
        assert torch.equal(loss, elementwise_loss(ESTIMATE, target, loss_type, THRESHOLDS))


# Masks and weights


def test_a_white_mask_changes_nothing():
    elements, weight = torch.rand(2, 3, 4, 4), torch.tensor([0.5, 2.0])
    assert torch.equal(reduce_per_sample(elements, weight, torch.ones(2, 1, 4, 4)), reduce_per_sample(elements, weight))


def test_no_gradient_comes_from_behind_a_mask():
    estimate = torch.randn(2, 3, 4, 4, requires_grad=True)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :, 2:] = 1
    elements = elementwise_loss(estimate, torch.zeros(2, 3, 4, 4), "l2", THRESHOLDS)
    reduce_per_sample(elements, torch.ones(2), mask).sum().backward()
    assert ((estimate.grad != 0) == mask.bool().expand_as(estimate)).all()


def test_each_sample_has_its_own_mask_and_weight():
    elements, weight, mask = torch.rand(3, 2, 4, 4), torch.tensor([1.0, 0.0, 3.0]), torch.rand(3, 1, 4, 4)
    together = reduce_per_sample(elements, weight, mask)
    alone = [reduce_per_sample(elements[i : i + 1], weight[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert together[1] == 0


def test_a_black_mask_is_a_loss_of_0():
    assert reduce_per_sample(torch.rand(1, 2, 4, 4), torch.ones(1), torch.zeros(1, 1, 4, 4)).item() == 0


def test_mask_lowers_the_loss_because_all_elements_count():
    elements = torch.ones(2, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert reduce_per_sample(elements, torch.tensor([2.0, 3.0]), mask).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"loss_type": "l3"}, "--loss_type l3"),
        ({"loss_type": "huber", "huber_schedule": "linear"}, "--huber_schedule linear"),
        ({"loss_type": "huber", "huber_c": 0.0}, "--huber_c"),
        ({"loss_type": "smooth_l1", "huber_scale": -1.0}, "--huber_scale"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, flag):
    with pytest.raises(OptionError, match=flag):
        LossSettings(**settings)


def test_schedule_does_not_matter_without_a_threshold():
    assert not LossSettings("l2", "linear").has_threshold
    assert huber_thresholds(LossSettings("l2", "snr"), torch.tensor([5.0])).isfinite().all()
