"""The parts of a trainer's loop, made from its options: losses, batches, validation, samples."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from library.data.loader import BatchDataset, make_loader
from library.diffusion.loss import LossSettings
from library.log import get_logger
from library.memory.fused_backward import by_block, each_alone
from library.records import Batch, BatchPlan
from library.training.sampling.sampling import SamplePictures
from library.training.stepping.batch_loss import BatchLoss
from library.training.stepping.fused_step import FusedStep
from library.training.stepping.optimizer_step import OptimizerStep
from library.training.stepping.validation import Validation, validation_batches, validation_timesteps
from library.training.stopping import outlive_signals

if TYPE_CHECKING:
    from torch.nn import Parameter

    from library.training.built_training import BuiltTraining

logger = get_logger(__name__)


def make_batch_loss(trainer: BuiltTraining) -> BatchLoss:
    """The loss of a batch as the options ask for it."""
    loss = trainer.options.loss
    return BatchLoss(
        trainer.family,
        trainer.denoiser,
        trainer.text,
        trainer.encoders.vae,
        LossSettings(loss.loss_type, loss.huber_schedule, loss.huber_c, loss.huber_scale),
        trainer.accelerator.autocast,
        trainer.unchanged_model,
        trainer.seed,
        tell=trainer.tell,
    )


def make_optimizer_step(trainer: BuiltTraining) -> OptimizerStep:
    """Steps after the backward pass or inside it."""
    chosen = trainer.options.optimizer
    arguments = (
        trainer.accelerator,
        trainer.batch_loss,
        trainer.optimizer,
        trainer.schedule,
        trainer.options.training.gradient_accumulation_steps,
        chosen.max_grad_norm,
        trainer.learning_rates,
    )
    if not chosen.steps_in_backward:
        return OptimizerStep(*arguments, shards=trainer.shards)
    if chosen.max_grad_norm > 0:
        logger.warning(
            "--max_grad_norm %g acts on each %s by itself: with %s the norm of all gradients together is known too "
            "late. Give 0 to leave gradients as they are.",
            chosen.max_grad_norm,
            "block" if chosen.blockwise_fused_optimizers else "weight",
            chosen.steps_in_backward,
        )
    return FusedStep(*arguments, parts=_parts_in_backward(trainer))


def _parts_in_backward(trainer: BuiltTraining) -> list[list[Parameter]]:
    """What steps together inside the backward pass."""
    parameters = trainer.trained_parameters()
    if trainer.options.optimizer.blockwise_fused_optimizers:
        return by_block([trainer.denoiser, *trainer.text.encoders.values()], parameters)
    return each_alone(parameters)


def make_batches(trainer: BuiltTraining, step: int) -> Generator[Batch, None, None]:
    """The batches of this process after `step` steps, up to the end of the run."""
    epoch, skipped = trainer.course.epoch(step + 1), trainer.course.batches_done(step)
    rank = trainer.accelerator.process_index

    def plans() -> Iterator[BatchPlan]:
        for number in range(epoch, trainer.plan.steps.epochs + 1):
            batches = trainer.plan.epoch(number, seed=trainer.seed, rank=rank)
            yield from batches[skipped if number == epoch else 0 :]

    loader = make_loader(
        make_dataset(trainer),
        plans(),
        num_workers=trainer.options.training.max_data_loader_n_workers,
        pin_memory=trainer.device.type == "cuda",
        start_worker=outlive_signals,
    )
    return iter(loader)


def make_dataset(trainer: BuiltTraining, **changes: Any) -> BatchDataset:
    """Makes the batches of plans; `changes` are arguments of `BatchDataset` that are not those of training."""
    encoders, plan = trainer.encoders, trainer.plan
    settings = {
        "latents": encoders.latents,
        "texts": encoders.texts,
        "variants": plan.caption_variants() if encoders.texts is not None else None,
        "cells": trainer.family.pixels_per_latent,
        "seed": trainer.seed,
        "max_steps": plan.steps.max_steps,
        "replacements": trainer.caption_replacements(),
    }
    return BatchDataset(plan.records, plan.crops, plan.specs, **{**settings, **changes})


def make_validation(trainer: BuiltTraining) -> Validation | None:
    """None where no picture is kept for it."""
    plan, chosen = trainer.plan, trainer.options.validation
    if not plan.validation_records:
        names = ("validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps")
        if given := [f"--{name}" for name in names if getattr(chosen, name) is not None]:
            logger.warning("%s: no pictures are kept for validation; see --validation_split.", ", ".join(given))
        return None
    return Validation(
        trainer.accelerator,
        validation_batches(plan, chosen.max_validation_steps),
        make_dataset(trainer, variants=plan.caption_variants(), is_fixed=True).__getitem__,
        validation_timesteps(*trainer.options.loss.timestep_range),
        chosen.validation_seed or 0,
        trainer.shards,
    )


def make_sampler(trainer: BuiltTraining) -> SamplePictures | None:
    """None where nothing is drawn."""
    if trainer.prompt_file is None or not trainer.options.sampling.is_on:
        return None
    return SamplePictures(
        trainer.prompt_file,
        family=trainer.family,
        encoders=trainer.encoders,
        denoiser=trainer.denoiser,
        device=trainer.device,
        autocast=trainer.accelerator.autocast,
        folder=trainer.folder / "sample",
        output_name=trainer.options.saving.output_name,
        first_step=trainer.continuation.first_step,
        is_stopping=lambda: trainer.stop.is_asked,
        tell=trainer.tell_prompt,
    )
