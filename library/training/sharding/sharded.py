"""A model that is sharded: every process has some rows of each weight, of its gradient and of its optimizer's state.

The optimizer gets these rows as plain parameters, so that every optimizer whose arithmetic goes number by number works
as it is. torch's FSDP2 gathers weights for a pass and averages gradients; all else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import distributed, nn

from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.training.processes import average_over_processes, shared_gradients
from library.training.sharding.gathered import LaterTensor
from library.training.sharding.leading import Leading, LostProcessError
from library.training.sharding.optimizer_shards import (
    keep_blocks_whole,
    own_average_state,
    own_optimizer_state,
    whole_average_state,
    whole_optimizer_state,
)
from library.training.sharding.rows import Rows, check_rows
from library.training.sharding.settings import ShardingSettings
from library.training.sharding.units import Cutting
from library.training.sharding.unsharded import Unsharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from library.training.optimization.ema import Ema

T = TypeVar("T")
logger = get_logger(__name__)


class Sharded(Unsharded):
    """The models that train lie in shards on all processes.

    Args:
        settings: That were asked for.
        accelerator: With a plain group of processes.
        timeout: How long processes wait for each other.
    """

    is_sharded = True

    def __init__(self, settings: ShardingSettings, accelerator: Accelerator, timeout: timedelta) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__()
        self._accelerator, device = accelerator, accelerator.device
        mesh = init_device_mesh(device.type, (accelerator.num_processes,))
        self._cutting = Cutting(mesh, settings, device)
        self._host = distributed.new_group(backend="gloo", timeout=timeout)  # for what host memory holds
        self._leading = Leading(
            self._host,
            {
                "forward": self._forward,
                "enter": self._enter,
                "leave": self._leave,
                "gather": self._gather,
                "all finite": self._all_finite,
                "optimizer state": self._optimizer_state,
                "average state": self._average_state,
            },
        )
        self._models: list[nn.Module] = []
        self._sharded: list[Any] = []  # parameters of the models; DTensor
        self._numbers: dict[int, int] = {}  # {address of the own rows: place in `_sharded`}
        self._trained: list[tuple[Parameter, Any]] = []  # own rows as the optimizer has them, and what they belong to
        self._entered: dict[str, ExitStack] = {}
        self._is_inside = False  # a forward pass has begun that has not ended

    # Building

    def load(
        self,
        load: Callable[[Any, torch.device], nn.Module],
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_exact: bool = False,
    ) -> nn.Module:
        """Cut block by block. Where the model need not be exact, its file is mapped, so that processes share what they
        read of it, and weights are gathered in the precision that they compute in."""
        host = torch.device("cpu")
        if is_exact:
            return self.cut(load(dtype, host), dtype)
        is_half = self._accelerator.mixed_precision == "bf16"
        return self.cut(load(None, host), dtype, torch.bfloat16 if is_half else None)

    def cut(self, model: nn.Module, dtype: torch.dtype, computing: torch.dtype | None = None) -> nn.Module:
        """Shard a model in place. See `Cutting.cut`."""
        model = self._cutting.cut(model, dtype, computing)
        for name, parameter in model.named_parameters():
            check_rows(name, self._rows(parameter))
            self._numbers[_own(parameter).data_ptr()] = len(self._sharded)
            self._sharded.append(parameter)
        self._watch_passes(model, len(self._models))
        self._models.append(model)
        return model

    def _rows(self, parameter: Any) -> Rows:
        return Rows(tuple(parameter.shape), self._accelerator.process_index, self._accelerator.num_processes)

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The own rows, as parameters of their own in the same memory."""
        made = []
        for group in groups:
            own = [nn.Parameter(_own(parameter)) for parameter in group["params"]]
            self._trained += zip(own, group["params"], strict=True)
            made.append({**group, "params": own})
        return made

    def know(
        self, optimizer: Optimizer, ema: Ema | None, **contexts: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Also: see to it that the optimizer's state can be put together."""
        super().know(optimizer, ema, **contexts)
        keep_blocks_whole(optimizer, self._trained_rows())
        held = sum(own.numel() for own, _ in self._trained)
        whole = sum(parameter.numel() for _, parameter in self._trained)
        logger.info("FSDP2: of %s numbers that train %s are in this process", f"{whole:,}", f"{held:,}")

    def outlines(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The parameters that the rows belong to."""
        sharded = {id(own): parameter for own, parameter in self._trained}
        return [sharded[id(parameter)] for parameter in parameters]

    # A step

    def any_failed(self, has_failed: bool) -> bool:
        """Whether any process has: then none of them begins a pass, in which the others would wait for it."""
        told = torch.tensor([int(has_failed)])
        distributed.all_reduce(told, group=self._host)
        return bool(told)

    def refuse_to_go_on(self, error: BaseException) -> None:
        """Where there is no memory, the others wait inside a pass."""
        if is_out_of_memory(error):
            reason = str(error).partition("\n")[0]
            raise LostProcessError(
                f"out of memory ({reason}). A sharded model cannot go on without this process; go on from the last "
                "state with --gradient_checkpointing, a lower resolution, a smaller batch or more processes."
            ) from error

    def average(self, accelerator: Accelerator, parameters: Sequence[Parameter], others: Sequence[Tensor]) -> None:
        """The backward pass has averaged the gradients, and each process has got those of its rows."""
        for own, parameter in self._trained:
            assert own.data_ptr() == _own(parameter).data_ptr(), "torch has moved a shard"
            has_gradient = parameter.grad is not None and own.requires_grad
            own.grad, parameter.grad = _own(parameter.grad) if has_gradient else None, None
        shared_gradients(parameters)
        average_over_processes(accelerator, others)

    def freeze(self, parameters: Sequence[Parameter]) -> None:
        """Also the rows that the optimizer has."""
        super().freeze(parameters)
        frozen = {id(parameter) for parameter in parameters}
        super().freeze([own for own, parameter in self._trained if id(parameter) in frozen])

    def total_norm(self, parameters: Sequence[Parameter]) -> Tensor:
        """Of the gradients of all rows."""
        squared = super().total_norm(parameters).float() ** 2
        distributed.all_reduce(squared, group=self._host if squared.device.type == "cpu" else None)
        return squared.sqrt().to(self._accelerator.device)

    # The first process and the others

    def lead(self, accelerator: Accelerator, act: Callable[[], T]) -> T | None:
        """Do it on the first process; the others follow."""
        result = self._leading.lead(lambda: self._lead(act))
        accelerator.wait_for_everyone()
        return result

    def _lead(self, act: Callable[[], T]) -> T:
        try:
            return act()
        finally:
            if self._is_inside:
                raise LostProcessError(
                    "a forward pass of the sharded model has failed, see above, and the other processes wait in it. "
                    "Go on from the last state."
                )

    @contextmanager
    def everywhere(self, name: str) -> Iterator[None]:
        """A context of `contexts`, entered and left on all processes."""
        try:
            self._leading.ask("enter", name)
            yield
        except LostProcessError:
            raise  # the others wait elsewhere, or not at all
        except BaseException:
            self._leave_everywhere(name)
            raise
        self._leave_everywhere(name)

    def _leave_everywhere(self, name: str) -> None:
        if not self._is_inside:
            self._leading.ask("leave", name)

    def _enter(self, name: str) -> None:
        self._entered[name] = ExitStack()
        try:
            self._entered[name].enter_context(self.contexts[name]())
        except RuntimeError as error:
            self.refuse_to_go_on(error)
            raise

    def _leave(self, name: str) -> None:
        self._entered.pop(name).close()

    def _watch_passes(self, model: nn.Module, number: int) -> None:
        """Let those that follow begin a pass with the first process."""

        def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not self._leading.is_leading:
                return
            if self._is_inside:
                raise LostProcessError("an earlier forward pass has failed")
            self._is_inside = True
            self._leading.tell(("forward", (number, _moved(args, "cpu"), _moved(named, "cpu"))))

        def after(*_: Any) -> None:
            self._is_inside = False

        model.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        model.register_forward_hook(after)

    @torch.no_grad()
    def _forward(self, number: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        device = self._accelerator.device
        try:
            with self._accelerator.autocast():
                self._models[number](*_moved(args, device), **_moved(named, device))
        except RuntimeError as error:
            self.refuse_to_go_on(error)
            raise

    # Whole values

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Each tensor is gathered when it is used."""
        later = {name: LaterTensor(t, self._gathered) if _is_sharded(t) else t for name, t in tensors.items()}
        return cast("Mapping[str, Tensor]", later)

    def _gathered(self, tensor: Tensor) -> Tensor:
        whole: Tensor = self._leading.ask("gather", self._numbers[_own(tensor).data_ptr()])
        return whole

    def _gather(self, number: int) -> Tensor | None:
        parameter = self._sharded[number]
        return self._rows(parameter).whole(_own(parameter), self._host)

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """The rows that are here."""
        if _is_sharded(parameter):
            value, parameter = self._rows(parameter).own(value), _own(parameter)
        super().put(parameter, value)

    def all_finite(self) -> bool:
        """On all processes."""
        return bool(self._leading.ask("all finite"))

    def _all_finite(self) -> bool:
        return not self.any_failed(not super().all_finite())

    def optimizer_state(self) -> dict[str, Any]:
        """Gathered tensor by tensor."""
        state: dict[str, Any] = self._leading.ask("optimizer state")
        return state

    def _optimizer_state(self) -> dict[str, Any]:
        return whole_optimizer_state(super().optimizer_state(), self._trained_rows(), self._host)

    def own_optimizer_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The rows that are here."""
        return own_optimizer_state(state, self._trained_rows())

    def average_state(self) -> Mapping[str, Tensor] | None:
        """Gathered tensor by tensor."""
        state: Mapping[str, Tensor] | None = self._leading.ask("average state")
        return state

    def _average_state(self) -> Mapping[str, Tensor] | None:
        state = super().average_state()
        return None if state is None else whole_average_state(state, self._trained_rows(), self._host)

    def own_average_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The rows that are here."""
        return own_average_state(state, self._trained_rows())

    def _trained_rows(self) -> list[Rows]:
        return [self._rows(parameter) for _, parameter in self._trained]

    def forget_gathered(self) -> None:
        """The next pass gathers anew."""
        from torch.distributed.fsdp import FSDPModule

        for model in self._models:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "_local_tensor")


def _own(tensor: Any) -> Tensor:
    """The rows of a sharded tensor that are here, in the memory that passes use."""
    own: Tensor = tensor._local_tensor
    return own


def _moved(value: Any, device: torch.device | str) -> Any:
    """Tensors in the arguments of a pass, on another device."""
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value.detach().to(device) if hasattr(value, "detach") else value
