"""fp16 with loss scaling, as on a GPU: accelerate gives the CPU no scaler, so these runs bring torch's own."""

import accelerate
import pytest
import torch

from sd3_train_network import Sd3NetworkTrainer

START_SCALE = 2.0**10
FP16 = ("--mixed_precision=fp16", "--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")


class ScalingAccelerator(accelerate.Accelerator):
    """As on a GPU: autocast and loss scaling in fp16."""

    def __init__(self, **options):
        super().__init__(**options)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=START_SCALE)


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setattr(accelerate, "Accelerator", ScalingAccelerator)


@pytest.fixture
def snapshots(monkeypatch):
    """The trained weights after every step."""
    taken = []

    def after_step(self):
        taken.append(torch.cat([p.detach().float().reshape(-1) for p in self.network.parameters()]))

    monkeypatch.setattr(Sd3NetworkTrainer, "after_step", after_step)
    return taken


def spoil_gradients_of_step(monkeypatch, number):
    """Put inf into one gradient of that step, counted from 1, as an overflow does."""
    import library.training.sharding.unsharded as unsharded

    calls, real = [], unsharded.shared_gradients

    def shared_gradients(parameters):
        gradients = real(parameters)
        calls.append(1)
        if len(calls) == number:
            gradients[0].view(-1)[0] = torch.inf
        return gradients

    monkeypatch.setattr(unsharded, "shared_gradients", shared_gradients)


def furthest(weights):
    """The furthest that a weight of `up` has gone from zero."""
    return max(tensor.float().abs().max().item() for name, tensor in weights.items() if "lora_up" in name)


def test_scaled_fp16_trains_about_what_float32_trains(training, dataset, monkeypatch):
    full = training.unet_only(dataset, "--max_train_steps=6", "--learning_rate=3e-3")
    monkeypatch.setattr(accelerate, "Accelerator", ScalingAccelerator)
    scaled = training.run(dataset, "--max_train_steps=6", "--learning_rate=3e-3", *FP16)
    assert scaled.losses == pytest.approx(full.losses, rel=0.02)
    assert scaled.losses != full.losses
    assert furthest(scaled.weights) == pytest.approx(furthest(full.weights), rel=0.2)
    assert {tensor.dtype for tensor in scaled.weights.values()} == {torch.float32}


def first_gradient(training, dataset, *flags):
    """Norm of the gradient as it reaches the weights; AdamW divides it by 1e4 here, and hardly by itself."""
    run = training.unet_only(dataset, "--max_train_steps=1", *flags, "--optimizer_args", "eps=1e4")
    up = [tensor for name, tensor in run.weights.items() if "lora_up" in name]
    return 1e4 / 1e-3 * torch.cat([tensor.reshape(-1) for tensor in up]).norm().item()


def test_clipping_and_the_optimizer_get_gradients_without_the_scale(training, dataset, monkeypatch):
    full = first_gradient(training, dataset, "--max_grad_norm=0")
    monkeypatch.setattr(accelerate, "Accelerator", ScalingAccelerator)
    assert first_gradient(training, dataset, "--max_grad_norm=0", *FP16) == pytest.approx(full, rel=0.02)
    for limit in (0.5 * full, 0.01 * full):
        assert first_gradient(training, dataset, f"--max_grad_norm={limit}", *FP16) == pytest.approx(limit, rel=1e-3)
    assert first_gradient(training, dataset, f"--max_grad_norm={2 * full}", *FP16) == pytest.approx(full, rel=0.02)


FULL = ("--full_fp16", "--optimizer_args", "eps=1e-4")


@pytest.mark.parametrize("limit", ["--max_grad_norm=1", "--max_grad_norm=0"])
@pytest.mark.parametrize("flags", [(), FULL], ids=["mixed", "full"])
def test_step_with_an_overflow_is_left_out_and_training_goes_on(
    training, dataset, scaled, snapshots, monkeypatch, flags, limit
):
    spoil_gradients_of_step(monkeypatch, 2)
    run = training.run(dataset, "--max_train_steps=4", limit, *FP16, *flags)
    assert run.trainer.accelerator.scaler.get_scale() == START_SCALE / 2
    first, second, third, fourth = snapshots
    assert torch.equal(second, first)
    assert not torch.equal(third, second) and not torch.equal(fourth, third)
    assert fourth.isfinite().all() and len(run.losses) == 4
    assert furthest(run.weights) > 1e-3
    factors = {tensor.dtype for name, tensor in run.weights.items() if not name.endswith("alpha")}
    assert factors == {torch.float16 if flags else torch.float32}


def test_a_run_that_overflows_for_ever_ends_as_diverged(training, dataset, scaled, monkeypatch):
    """No scale helps where the gradients themselves are not finite."""
    import library.training.sharding.unsharded as unsharded
    import library.training.stepping.optimizer_step as optimizer_step
    from library.errors import DivergedError

    calls, real = [], unsharded.shared_gradients

    def shared_gradients(parameters):
        gradients = real(parameters)
        calls.append(1)
        if len(calls) > 2:
            gradients[0].view(-1)[0] = torch.nan
        return gradients

    monkeypatch.setattr(unsharded, "shared_gradients", shared_gradients)
    monkeypatch.setattr(optimizer_step, "MAX_OVERFLOWS", 4)
    with pytest.raises(DivergedError, match="3 steps in a row up to step 9"):
        training.run(dataset, *FP16, "--max_train_steps=40", "--max_bad_steps=3")
