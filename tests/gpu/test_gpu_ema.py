"""Averages of weights that lie on a GPU, beside them and in host memory."""

import pytest
import torch
from torch import nn

from library.training.optimization.ema import Ema

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
PLACES = (None, torch.device("cpu"))
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def model(dtype):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 8)).to("cuda", dtype)


def train(net, ema=None):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(30):
        data = torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).to("cuda", net[0].weight.dtype)
        net(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update()
        if ema is not None and step == 17:
            with ema.applied():
                net(data)
    return [parameter.detach().clone() for parameter in net.parameters()]


@each_dtype
@pytest.mark.parametrize("place", PLACES, ids=["beside", "host"])
def test_training_is_the_same_to_the_last_bit(dtype, place):
    net = model(dtype)
    weights = train(net, Ema(net.parameters(), 0.9, place))
    assert all(torch.equal(*pair) for pair in zip(weights, train(model(dtype)), strict=True))


@each_dtype
def test_the_average_takes_the_place_of_the_weights_without_another_copy_on_the_gpu(dtype):
    net = model(dtype)
    ema = Ema(net.parameters(), 0.9)
    train(net, ema)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with ema.applied():
        assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() == before


@each_dtype
def test_the_average_in_host_memory_is_the_one_beside_the_weights(dtype):
    states = []
    for place in PLACES:
        net = model(dtype)
        ema = Ema(net.parameters(), 0.9, place)
        train(net, ema)
        states.append(ema.state())
    assert states[0]["updates"] == states[1]["updates"] == 30
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", PLACES, ids=["beside", "host"])
def test_an_update_does_not_wait_for_the_device(place):
    net = model(torch.bfloat16)
    ema = Ema(net.parameters(), 0.9, place)
    ema.update()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update()
        ema.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ema.state()["updates"] == 3
