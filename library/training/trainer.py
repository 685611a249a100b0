"""The one training loop.

`Trainer.run` is the list of phases. `NetworkTrainer` (and the full fine-tune) say what trains and what
is saved. This file imports nothing heavy at its top, so that wrong options and wrong data are
reported before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import DatasetError, OutputError
from library.log import get_logger
from library.records import Batch
from library.training.checks import check_block_swap, check_output_dir, check_picture_sizes, check_writable
from library.training.loss_log import LossLog
from library.training.processes import average_over_processes, scale_fp16_gradients, shared_gradients
from library.training.prompts import SamplePrompt, load_prompts
from library.training.run import Run

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from library.training.batch_loss import BatchLoss
    from library.training.encoders import Encoders
    from library.training.text_stage import TextStage

logger = get_logger(__name__)


class Trainer(Run):
    """Runs a training from options to saved files. Subclasses say what trains.

    Attributes:
        losses: Mean loss of every optimizer step, over all processes.
        saved_files: In the order they were written.
    """

    denoiser: nn.Module
    encoders: Encoders
    text: TextStage
    batch_loss: BatchLoss
    optimizer: Optimizer
    schedule: LRScheduler

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.prompts: tuple[SamplePrompt, ...] = ()
        self.losses = LossLog()
        self.saved_files: list[Path] = []
        self.step = 0

    @property
    def loss_history(self) -> list[float]:
        """Mean loss of every optimizer step so far."""
        return self.losses.values

    # What a kind of training defines

    def check_trainables(self) -> None:
        """Refuse options that do not fit `self.files`, before weights are read."""
        raise NotImplementedError

    def trained_encoders(self) -> tuple[str, ...]:
        """Names of the text encoders that train; they cannot be cached."""
        raise NotImplementedError

    def build_trainables(self) -> None:
        """Make what trains, after the models are loaded."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        raise NotImplementedError

    def set_training(self, is_training: bool) -> None:
        """Switch what trains between training and evaluation."""
        raise NotImplementedError

    def unchanged_model(self) -> AbstractContextManager[None]:
        """A context in which the model is as it was before training."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What has to happen to the trained weights after each optimizer step."""

    def save(self, path: Path, *, step: int, epoch: int) -> None:
        """Write the trained weights."""
        raise NotImplementedError

    # Phases

    def run(self) -> int:
        """Train from beginning to end; returns the exit code."""
        self.check_options()
        self.plan_run()
        self.inspect_files()
        if self.options.data.dry_run or self.options.data.debug_dataset:
            return self.show()
        self.start()
        self.look_at_pictures()
        self.load()
        self.build_trainables()
        self.build_optimizer()
        self.announce()
        self.train()
        self.finish()
        return 0

    def check_options(self) -> None:
        """Also: schedule, sample prompts and output folder."""
        from library.training.schedules import check_schedule

        super().check_options()
        optimizer, sampling = self.options.optimizer, self.options.sampling
        check_schedule(
            optimizer.lr_scheduler, optimizer.lr_warmup_steps, optimizer.lr_scheduler_args, options=optimizer
        )
        if sampling.sample_prompts:
            self.prompts = load_prompts(
                Path(sampling.sample_prompts),
                size=self.family.sample_size,
                steps=self.family.sample_steps,
                scale=self.family.sample_guidance,
            )
        check_output_dir(Path(self.options.saving.output_dir))

    def inspect_files(self) -> None:
        """Also: what the model files say about the options."""
        from library.device import has_accelerator
        from library.training.optimizers import check_optimizer

        super().inspect_files()
        buckets = {crop.bucket: None for crop in self.plan.crops}
        prompts = self.prompts if self.options.sampling.is_on else ()
        check_picture_sizes(self.family.longest_side(self.files), buckets, prompts, self.plan.source)
        check_block_swap(self.options.precision.blocks_to_swap, self.family.depth(self.files), has_accelerator())
        self.check_trainables()
        optimizer = self.options.optimizer
        check_optimizer(optimizer.optimizer_name, optimizer.optimizer_args, optimizer.learning_rate)

    def start(self) -> None:
        """Also: what fp16 means here."""
        from library.device import has_accelerator

        precision = self.options.precision
        if precision.mixed_precision == "fp16" and not has_accelerator():
            logger.warning(
                "fp16 without a GPU has no loss scaling, small gradients may vanish, and it is slow; "
                "use --mixed_precision bf16, or leave it out."
            )
        super().start()
        if precision.full_fp16 and self.accelerator.scaler is not None:
            scale_fp16_gradients(self.accelerator.scaler)

    def show(self) -> int:
        """What would be trained, instead of training; returns the exit code."""
        from library.training.look import show_batches, show_plan

        if self.options.data.dry_run:
            show_plan(self, trained=self.trained_encoders())
        if self.options.data.debug_dataset:
            show_batches(self)
        self.plan.tell_unusable()
        self._check_folders()
        return 0

    def _check_folders(self) -> None:
        """Whether caches and quarantine could be written, for looking without writing."""
        from library.data.cache import cache_folders

        cache = self.options.cache
        if cache.cache_latents_to_disk or cache.cache_text_encoder_outputs_to_disk:
            advice = "Choose another --cache_dir" if cache.cache_dir else "Give a folder for caches with --cache_dir"
            check_writable(cache_folders(self.plan.records, cache.cache_dir), advice)
        if self.options.data.on_bad_file == "quarantine":
            folders = {fault.picture.parent for fault in self.plan.findings.faults}
            check_writable(sorted(folders), "Make it writable, or use --on_bad_file=skip")

    def look_at_pictures(self) -> None:
        """Decode what will be decoded, once: damage behind an intact header is told before weights are read."""
        self.encoders = self._make_encoders()
        broken = self.broken_pictures(self.encoders.decoded_records())
        if broken:
            self.leave_out(broken)
            self.encoders = self._make_encoders()
        self.set_aside()

    def _make_encoders(self) -> Encoders:
        from library.training.encoders import Encoders

        file = self.options.sampling.sample_prompts
        return Encoders(
            self.options.cache,
            family=self.family,
            files=self.files,
            plan=self.plan,
            accelerator=self.accelerator,
            dtype=self.weight_dtype,
            keeps_full_vae=self.options.precision.no_half_vae,
            trained=self.trained_encoders(),
            prompts=sorted({text for prompt in self.prompts for text in (prompt.prompt, prompt.negative_prompt)}),
            prompt_folder=file.with_name(f"{file.name}_cache") if file else None,
        )

    def load(self) -> None:
        """Fill the caches, load the encoders that run in every step, then the denoiser."""
        self.encoders.load()
        self.text = self.encoders.text
        self.denoiser = self.family.load_denoiser(self.files, self.weight_dtype, self.device)
        if self.options.training.gradient_checkpointing:
            self.denoiser.gradient_checkpointing = True  # type: ignore[assignment]

    def build_optimizer(self) -> None:
        """Optimizer and schedule over what trains."""
        from library.training.optimizers import forced_schedule, make_optimizer
        from library.training.schedules import make_schedule

        chosen = self.options.optimizer
        optimizer = make_optimizer(
            chosen.optimizer_name,
            self.parameter_groups(),
            learning_rate=chosen.learning_rate,
            args=chosen.optimizer_args,
        )
        forced = forced_schedule(chosen.optimizer_name, chosen.optimizer_args, chosen.learning_rate)
        self.schedule = make_schedule(
            optimizer,
            forced or chosen.lr_scheduler,
            num_steps=self.plan.steps.max_steps,
            warmup=chosen.lr_warmup_steps,
            options=chosen,
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def announce(self) -> None:
        """The start banner."""
        from library.device import device_words
        from library.training.optimizers import sets_its_own_rate

        optimizer, checkpoints = self.options.optimizer, self.options.training.gradient_checkpointing
        is_own = sets_its_own_rate(optimizer.optimizer_name, optimizer.optimizer_args)
        rate = "at a rate of its own" if is_own else f"at {optimizer.learning_rate:g}"
        lines = [
            self.plan.steps.describe(),
            f"seed {self.seed}, {optimizer.optimizer_name} {rate}, "
            f"mixed precision {self.options.precision.mixed_precision}, "
            f"gradient checkpointing {'on' if checkpoints else 'off'}, on {device_words(self.device)}",
            *self.describe_trainables(),
        ]
        for line in lines:
            logger.info("%s", line)

    def describe_trainables(self) -> list[str]:
        """Lines of the start banner about what trains."""
        return []

    # The loop

    def train(self) -> None:
        """All epochs, up to the last step. Where data cannot be read any more, what was trained so far is saved.

        Raises:
            DatasetError: A picture or a cached caption has vanished or been damaged meanwhile.
        """
        self.batch_loss = self._make_batch_loss()
        try:
            self._train_epochs()
        except DatasetError:
            if self.step and self.accelerator.num_processes == 1:
                self._try_to_save(epoch=self.step // self.plan.steps.steps_per_epoch, is_step=True)
            raise

    def _train_epochs(self) -> None:
        from tqdm import tqdm

        steps, every = self.plan.steps, self.options.saving
        batches = self._batches()
        if self.options.sampling.sample_at_first:
            self._sample(epoch_end=0)
        with tqdm(total=steps.max_steps, desc="steps", disable=not self.accelerator.is_local_main_process) as bar:
            for epoch in range(1, steps.epochs + 1):
                for num_batches in steps.step_sizes:
                    self._optimizer_step([next(batches) for _ in range(num_batches)])
                    self._show(bar)
                    self._sample_if_due(epoch_end=None)
                    if every.save_every_n_steps and self.step % every.save_every_n_steps == 0:
                        self._try_to_save(epoch=epoch - 1, is_step=True)
                    if self.step >= steps.max_steps:
                        break
                is_last = epoch == steps.epochs
                if every.save_every_n_epochs and epoch % every.save_every_n_epochs == 0 and not is_last:
                    self._try_to_save(epoch=epoch, is_step=False)
                self._sample_if_due(epoch_end=epoch)
            self.losses.flush()
            self._show(bar, advance=0)

    def _make_batch_loss(self) -> BatchLoss:
        from library.diffusion.loss import LossSettings
        from library.training.batch_loss import BatchLoss

        loss = self.options.loss
        settings = LossSettings(loss.loss_type, loss.huber_schedule, loss.huber_c, loss.huber_scale)
        return BatchLoss(
            self.family,
            self.denoiser,
            self.text,
            self.encoders.vae,
            settings,
            self.accelerator.autocast,
            self.unchanged_model,
            self.seed,
        )

    def _batches(self) -> Iterator[Batch]:
        """Batches of the whole run, in the order of the plans; the loader's workers never restart."""
        from library.data.loader import BatchDataset, make_loader

        dataset = BatchDataset(
            self.plan.records,
            self.plan.crops,
            self.plan.specs,
            latents=self.encoders.latents,
            texts=self.encoders.texts,
            variants=self.plan.caption_variants() if self.encoders.texts is not None else None,
            cells=self.family.pixels_per_latent,
            seed=self.seed,
            max_steps=self.plan.steps.max_steps,
        )
        epochs, rank = range(1, self.plan.steps.epochs + 1), self.accelerator.process_index
        plans = (plan for epoch in epochs for plan in self.plan.epoch(epoch, seed=self.seed, rank=rank))
        loader = make_loader(
            dataset,
            plans,
            num_workers=self.options.training.max_data_loader_n_workers,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _optimizer_step(self, batches: list[Batch]) -> None:
        """Forward and backward over the batches of a step, then one update.

        Each batch counts 1 / (accumulation x processes), in a short last group too, so every picture weighs
        the same in an epoch.
        """
        import torch

        self.set_training(True)
        accumulation = self.options.training.gradient_accumulation_steps
        losses = []
        for batch in batches:
            loss = self.batch_loss(batch.to(self.device)) * batch.weight
            self.accelerator.backward(loss / accumulation)
            losses.append(loss.detach())
        num_counted = torch.full_like(losses[0], sum(batch.weight for batch in batches))
        seen = torch.stack([torch.stack(losses).sum(), num_counted])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        average_over_processes(self.accelerator, [*shared_gradients(parameters), seen])
        if self.options.optimizer.max_grad_norm > 0:
            self.accelerator.unscale_gradients()  # its own clipping loads much that only sharded gradients need
            torch.nn.utils.clip_grad_norm_(parameters, self.options.optimizer.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.after_step()
        self.step += 1
        self.losses.push(seen[0] / seen[1])

    def _show(self, bar: Any, advance: int = 1) -> None:
        mean = self.losses.mean_of_last(self.plan.steps.steps_per_epoch)
        if mean is not None:
            rate = self.schedule.get_last_lr()[-1]
            bar.set_postfix(avr_loss=f"{mean:.4f}", lr=f"{rate:.3g}", refresh=False)
        bar.update(advance)

    # Saving and samples

    def finish(self) -> None:
        """Write the final file."""
        from library.device import memory_words

        self._save_at(epoch=self.plan.steps.epochs, is_step=False, is_last=True)
        if self.accelerator.is_main_process:
            logger.info("done: %s", self.saved_files[-1])
            logger.info("most memory in use: %s", memory_words(self.device) or "unknown")
        self.accelerator.end_training()

    def _try_to_save(self, *, epoch: int, is_step: bool) -> None:
        """Save in between. A full disk then costs this file and not the training."""
        try:
            self._save_at(epoch=epoch, is_step=is_step)
        except OutputError as error:
            logger.error("not saved, training goes on: %s", error)
            self.accelerator.wait_for_everyone()

    def _save_at(self, *, epoch: int, is_step: bool, is_last: bool = False) -> None:
        from library.checkpoint.names import epoch_name, last_name, step_name

        saving = self.options.saving
        extension = self.extension()
        if is_last:
            name = last_name(saving.output_name, extension)
        elif is_step:
            name = step_name(saving.output_name, extension, self.step)
        else:
            name = epoch_name(saving.output_name, extension, epoch)
        if self.accelerator.is_main_process:
            path = Path(saving.output_dir) / name
            self.save(path, step=self.step, epoch=epoch)
            self.saved_files.append(path)
            logger.info("saved %s", path)
        self.accelerator.wait_for_everyone()

    def extension(self) -> str:
        """Ending of the saved files."""
        return {"ckpt": ".ckpt", "pt": ".pt"}.get(self.options.saving.save_model_as or "", ".safetensors")

    def _sample_if_due(self, *, epoch_end: int | None) -> None:
        from library.training.sampling import is_sample_due

        sampling = self.options.sampling
        if self.prompts and is_sample_due(
            self.step, epoch_end, sampling.sample_every_n_steps, sampling.sample_every_n_epochs
        ):
            self._sample(epoch_end=epoch_end)

    def _sample(self, *, epoch_end: int | None) -> None:
        """Draw the sample prompts on the main process; the training draws are not touched."""
        from library.training.sampling import save_samples

        if self.prompts and self.accelerator.is_main_process:
            self.set_training(False)
            save_samples(
                self.prompts,
                family=self.family,
                denoiser=self.denoiser,
                vae=self.encoders.vae(),
                text=self.text,
                device=self.device,
                autocast=self.accelerator.autocast,
                folder=Path(self.options.saving.output_dir) / "sample",
                output_name=self.options.saving.output_name,
                step=self.step,
                epoch_end=epoch_end,
            )
            self.encoders.park_vae()
        self.accelerator.wait_for_everyone()
