"""What a sharded training cannot do: told from options and shapes, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.training.optimization.optimizer_kinds import OptimizerKind
from library.training.sharding.settings import ShardingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

_NUMBER_BY_NUMBER = {  # {package: optimizers that do the same to a row, whatever the other rows are}
    "torch": ("AdamW", "Adam", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad", "RMSprop", "Rprop", "SGD"),
    "bitsandbytes": (
        *("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Adam8bit", "PagedAdam", "PagedAdam8bit"),
        *("PagedAdam32bit", "Lion8bit", "PagedLion", "PagedLion8bit", "PagedLion32bit", "RMSprop8bit", "SGD8bit"),
    ),
    "lion-pytorch": ("Lion",),
}


def check_sharding(options: Any, optimizer: OptimizerKind, settings: ShardingSettings) -> None:
    """Refuse options that do not go together with shards.

    Args:
        options: Of the run.
        optimizer: That was asked for.
        settings: That were asked for.

    Raises:
        OptionError: With what to use instead.
    """
    if optimizer.class_name not in _NUMBER_BY_NUMBER.get(optimizer.package, ()):
        raise OptionError(
            f"--optimizer_type {optimizer.name} cannot be used with {settings.name}: it looks at each weight as a "
            "whole, of which a process has some rows. Use AdamW, AdamW8bit or Lion, or plain multi-GPU."
        )
    if settings.offloads and optimizer.package == "bitsandbytes":
        raise OptionError(
            f"--optimizer_type {optimizer.name} needs weights on the GPU, and {settings.offload_name} keeps them in "
            "host memory. Use AdamW, or leave it out."
        )
    if settings.offloads and (asked := [encoder for encoder in options.encoders if encoder.is_asked]):
        flags = " and ".join(dict.fromkeys(encoder.flags[0] or "training the text encoder" for encoder in asked))
        raise OptionError(
            f"{flags} cannot be used with {settings.offload_name}, which moves the denoiser only. Leave one of "
            "them out."
        )
    if options.precision.mixed_precision == "fp16":
        raise OptionError(
            f"--mixed_precision fp16 cannot be used with {settings.name}, which has no loss scaling here. Use bf16."
        )
    if options.memory.swaps:
        raise OptionError(
            f"--blocks_to_swap cannot be used with {settings.name}, which keeps blocks elsewhere in its own way. Leave "
            f"it out; {settings.offload_name} moves shards to host memory."
        )


def check_parts(model: nn.Module, trained: Iterable[Tensor], optimizer: Optimizer, num_processes: int) -> None:
    """Refuse a number of processes for which weights do not fall into parts.

    Args:
        model: With the shapes of its weights; their numbers are not looked at.
        trained: Weights of the model that the optimizer would have.
        optimizer: Of the kind and with the arguments of the run, over anything; it is not used any more.
        num_processes: That share the model.

    Raises:
        OptionError: With what to use instead.
    """
    from library.training.sharding.optimizer_shards import keep_blocks_whole
    from library.training.sharding.rows import Rows, check_rows

    for name, parameter in model.named_parameters():
        check_rows(name, Rows(tuple(parameter.shape), 0, num_processes))
    keep_blocks_whole(optimizer, [Rows(tuple(parameter.shape), 0, num_processes) for parameter in trained])
