"""What a sharded training cannot do: told from the options, before anything is computed."""

from __future__ import annotations

from typing import Any

from library.errors import OptionError
from library.training.optimization.optimizer_kinds import OptimizerKind
from library.training.sharding.launch import ShardingSettings

_NUMBER_BY_NUMBER = {  # {package: optimizers that do the same to a row, whatever the other rows are}
    "torch": ("AdamW", "Adam", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad", "RMSprop", "Rprop", "SGD"),
    "bitsandbytes": (
        *("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Adam8bit", "PagedAdam", "PagedAdam8bit"),
        *("PagedAdam32bit", "Lion8bit", "PagedLion", "PagedLion8bit", "PagedLion32bit", "RMSprop8bit", "SGD8bit"),
    ),
    "lion-pytorch": ("Lion",),
}


def check_sharding(options: Any, optimizer: OptimizerKind, settings: ShardingSettings) -> None:
    """Refuse options that do not go together with FSDP.

    Args:
        options: Of the run.
        optimizer: That was asked for.
        settings: From the launcher.

    Raises:
        OptionError: With what to use instead.
    """
    if optimizer.class_name not in _NUMBER_BY_NUMBER.get(optimizer.package, ()):
        raise OptionError(
            f"--optimizer_type {optimizer.name} cannot be used with FSDP: it looks at each weight as a whole, of which "
            "a process has some rows. Use AdamW, AdamW8bit or Lion, or plain multi-GPU."
        )
    if settings.offloads and optimizer.package == "bitsandbytes":
        raise OptionError(
            f"--optimizer_type {optimizer.name} needs weights on the GPU, and fsdp_offload_params keeps them in host "
            "memory. Use AdamW, or switch it off."
        )
    if settings.offloads and options.full.encoder_rates:
        raise OptionError(
            "--train_text_encoder and --train_t5xxl cannot be used with fsdp_offload_params, which moves the denoiser "
            "only. Leave one of them out."
        )
    if options.precision.mixed_precision == "fp16":
        raise OptionError("--mixed_precision fp16 cannot be used with FSDP, which has no loss scaling here. Use bf16.")
    if options.precision.blocks_to_swap:
        raise OptionError(
            "--blocks_to_swap cannot be used with FSDP, which keeps blocks elsewhere in its own way. Leave it out; "
            "fsdp_offload_params: true moves shards to host memory."
        )
