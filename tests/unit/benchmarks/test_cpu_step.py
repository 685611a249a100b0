"""The benchmark measures what it says: loops that train the same, and the trainer's own step."""

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import cpu_step
from benchmarks.plain_loop import Example, frozen_step, lora_step
from library.models.mmdit import MMDiT, MMDiTConfig

CONFIG = MMDiTConfig(depth=2, num_heads=2, context_dim=24, pooled_dim=20, position_side=4)


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 16, 8, 8), (1, 5, 24), (1, 20))
    return Example(*(torch.randn(shape, generator=generator) for shape in shapes))


def model():
    torch.manual_seed(0)
    return MMDiT(CONFIG).requires_grad_(False)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_the_written_out_gradients_are_those_of_autograd(example):
    outcomes = []
    for is_naive in (False, True):
        network = model()
        step = lora_step(network, example, is_naive=is_naive)
        torch.manual_seed(2)
        for _ in range(3):
            step()
        outcomes.append(trained(network))
    assert len(outcomes[0]) == 34  # two factors for each of 17 layers
    for ours, naive in zip(*outcomes, strict=True):
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-6)


def test_the_frozen_model_trains_nothing_and_runs_backward(example):
    network, tokens = model(), []
    step = frozen_step(network, example)
    network.x_embedder.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    step()
    assert not trained(network)
    assert tokens[0].grad.abs().max() > 0


@pytest.fixture
def _no_accelerator_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_no_accelerator_left")
def test_all_variants_step_on_the_trainers_own_model(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_step, "SIDE", 64)
    trainer = cpu_step.start_trainer(tmp_path, 2, "no")
    steps = cpu_step.variants(trainer)
    seconds = cpu_step.measure(steps, rounds=2, repeats=1)
    assert trainer.step == 4 and len(trainer.loss_history) == 3  # two to warm up; a loss is read one step late
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(steps, 2)


def test_what_was_not_measured_is_compared_with_nothing():
    seconds = {cpu_step.REAL: [2.0, 3.0, 4.0], cpu_step.PLAIN: [1.0, 1.0, 2.0]}
    assert cpu_step.ratio(seconds, cpu_step.REAL, cpu_step.PLAIN).startswith("2.00 ")
    assert cpu_step.ratio(seconds, cpu_step.REAL, cpu_step.FROZEN) == "-"
