"""What optimizers keep and take is measured on small weights and holds for others."""

import pytest
import torch
from torch.nn import Parameter

from library.memory.live_memory import LiveMemory
from library.training.forecast.optimizer_memory import Stepping, state_bytes, step_bytes

SHAPES = ((3, 5), (70, 90), (40,), (9000,), (8, 4, 2, 2), (192, 64))
FIXED = ("relative_step=False", "scale_parameter=False")


def weights(dtype):
    made = [Parameter(torch.ones(shape, dtype=dtype)) for shape in SHAPES]
    for weight in made:
        weight.grad = torch.full_like(weight, 0.01)
    return made


def kept(optimizer):
    values = [(name, value) for state in optimizer.state.values() for name, value in state.items()]
    tensors = [
        v for name, v in values if isinstance(v, torch.Tensor) and v.ndim and v.numel() > 1 and "qmap" not in name
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor", "Lion", "Prodigy", "SGDNesterov"])
def test_what_is_kept_of_weights_of_any_shape_is_foretold(name, is_half):
    pytest.importorskip("bitsandbytes" if "8bit" in name else "torch")
    dtype, rounding = (torch.bfloat16, "stochastic") if is_half else (torch.float32, None)
    stepping = Stepping(name, FIXED if name == "Adafactor" else (), dtype, rounding)
    trained = weights(dtype)
    optimizer = stepping.make(trained)
    optimizer.step()
    assert state_bytes(SHAPES, stepping) == pytest.approx(kept(optimizer), rel=0.01)


@pytest.mark.parametrize(("name", "is_together"), [("AdamW", False), ("AdamWScheduleFree", True)])
def test_an_optimizer_that_looks_at_all_weights_together_takes_more_for_a_moment(name, is_together):
    stepping = Stepping(name, (), torch.float32, None)
    trained = weights(torch.float32)
    optimizer = stepping.make(trained)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    with LiveMemory([*trained, *(weight.grad for weight in trained), *states]) as live:
        optimizer.step()
    assert step_bytes(SHAPES, stepping, is_alone=False) == pytest.approx(live.peak, rel=0.1, abs=1000)
    assert is_together == (live.peak > 1000)
