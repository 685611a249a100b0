"""Optimizers without torch's compiler.

The methods of `torch.optim.Optimizer` are wrapped for the compiler's sake, and the wrappers import all of it when
they are first called; bitsandbytes hands some functions to the compiler when it is imported. Either costs seconds, in
a program that compiles nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.optim import Optimizer

from library.training.optimization.optimizer_draws import own_draws

_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def without_compiler(
    optimizer_class: type[Optimizer], *, skips_zero_rates: bool = False, draws_by_step: bool = False
) -> type[Optimizer]:
    """A subclass that does the same, with its methods as they were written.

    Args:
        optimizer_class: Its `step` uses gradients only if it was made with `differentiable=True`.
        skips_zero_rates: The class cannot step while all rates are 0, as at the start of a warm-up; then nothing
            is done.
        draws_by_step: What the class draws at random depends on the seed and the number of the step alone.
    """
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in _WRAPPED}
    names = {"__module__": optimizer_class.__module__, "__qualname__": optimizer_class.__qualname__}
    written_step = inspect.unwrap(optimizer_class.step)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if skips_zero_rates and not any(group["lr"] for group in self.param_groups):
            return None
        draws = own_draws(self) if draws_by_step else nullcontext()
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)), draws:
            return written_step(self, closure)

    return type(optimizer_class.__name__, (optimizer_class,), {**names, **methods, "step": step})


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrapper that accelerate puts around it."""
    if type(optimizer).__module__.startswith("accelerate."):
        inner: Optimizer = optimizer.optimizer  # type: ignore[attr-defined]
        return inner
    return optimizer


@contextmanager
def compilation_off() -> Iterator[None]:
    """`torch.compile` gives functions back as they are, for a package that is imported meanwhile."""
    compile_function = torch.compile
    torch.compile = _as_written  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


def _as_written(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return _as_written if function is None else function
