"""The average of trained weights: its numbers, that it never touches the training, and that it goes on exactly."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from library.errors import CheckpointError
from library.training.optimization import ema as ema_module
from library.training.optimization.ema import Ema, _Arrivals


def parameters(*values, dtype=torch.float32):
    return [nn.Parameter(torch.tensor(value, dtype=dtype)) for value in values]


def model(dtype=torch.float32):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 2)).to(dtype)


def train(net, steps, ema=None, *, first=0, looks=()):
    """Steps of AdamW on data of their own; with averages, they are applied after the steps in `looks`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    for step in range(first, steps):
        data = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
        net(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update()
        if step in looks:
            with ema.applied():
                net(data).sum().backward()
            optimizer.zero_grad()


def bits(tensors):
    return [tensor.detach().contiguous().view(torch.uint8).clone() for tensor in tensors]


def are_equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def averages_of(ema):
    return [tensor for name, tensor in ema.state().items() if name != "updates"]


def test_the_average_follows_the_formula():
    weights = parameters([1.0, 2.0])
    ema, wanted = Ema(weights, decay=0.25), torch.tensor([1.0, 2.0])
    for update, value in enumerate((5.0, -3.0, 7.0, 0.5), start=1):
        weights[0].data.fill_(value)
        ema.update()
        decay = min(0.25, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay) * value
    torch.testing.assert_close(averages_of(ema)[0], wanted)
    assert ema.state()["updates"] == 4


def test_the_first_updates_forget_quickly():
    weights = parameters([0.0])
    ema = Ema(weights, decay=0.9999)
    weights[0].data.fill_(1.0)
    ema.update()
    assert averages_of(ema)[0].item() == pytest.approx(1 - 2 / 11)


def test_weights_that_stand_still_are_their_average_to_the_bit():
    weights = list(model().parameters())
    ema = Ema(weights, decay=0.99)
    for _ in range(20):
        ema.update()
    assert are_equal(bits(averages_of(ema)), bits(weights))


def test_the_average_of_half_precision_weights_is_float32_and_finer_than_them():
    weights = parameters([1.0], dtype=torch.bfloat16)
    ema = Ema(weights, decay=0.999)
    weights[0].data.fill_(1.0078125)  # the next bfloat16
    ema.update()
    (average,) = averages_of(ema)
    assert average.dtype == torch.float32
    assert 1.0 < average.item() < 1.0078125


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_the_same_to_the_last_bit_with_and_without_an_average(dtype):
    plain, averaged = model(dtype), model(dtype)
    train(plain, 12)
    train(averaged, 12, Ema(averaged.parameters(), 0.9), looks=(0, 5, 6, 11))
    assert are_equal(bits(plain.parameters()), bits(averaged.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_hold_the_average_inside_and_their_own_bits_afterwards(dtype):
    net = model(dtype)
    ema = Ema(net.parameters(), 0.9)
    train(net, 5, ema)
    before = bits(net.parameters())
    with ema.applied():
        for parameter, average in zip(net.parameters(), averages_of(ema), strict=True):
            assert torch.equal(parameter, average.to(dtype))
        assert not are_equal(bits(net.parameters()), before)
    assert are_equal(bits(net.parameters()), before)


def test_weights_come_back_with_every_bit_of_signed_zeros_and_nan():
    weights = parameters([0.0, -0.0, float("nan"), float("inf"), 1e-40])
    ema = Ema(weights, 0.5)
    before = bits(weights)
    with ema.applied():
        weights[0].data.fill_(3.0)
    assert are_equal(bits(weights), before)


def test_weights_come_back_after_a_failure_inside():
    net = model()
    ema = Ema(net.parameters(), 0.9)
    train(net, 3, ema)
    before = bits(net.parameters())
    with pytest.raises(RuntimeError, match="sampling failed"), ema.applied():
        raise RuntimeError("sampling failed")
    assert are_equal(bits(net.parameters()), before)
    ema.update()


def test_parameters_stay_the_same_objects_at_the_same_place():
    net = model()
    ema = Ema(net.parameters(), 0.9)
    places = [(id(parameter), parameter.data_ptr()) for parameter in net.parameters()]
    with ema.applied():
        assert [(id(parameter), parameter.data_ptr()) for parameter in net.parameters()] == places
    assert [(id(parameter), parameter.data_ptr()) for parameter in net.parameters()] == places


def test_gradients_are_neither_needed_nor_touched():
    net = model()
    net(torch.ones(1, 6)).sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    before = bits(gradients)
    ema = Ema(net.parameters(), 0.9)
    ema.update()
    with ema.applied():
        pass
    assert [id(parameter.grad) for parameter in net.parameters()] == [id(gradient) for gradient in gradients]
    assert are_equal(bits(gradients), before)


class Copies(TorchDispatchMode):
    """Notes where copies are made."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            self.places.append(result.device.type)
        return result


def test_weights_wait_in_host_memory_wherever_the_average_is():
    """A place without memory stands for a GPU with room for the average alone."""
    weights = parameters([1.0, 2.0], [3.0])
    ema = Ema(weights, 0.9, torch.device("meta"))
    with Copies() as copies, pytest.raises(NotImplementedError, match="no data"), ema.applied():
        pass
    assert copies.places == ["cpu", "cpu"]


def test_no_update_inside():
    ema = Ema(parameters([1.0]), 0.9)
    with ema.applied(), pytest.raises(AssertionError):
        ema.update()


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_going_on_from_a_state_is_the_unbroken_average_to_the_bit(cut):
    data = [torch.randn(2, 5, generator=torch.Generator().manual_seed(step)) for step in range(15)]

    def run(ema, weights, steps):
        for step in steps:
            weights[0].data.copy_(data[step])
            ema.update()

    unbroken_weights, weights = parameters([[0.0] * 5] * 2), parameters([[0.0] * 5] * 2)
    unbroken, first = Ema(unbroken_weights, 0.9), Ema(weights, 0.9)
    run(unbroken, unbroken_weights, range(15))
    run(first, weights, range(cut))
    state = copy.deepcopy(first.state())
    second_weights = parameters([[1.0] * 5] * 2)
    second = Ema(second_weights, 0.9)
    second.load_state(state)
    run(second, second_weights, range(cut, 15))
    assert are_equal(bits(averages_of(second)), bits(averages_of(unbroken)))
    assert second.state()["updates"] == 15


def with_arrivals(weights, decay):
    """Takes weights in one call late, as from a GPU into host memory."""
    ema = Ema(weights, decay)
    ema._arrivals = _Arrivals(weights)
    return ema


def test_weights_that_arrive_late_give_the_same_average_whenever_it_is_looked_at():
    weights = parameters([0.0, 1.0], [[2.0]])
    direct, late = Ema(weights, 0.9), with_arrivals(weights, 0.9)
    for step in range(8):
        for parameter in weights:
            parameter.data.add_(step)
        direct.update()
        late.update()
        if step in (2, 3, 7):
            assert late.state()["updates"] == step + 1
            assert are_equal(bits(averages_of(late)), bits(averages_of(direct)))


def test_weights_on_their_way_are_in_what_is_applied_and_do_not_change_with_the_parameters():
    weights = parameters([0.0])
    ema = with_arrivals(weights, 0.0)
    weights[0].data.fill_(5.0)
    ema.update()
    weights[0].data.fill_(7.0)
    with ema.applied():
        assert weights[0].item() == 5.0
    assert weights[0].item() == 7.0


def test_weights_on_their_way_do_not_reach_a_loaded_state():
    weights = parameters([0.0])
    ema = with_arrivals(weights, 0.0)
    ema.update()
    ema.load_state({"updates": torch.tensor(3), "average.0": torch.tensor([2.0])})
    assert averages_of(ema)[0].item() == 2.0 and ema.state()["updates"] == 3


@pytest.mark.parametrize("make", [Ema, with_arrivals])
def test_it_begins_anew_with_the_weights_as_they_are(make):
    weights = parameters([0.0])
    ema = make(weights, 0.9999)
    ema.update()
    weights[0].data.fill_(6.0)
    ema.restart()
    assert averages_of(ema)[0].item() == 6.0 and ema.state()["updates"] == 0
    weights[0].data.fill_(7.0)
    ema.update()
    assert averages_of(ema)[0].item() == pytest.approx(6 + 9 / 11)


def test_a_state_does_not_change_with_later_updates():
    weights = parameters([1.0])
    ema = Ema(weights, 0.5)
    state = ema.state()
    weights[0].data.fill_(9.0)
    ema.update()
    assert state["average.0"].item() == 1.0 and state["updates"].item() == 0


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"updates": torch.tensor(1)},
        {"average.0": torch.zeros(1)},
        {"updates": torch.tensor(1), "average.0": torch.zeros(2)},
        {"updates": torch.tensor(1), "average.0": torch.zeros(1), "average.1": torch.zeros(1)},
    ],
)
def test_a_state_of_other_weights_is_refused_and_nothing_is_taken_over(state):
    ema = Ema(parameters([4.0]), 0.5)
    with pytest.raises(CheckpointError, match="--ema_decay"):
        ema.load_state(state)
    assert averages_of(ema)[0].item() == 4.0 and ema.state()["updates"] == 0


def test_parts_of_any_size_give_the_same_average(monkeypatch):
    results = []
    for chunk in (1, 20, 2**26):
        monkeypatch.setattr(ema_module, "_CHUNK", chunk)
        net = model()
        ema = Ema(net.parameters(), 0.9)
        train(net, 4, ema)
        results.append(bits(averages_of(ema)))
    assert are_equal(results[0], results[2]) and are_equal(results[1], results[2])


def test_nothing_to_train_is_no_failure():
    ema = Ema([], 0.9)
    ema.update()
    with ema.applied():
        pass
    assert list(ema.state()) == ["updates"]


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        Ema(parameters([1.0]), decay)
