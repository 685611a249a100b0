"""Options about the loop: how long, how many pictures a step, processes, validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from library.options.spec import OptionGroup, opt

_NO_NVME = "nothing is kept on a drive"
_OWN_AVERAGE = "gradients are averaged without DDP"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptionGroup):
    """How long and how is trained."""

    title: ClassVar[str] = "Training"

    max_train_steps: int = opt(1600, "Optimizer steps in all.", unit="steps", minimum=1)
    max_train_epochs: int | None = opt(
        None, "Passes over all pictures; goes before --max_train_steps. 0 means not set.", minimum=1, zero_is_off=True
    )
    gradient_accumulation_steps: int = opt(1, "Batches that make one optimizer step.", unit="batches", minimum=1)
    gradient_checkpointing: bool = opt(False, "Compute activations again in the backward pass: less memory, more time.")
    gradient_checkpointing_every_n_blocks: int = opt(
        1,
        "With --gradient_checkpointing: of so many blocks only the first one's activations are computed again. 2 takes "
        "about half the additional time and keeps half the activations.",
        unit="blocks",
        minimum=1,
    )
    cpu_offload_checkpointing: bool = opt(
        False, "Means --gradient_checkpointing, and what that still keeps waits in host memory."
    )
    seed: int | None = opt(
        None, "Seed of all random numbers. Not set means a new one for each run.", minimum=0, maximum=2**32 - 1
    )
    max_data_loader_n_workers: int = opt(
        8, "Processes that read pictures beside the training; 0 means none.", unit="processes", minimum=0
    )
    persistent_data_loader_workers: bool = opt(False, "Keep the reading processes between epochs.")
    initial_epoch: int | None = opt(
        None, "Begin at this epoch, counted from 1, as if those before were done.", minimum=1
    )
    initial_step: int | None = opt(None, "Begin after this many steps, as if they were done.", unit="steps", minimum=0)
    skip_until_initial_step: bool = opt(
        False, "Pass over the batches before the first step.", no_effect="it is always done, and costs nothing"
    )
    max_bad_steps: int = opt(
        10,
        "After this many steps in a row whose loss or gradient is not finite the run goes back to its last state, or "
        "ends.",
        unit="steps",
        minimum=1,
    )

    def check(self) -> Iterator[str]:
        if self.persistent_data_loader_workers and self.max_data_loader_n_workers == 0:
            yield "--persistent_data_loader_workers needs --max_data_loader_n_workers of at least 1."
        if self.initial_epoch is not None and self.initial_step is not None:
            yield "--initial_epoch and --initial_step both say where to begin. Keep one of them."

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.gradient_checkpointing or self.cpu_offload_checkpointing

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.max_train_epochs is not None:
            yield "max_train_steps", "--max_train_epochs goes before it"
        if not self.recomputes:
            yield "gradient_checkpointing_every_n_blocks", "without --gradient_checkpointing"

    def remarks(self) -> Iterator[str]:
        if self.cpu_offload_checkpointing and not self.gradient_checkpointing:
            yield "--cpu_offload_checkpointing means --gradient_checkpointing."


@dataclass(frozen=True, kw_only=True)
class ValidationOptions(OptionGroup):
    """Loss on pictures that are not trained."""

    title: ClassVar[str] = "Validation"

    validation_split: float = opt(
        0.0, "Share of the pictures that are kept for validation and not trained.", unit="0-1", minimum=0, maximum=1
    )
    validation_seed: int | None = opt(None, "Seed of the choice of these pictures. Not set means 0.")
    validate_every_n_steps: int | None = opt(
        None,
        "Compute the loss on validation pictures every n steps. Neither this nor --validate_every_n_epochs means after "
        "every epoch. 0 means not set.",
        unit="steps",
        minimum=1,
        zero_is_off=True,
    )
    validate_every_n_epochs: int | None = opt(
        None, "The same every n epochs; 0 means not set.", unit="epochs", minimum=1, zero_is_off=True
    )
    max_validation_steps: int | None = opt(None, "Most batches of a validation.", unit="batches", minimum=1)


@dataclass(frozen=True, kw_only=True)
class DistributedOptions(OptionGroup):
    """Several processes."""

    title: ClassVar[str] = "Several processes"

    ddp_timeout: int | None = opt(
        None,
        "How long processes wait for each other, for instance while the first one draws samples. Not set means 120.",
        unit="minutes",
        minimum=1,
    )
    ddp_gradient_as_bucket_view: bool = opt(False, "Setting of DDP.", no_effect=_OWN_AVERAGE)
    ddp_static_graph: bool = opt(False, "Setting of DDP.", no_effect=_OWN_AVERAGE)
    deepspeed: bool = opt(
        False,
        "Shard the model that trains over all processes, as DeepSpeed's ZeRO does; FSDP2 carries it out. For whole "
        "models.",
    )
    zero_stage: int = opt(
        2,
        "With --deepspeed: 2 keeps gathered weights until the backward pass, 3 frees them after the forward pass. 0 "
        "and 1 are refused.",
        choices=(0, 1, 2, 3),
    )
    offload_optimizer_device: str | None = opt(
        None,
        "With --deepspeed: cpu keeps shards of weights, gradients and optimizer in host memory. nvme is refused.",
        choices=("cpu", "nvme"),
    )
    offload_optimizer_nvme_path: Path | None = opt(None, "Folder for the optimizer's state.", no_effect=_NO_NVME)
    offload_param_device: str | None = opt(
        None, "Does the same as --offload_optimizer_device.", choices=("cpu", "nvme")
    )
    offload_param_nvme_path: Path | None = opt(None, "Folder for weights.", no_effect=_NO_NVME)
    zero3_init_flag: bool = opt(
        False, "Build the model in shards (ZeRO-3).", no_effect="weights are always read and cut block by block"
    )
    zero3_save_16bit_model: bool = opt(
        False,
        "Save in 16 bits (ZeRO-3).",
        no_effect="models are always saved whole, and --save_precision says in how many bits",
    )
    fp16_master_weights_and_gradients: bool = opt(
        False, "Keep master weights in fp16. Refused with --deepspeed; there is --full_bf16."
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if not self.deepspeed:
            for name in (
                *("zero_stage", "offload_optimizer_device", "offload_param_device"),
                "fp16_master_weights_and_gradients",
            ):
                yield name, "without --deepspeed"

    @property
    def timeout(self) -> timedelta:
        """How long processes wait for each other."""
        return timedelta(minutes=self.ddp_timeout or 120)
