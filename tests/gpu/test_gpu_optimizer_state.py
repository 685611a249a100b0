"""States of optimizers whose numbers lie on a GPU, or in memory that is paged between GPU and host."""

import pytest
import torch

from library.training.optimization.optimizer_kinds import find_optimizer
from library.training.optimization.optimizer_modes import evaluation_weights
from library.training.optimization.optimizer_state import load_optimizer_state, optimizer_state
from library.training.optimization.optimizers import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
NAMES = (
    *("AdamW", "SGDNesterov", "Adagrad", "AdamW8bit", "PagedAdamW8bit", "PagedAdamW", "PagedLion8bit"),
    *("Adafactor", "Lion", "Prodigy", "DAdaptAdam", "AdamWScheduleFree"),
)
SHAPES = ((400, 300), (4, 3))  # the first is large enough to be paged


def weights_like(values=None):
    generator = torch.Generator().manual_seed(0)
    values = values or [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [torch.nn.Parameter(value.detach().clone().to("cuda")) for value in values]


def build(name, weights):
    pytest.importorskip(find_optimizer(name).module)
    return make_optimizer(name, [{"params": weights[:1]}, {"params": weights[1:]}], learning_rate=1e-2)


def train(optimizer, weights, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to("cuda")
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_and_three_more_are_six(name, tmp_path):
    unbroken, weights = weights_like(), weights_like()
    train(build(name, unbroken), unbroken, range(6))
    first = build(name, weights)
    train(first, weights, range(3))
    torch.save(optimizer_state(first), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(tensor.device.type == "cpu" for tensor in state["tensors"])
    resumed = weights_like(weights)
    second = build(name, resumed)
    load_optimizer_state(second, state)
    train(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(resumed, unbroken, strict=True))


def test_weights_come_back_from_host_memory_as_they_were():
    weights = weights_like()
    optimizer = build("AdamWScheduleFree", weights)
    train(optimizer, weights, range(3))
    before = [weight.detach().clone() for weight in weights]
    with evaluation_weights(optimizer):
        assert not torch.equal(weights[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
