"""The loss of a batch as a pure function."""

import torch

from library.diffusion.loss import LossSettings
from library.diffusion.objective import FlowObjective
from library.training.stepping.step import OutputPreservation, compute_loss

OBJECTIVE = FlowObjective(weighting_scheme="sigma_sqrt")
LOSS = LossSettings()


def inputs(batch=3):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 2, 4, 4, generator=generator)
    noise = torch.randn(batch, 2, 4, 4, generator=generator)
    draw = OBJECTIVE.draw(torch.rand(batch, generator=generator), torch.randn(batch, generator=generator))
    return latents, noise, draw


def predict(noisy_latents, timesteps):
    return 0.5 * noisy_latents


def test_inputs_are_not_written_to():
    latents, noise, draw = inputs()
    weights, mask = torch.tensor([1.0, 0.5, 2.0]), torch.rand(3, 1, 4, 4)
    tensors = [latents, noise, draw.timesteps, draw.sigmas, weights, mask]
    before = [tensor.clone() for tensor in tensors]
    compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS, loss_weights=weights, mask=mask)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


def test_a_sample_has_the_same_loss_alone_and_in_a_batch():
    latents, noise, draw = inputs()
    together = compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS)
    for i in range(3):
        part = type(draw)(draw.timesteps[i : i + 1], draw.sigmas[i : i + 1])
        alone = compute_loss(latents[i : i + 1], noise[i : i + 1], part, predict, OBJECTIVE, loss=LOSS)
        torch.testing.assert_close(alone[0], together[i])


def test_sample_weights_multiply_each_loss():
    latents, noise, draw = inputs()
    plain = compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS)
    weights = torch.tensor([0.0, 0.5, 2.0])
    weighted = compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS, loss_weights=weights)
    torch.testing.assert_close(weighted, plain * weights)


def test_with_sigma_sqrt_the_loss_is_that_of_the_velocity():
    latents, noise, draw = inputs()
    losses = compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS)
    noisy = OBJECTIVE.corrupt(latents, noise, draw)
    velocity_loss = (predict(noisy, None) - (noise - latents)).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(losses, velocity_loss, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_weights_inside_predict():
    latents, noise, draw = inputs()
    weight = torch.nn.Parameter(torch.tensor(0.5))
    compute_loss(latents, noise, draw, lambda x, t: weight * x, OBJECTIVE, loss=LOSS).mean().backward()
    assert weight.grad is not None and weight.grad.isfinite()


def test_preserved_samples_are_compared_with_the_unchanged_model():
    latents, noise, draw = inputs()
    rows = torch.tensor([2, 0])

    def unchanged(noisy_latents, timesteps):
        assert torch.equal(timesteps, draw.timesteps[rows])
        return 0.2 * noisy_latents

    plain = compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS)
    kept = compute_loss(
        latents, noise, draw, predict, OBJECTIVE, loss=LOSS, preservation=OutputPreservation(rows, unchanged)
    )
    noisy = OBJECTIVE.corrupt(latents, noise, draw)
    expected = (0.3 * noisy).pow(2).mean((1, 2, 3))  # sigma_sqrt: the difference of the two velocities
    torch.testing.assert_close(kept[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept[1], plain[1])


def test_a_preserved_sample_has_no_loss_while_the_model_is_unchanged():
    latents, noise, draw = inputs()
    kept = OutputPreservation(torch.arange(3), predict)
    assert compute_loss(latents, noise, draw, predict, OBJECTIVE, loss=LOSS, preservation=kept).abs().max() == 0
