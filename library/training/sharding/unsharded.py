"""How the model lies in the processes: here every process has all of it. `Sharded` has a part of each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from library.training.processes import average_over_processes, shared_gradients

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from library.training.optimization.ema import Ema

T = TypeVar("T")


class Unsharded:
    """Every process has the whole model.

    Attributes:
        optimizer: What was given to `know`, and so the next two.
        ema: None where there is no average.
        contexts: {name: gives a context}.
    """

    is_sharded = False
    optimizer: Optimizer
    ema: Ema | None
    contexts: Mapping[str, Callable[[], AbstractContextManager[None]]]

    # Building

    def load(
        self,
        load: Callable[[Any, torch.device], nn.Module],
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_exact: bool = False,
    ) -> nn.Module:
        """A model that trains.

        Args:
            load: (dtype, device) -> model. Where the model need not be exact, dtype may be None: as it is stored.
            dtype: That its weights are kept in.
            device: Where it runs.
            is_exact: What computes in another precision than `dtype` does so by autocast alone.
        """
        return load(dtype, device)

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups as the optimizer gets them."""
        return [dict(group) for group in groups]

    def know(
        self, optimizer: Optimizer, ema: Ema | None, **contexts: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Take the optimizer over what `groups` gave, its average, and contexts for `everywhere`."""
        self.optimizer, self.ema, self.contexts = optimizer, ema, contexts

    def outlines(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Tensors with the shapes of the whole parameters that the optimizer has parts of."""
        return list(parameters)

    # A step

    def any_failed(self, has_failed: bool) -> bool:
        """Whether the forward passes of the next step are left out on this process."""
        return has_failed

    def refuse_to_go_on(self, error: BaseException) -> None:
        """Raise LostProcessError where the others wait inside a pass that this process cannot finish."""

    def average(self, accelerator: Accelerator, parameters: Sequence[Parameter], others: Sequence[Tensor]) -> None:
        """Let the gradients and other numbers be the mean over the processes. A missing gradient becomes zeros."""
        average_over_processes(accelerator, [*shared_gradients(parameters), *others])

    def freeze(self, parameters: Sequence[Parameter]) -> None:
        """Let parameters of the models train no more; an optimizer passes over what has no gradient."""
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def total_norm(self, parameters: Sequence[Parameter]) -> Tensor:
        """The norm of all gradients together."""
        from torch.nn.utils import get_total_norm

        return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    # The first process and the others

    def lead(self, accelerator: Accelerator, act: Callable[[], T]) -> T | None:
        """Do it on the first process; the others wait, and return None."""
        result = act() if accelerator.is_main_process else None
        accelerator.wait_for_everyone()
        return result

    @contextmanager
    def everywhere(self, name: str) -> Iterator[None]:
        """A context of `contexts`: while leading, on all processes."""
        with self.contexts[name]():
            yield

    # Whole values

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors as one process would have them; on the first process, while it leads."""
        return tensors

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Let a parameter have the numbers of a whole one."""
        import torch

        with torch.no_grad():
            parameter.copy_(value)

    def all_finite(self) -> bool:
        """Whether all numbers that train are finite; while leading, on all processes."""
        import torch

        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return all(bool(torch.isfinite(torch.stack(torch.aminmax(p.detach().float()))).all()) for p in trained)

    def optimizer_state(self) -> dict[str, Any]:
        """As one process would save it; while leading."""
        from library.training.optimization.optimizer_state import optimizer_state

        return optimizer_state(self.optimizer)

    def own_optimizer_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What this process needs of a state that one process would have saved."""
        return state

    def average_state(self) -> Mapping[str, Tensor] | None:
        """Of `Ema.state`, as one process would save it; while leading."""
        return None if self.ema is None else self.ema.state()

    def receiving_state(self) -> AbstractContextManager[None]:
        """A context in which an optimizer's state is put back."""
        return nullcontext()

    def settle(self) -> None:
        """Let all weights be where they can be read and changed."""

    def own_average_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What this process needs of it."""
        return state

    def forget_gathered(self) -> None:
        """Weights have been changed: what was gathered of them before is not used any more."""
