"""Several processes: how many were asked for, and averaging over them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from library.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor
    from torch.amp import GradScaler
    from torch.nn import Parameter
    from torch.optim import Optimizer

T = TypeVar("T")

EXCHANGE = 2**26  # numbers that are averaged at once: their copy takes 256 MiB in float32


def num_processes() -> int:
    """Number of processes this one was launched with, from the launcher's environment."""
    return int(os.environ.get("WORLD_SIZE", "1") or "1")


def check_launch(*, can_shard: bool = False) -> None:
    """Refuse launches that would do something else than they ask for.

    `accelerate launch` without a GPU starts a single process whatever `--num_processes` says. It then names a
    meeting place (MASTER_ADDR) but no rank, which no launch of one process does.

    Args:
        can_shard: The script can shard the model over the processes; `read_settings` looks at what is asked for.

    Raises:
        EnvironmentFault: With what to use instead.
    """
    environment = os.environ
    is_launched = "ACCELERATE_MIXED_PRECISION" in environment
    if is_launched and "MASTER_ADDR" in environment and not {"WORLD_SIZE", "RANK"} & environment.keys():
        raise EnvironmentFault(
            "the launch asks for several processes but started one, as accelerate does without a GPU. "
            "Use `torchrun --nproc_per_node N script.py ...`, or `accelerate launch --num_processes 1`."
        )
    for name in () if can_shard else ("FSDP", "DeepSpeed"):
        if _is_asked(f"ACCELERATE_USE_{name.upper()}"):
            raise EnvironmentFault(
                f"{name} shards a model that trains as a whole, which this script does not do. Choose plain multi-GPU "
                "in `accelerate config`."
            )
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1"):
        raise EnvironmentFault(
            "the launch sets gradient accumulation, which would be counted twice. "
            "Leave it out of `accelerate config` and give --gradient_accumulation_steps to the script."
        )


def _is_asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def check_started(accelerator: Accelerator) -> None:
    """Raise EnvironmentFault where the launcher promised more processes than the process group has."""
    if num_processes() != accelerator.num_processes:
        raise EnvironmentFault(
            f"the launcher started {num_processes()} processes, but they do not see each other "
            f"(the group has {accelerator.num_processes}). Check the launch command and `accelerate config`."
        )


def scale_fp16_gradients(scaler: GradScaler) -> None:
    """Let loss scaling work on gradients in fp16 (`--full_fp16`), which torch refuses by default."""
    unscale = scaler._unscale_grads_

    def unscale_any(optimizer: Optimizer, inverse: Tensor, found_inf: Tensor, allow_fp16: bool) -> Any:
        return unscale(optimizer, inverse, found_inf, True)

    scaler._unscale_grads_ = unscale_any  # type: ignore[assignment,method-assign]


def shared_gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """The gradients to average, the same list in every process.

    A missing one (module dropout) becomes zeros, with one process too: the optimizer passes over a parameter without
    gradient, and would then do something else than with zeros. That is wanted of a parameter that trains no more.
    """
    import torch

    for parameter in parameters:
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def in_all_processes(accelerator: Accelerator, items: list[T]) -> list[T]:
    """The items of all processes in the order of their ranks, the same list on each. Any picklable values."""
    if accelerator.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(items)
    return gathered


def average_over_processes(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes; one process does nothing."""
    if accelerator.num_processes == 1:
        return
    import torch
    from torch import distributed

    for group in exchanges(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        flat /= accelerator.num_processes
        pieces = flat.split([tensor.numel() for tensor in group])
        for tensor, piece in zip(group, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def exchanges(tensors: Sequence[Tensor], size: int = EXCHANGE) -> Iterator[list[Tensor]]:
    """Tensors of one dtype, in their order, that are averaged at once: of `size` numbers, or a larger one alone."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        together: list[Tensor] = []
        count = 0
        for tensor in group:
            if together and count + tensor.numel() > size:
                yield together
                together, count = [], 0
            together.append(tensor)
            count += tensor.numel()
        yield together
