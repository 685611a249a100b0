"""Optimizers whose weights while training are not the weights to evaluate and save.

Schedule-free optimizers train at a point y and return the average x; a few others keep an average as well. They have
`train()` and `eval()`, which move the weights from one to the other. Doing this forth and back is not exact, so the
weights of training are kept aside meanwhile.

Source of schedule-free: Defazio et al. 2024, arXiv:2405.15682.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from library.training.optimization.lean_optimizer import bare_optimizer


def has_modes(optimizer: Optimizer) -> bool:
    """Whether the weights to save differ from those that train."""
    bare = bare_optimizer(optimizer)
    return callable(getattr(bare, "train", None)) and callable(getattr(bare, "eval", None))


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether it averages the weights instead of lowering the learning rate."""
    return "schedulefree" in type(bare_optimizer(optimizer)).__name__.lower()


def set_train_mode(optimizer: Optimizer) -> None:
    """What some optimizers need before their first step; nothing for the others."""
    if has_modes(optimizer):
        bare_optimizer(optimizer).train()  # type: ignore[attr-defined]


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """A context in which the trained parameters are those to evaluate and save.

    Afterwards they are, bit by bit, what they were, and the optimizer trains on. No step may be taken inside, and the
    optimizer's state may not be saved. The copy that is kept lies in host memory.
    """
    if not has_modes(optimizer):
        yield
        return
    bare = bare_optimizer(optimizer)
    parameters = [parameter for group in bare.param_groups for parameter in group["params"]]
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        bare.eval()  # type: ignore[attr-defined]
        yield
    finally:
        bare.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether `found_inf` = 1 makes the next step change nothing, without a word from the host.

    torch's fused optimizers can do that. The first step of fused SGD with momentum cannot: it makes its buffers without
    a value, and a step that is passed over would leave them so.
    """
    bare = bare_optimizer(optimizer)
    if not getattr(bare, "_step_supports_amp_scaling", False):
        return False
    return not any(
        parameter.grad is not None and bare.state.get(parameter, {}).get("momentum_buffer") is None
        for group in bare.param_groups
        if group.get("momentum")
        for parameter in group["params"]
    )
