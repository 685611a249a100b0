"""From options to saved files: the phases of a training.

`Trainer.run` is the list of phases; the steps themselves are in `loop.py`, what it takes to go on with a run in
`continuation.py`. `NetworkTrainer` (and the full fine-tune) say what trains and what is saved. This file imports
nothing heavy at its top, so that wrong options and wrong data are reported before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import EnvironmentFault, OptionError, OutputError
from library.log import get_logger
from library.records import Batch
from library.training.checks import (
    check_block_swap,
    check_free_space,
    check_output_dir,
    check_picture_sizes,
    check_writable,
)
from library.training.continuation import Continuation
from library.training.course import Course
from library.training.processes import scale_fp16_gradients
from library.training.run import Run
from library.training.sampling.prompts import PromptDefaults, PromptFile, SamplePrompt
from library.training.saving.saver import Save, SavePlan, Saver
from library.training.stopping import INTERRUPTED, StopRequest
from library.training.watching.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from library.training.encoding.encoders import Encoders
    from library.training.encoding.text_stage import TextStage
    from library.training.loop import Loop
    from library.training.optimization.ema import Ema
    from library.training.sampling.sampling import SamplePictures
    from library.training.saving.upload import Uploader
    from library.training.stepping.batch_loss import BatchLoss
    from library.training.stepping.optimizer_step import OptimizerStep
    from library.training.stepping.step_log import StepLog, StepReport
    from library.training.stepping.validation import Validation

logger = get_logger(__name__)

STOPPED_UPLOAD_SECONDS = 30.0


class Trainer(Run):
    """Runs a training from options to saved files. Subclasses say what trains.

    Attributes:
        step: Optimizer steps that are done.
        course: What follows from that number.
        stop: Whether the run was asked to stop.
        continuation: Claims the output folder; finds, writes and restores states.
    """

    course: Course
    saves: SavePlan
    saver: Saver
    watch: Watch
    denoiser: nn.Module
    encoders: Encoders
    text: TextStage
    batch_loss: BatchLoss
    optimizer: Optimizer
    schedule: LRScheduler
    log: StepLog
    make_step: OptimizerStep
    loop: Loop

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.prompt_file: PromptFile | None = None
        self.sampler: SamplePictures | None = None
        self.validation: Validation | None = None
        self.uploader: Uploader | None = None
        self.ema: Ema | None = None
        self.stop = StopRequest()
        self.continuation = Continuation(self)
        self.step = 0

    @property
    def prompts(self) -> tuple[SamplePrompt, ...]:
        """What is drawn while training."""
        return () if self.prompt_file is None else self.prompt_file.prompts

    @property
    def loss_history(self) -> list[float]:
        """Mean loss of every optimizer step so far; NaN where one was skipped."""
        return self.log.losses

    @property
    def saved_files(self) -> list[Path]:
        """The model files that were written, in their order."""
        return [self.folder / file.name for file in self.saver.files]

    @property
    def folder(self) -> Path:
        """Where everything is written to."""
        return Path(self.options.saving.output_dir)

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

    def trained_state(self) -> dict[str, Tensor]:
        """{name: tensor} of everything that trains, in the precision it trains in."""
        raise NotImplementedError

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `trained_state` gave, bit by bit."""
        raise NotImplementedError

    def set_training(self, is_training: bool) -> None:
        """Switch what trains between training and evaluation."""
        raise NotImplementedError

    def unchanged_model(self) -> AbstractContextManager[None]:
        """A context in which the model is as it was before training."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What has to happen to the trained weights after each optimizer step."""

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the trained weights; returns the files."""
        raise NotImplementedError

    def session(self) -> dict[str, Any]:
        """What saved files say of this run and of no other, as JSON."""
        return {}

    def optimizer_group_names(self) -> list[str]:
        """Names of the optimizer's groups, for logs."""
        return []

    # Phases

    def run(self) -> int:
        """Train from beginning to end; returns the exit code."""
        with self.stop, self.continuation:
            self.check_options()
            self.plan_run()
            self.inspect_files()
            if self.options.data.dry_run or self.options.data.debug_dataset:
                return self.show()
            self.start()
            if self.continuation.is_finished():
                return 0
            self.look_at_pictures()
            self.load()
            self.build_trainables()
            self.build_optimizer()
            self.build_loop()
            self.announce()
            self.train()
            return self.finish()

    def check_options(self) -> None:
        """Also: optimizer and schedule by name, sample prompts, trackers, output folder."""
        from library.training.optimization.optimizers import find_optimizer
        from library.training.optimization.schedules import check_schedule
        from library.training.watching.trackers import check_trackers

        super().check_options()
        optimizer, sampling = self.options.optimizer, self.options.sampling
        find_optimizer(optimizer.optimizer_name)
        check_schedule(
            optimizer.lr_scheduler, optimizer.lr_warmup_steps, optimizer.lr_scheduler_args, options=optimizer
        )
        check_trackers(self.options.logging)
        if self.options.ema.ema_decay is not None and "schedulefree" in optimizer.optimizer_name.lower():
            raise OptionError(
                f"--ema_decay cannot be used with --optimizer_type {optimizer.optimizer_name}, which averages the "
                "weights itself. Leave one of them out."
            )
        if sampling.sample_prompts:
            self.prompt_file = PromptFile(Path(sampling.sample_prompts), PromptDefaults.of_family(self.family))
        check_output_dir(self.folder)
        self.continuation.check_options()

    def inspect_files(self) -> None:
        """Also: what the model files say about the options, and whose files are in the output folder."""
        from library.device import has_accelerator
        from library.training.optimization.optimizers import check_optimizer

        super().inspect_files()
        buckets = {crop.bucket: None for crop in self.plan.crops}
        prompts = self.prompts if self.options.sampling.is_on else ()
        check_picture_sizes(self.family.longest_side(self.files), buckets, prompts, self.plan.source)
        check_block_swap(self.options.precision.blocks_to_swap, self.family.depth(self.files), has_accelerator())
        self.check_trainables()
        optimizer = self.options.optimizer
        check_optimizer(optimizer.optimizer_name, optimizer.optimizer_args, optimizer.learning_rate, keeps_state=True)
        self._foresee_memory()
        self.course = Course(self.plan.steps)
        self.saves = SavePlan(self.options.saving, self.course, self.extension())
        self.continuation.check_files()

    def _foresee_memory(self) -> None:
        """Say it if reading the text encoders needs more host memory than there is."""
        from library.memory_use import available_host_memory, host_memory_note

        needed = sum(self.family.encoder_bytes(self.files, name) for name in self.family.encoder_names)
        if note := host_memory_note(needed, available_host_memory()):
            logger.warning("%s", note)

    def start(self) -> None:
        """Also: what fp16 means here, uploads, and the state to go on from."""
        from library.device import has_accelerator
        from library.training.saving.upload import make_uploader

        precision = self.options.precision
        if precision.mixed_precision == "fp16" and not has_accelerator():
            logger.warning(
                "fp16 without a GPU has no loss scaling, small gradients may vanish, and it is slow; "
                "use --mixed_precision bf16, or leave it out."
            )
        super().start()
        if precision.full_fp16 and self.accelerator.scaler is not None:
            scale_fp16_gradients(self.accelerator.scaler)
        uploader = make_uploader(self.options.hub)
        self.uploader = uploader if self.accelerator.is_main_process else None
        self.continuation.find()

    def show(self) -> int:
        """What would be trained, instead of training; returns the exit code."""
        from library.training.looking.look import show_batches, show_plan

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
            self.course = Course(self.plan.steps)
            self.saves = SavePlan(self.options.saving, self.course, self.extension())
        self.set_aside()
        self.continuation.compare()

    def _make_encoders(self) -> Encoders:
        from library.training.encoding.encoders import Encoders

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
        """Optimizer, schedule and average over what trains."""
        from library.training.optimization.optimizers import forced_schedule, make_optimizer
        from library.training.optimization.schedules import make_schedule

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
        if self.options.ema.ema_decay is not None:
            import torch

            from library.training.optimization.ema import Ema

            device = torch.device("cpu") if self.options.ema.ema_device == "cpu" else None
            self.ema = Ema(self.trained_parameters(), self.options.ema.ema_decay, device)

    def trained_parameters(self) -> list[Any]:
        """Everything that the optimizer changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def build_loop(self) -> None:
        """What makes steps and what watches them; then, with `--resume`, the state is put back."""
        from library.training.building import make_batch_loss, make_sampler, make_validation
        from library.training.loop import Loop
        from library.training.stepping.optimizer_step import OptimizerStep
        from library.training.stepping.step_log import StepLog

        self.log = StepLog()
        self.batch_loss = make_batch_loss(self)
        self.make_step = OptimizerStep(
            self.accelerator,
            self.batch_loss,
            self.optimizer,
            self.schedule,
            self.options.training.gradient_accumulation_steps,
            self.options.optimizer.max_grad_norm,
            self.learning_rates,
        )
        upload = None if self.uploader is None else self.uploader.submit
        self.saver = Saver(self.folder, self.saves, self._write_models, self.continuation.write, upload)
        self.saver.uploads_states = self.options.hub.save_state_to_huggingface
        self.watch = Watch(self)
        self.validation = make_validation(self)
        self.loop = Loop(self)
        self.continuation.restore()
        num_averages = int(self.ema is not None)
        check_free_space(
            self.folder, self.saves, self.trained_parameters(), first_step=self.step, num_averages=num_averages
        )
        self.sampler = make_sampler(self)

    def announce(self) -> None:
        """The start banner."""
        from library.device import device_words
        from library.training.optimization.optimizers import sets_its_own_rate

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

    def train(self) -> None:
        """All steps that are left. Where data cannot be read any more, what was trained so far is saved.

        Raises:
            DatasetError: A picture or a cached caption has vanished or been damaged meanwhile.
            DivergedError: Losses are not finite any more.
        """
        self.watch.start(self.step)
        self.stop.is_training = True
        try:
            self.loop.run()
        finally:
            self.stop.is_training = False
            self.watch.close_bar()

    def finish(self) -> int:
        """Write the final file, or say how to go on; returns the exit code."""
        saving, end = self.options.saving, self.saves.of_end()
        if not self.loop.is_stopped:
            self._save_last(end)
            if saving.save_state or saving.save_state_on_train_end:
                self.save_state(end)
        if self.accelerator.is_main_process:
            self.watch.finish(self._finish_uploads(), INTERRUPTED if self.loop.is_stopped else 0)
            if self.loop.is_stopped:
                logger.info("stopped after step %d; continue with --resume auto.", self.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return INTERRUPTED if self.loop.is_stopped else 0

    def _finish_uploads(self) -> list[str]:
        """Lines about copies on the hub. Who has stopped a run does not want to wait long for them."""
        if self.uploader is None:
            return []
        return self.uploader.finish(STOPPED_UPLOAD_SECONDS) if self.loop.is_stopped else self.uploader.finish()

    # Steps

    def optimizer_step(self, batches: list[Batch]) -> None:
        """Make a step, and count it."""
        self.set_training(True)
        self._optimizer_step(batches)
        self.after_step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1

    def _optimizer_step(self, batches: list[Batch]) -> None:
        asked, failed = self.stop.is_asked, self.loop.has_failed
        try:
            samples, values = self.make_step(batches, is_stop_asked=asked, has_failed=failed)
        except EnvironmentFault as error:
            self.loop.fail(error)
            samples, values = self.make_step([], is_stop_asked=asked, has_failed=True)
        self.report = self.log.push(self.step + 1, samples, values, self.make_step.rates)

    def take_report(self) -> StepReport | None:
        """Of the step before the last one."""
        return self.report

    def flush_report(self) -> StepReport | None:
        """Of the last step, waiting for it; None if it has been taken."""
        return self.log.flush()

    def learning_rates(self) -> dict[str, float]:
        """{"lr/<part>": rate} as the optimizer uses them."""
        from library.training.optimization.optimizer_rates import learning_rates

        return learning_rates(self.optimizer, self.optimizer_group_names())

    def end_epoch_of_schedule(self) -> None:
        """Tell a schedule that follows the loss what the epoch's was."""
        from library.training.optimization.schedule_classes import end_epoch

        mean = self.log.mean_of_last(self.plan.steps.steps_per_epoch)
        if mean is not None:
            end_epoch(self.schedule, mean)

    def draw_other_noise(self, attempt: int) -> None:
        """From here on the noise is another one than on the way to where the run came back from."""
        self.batch_loss = self.make_step.batch_loss = replace(self.batch_loss, attempt=attempt)

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Batches of all steps after `step`, in the order of the plans; the loader's workers never restart."""
        from library.training.building import make_batches

        return make_batches(self, step)

    @contextmanager
    def shown_weights(self) -> Iterator[None]:
        """A context for samples and validation: no dropout, and the weights that are meant to be used."""
        from library.training.optimization.optimizer_modes import evaluation_weights

        self.set_training(False)
        with evaluation_weights(self.optimizer) if self.ema is None else self.ema.applied():
            yield

    # After a step

    def is_validation_due(self, epoch_end: int | None) -> bool:
        """Whether the validation loss is computed now; after every epoch if nothing else is said."""
        chosen = self.options.validation
        every_n_epochs = chosen.validate_every_n_epochs
        if every_n_epochs is None and chosen.validate_every_n_steps is None:
            every_n_epochs = 1
        is_step = self.course.is_save_due(self.step, chosen.validate_every_n_steps)
        return is_step or bool(epoch_end and every_n_epochs and epoch_end % every_n_epochs == 0)

    def validate(self) -> float:
        """The validation loss of the weights as they are; all processes take part."""
        assert self.validation is not None
        with self.shown_weights():
            loss = self.validation(self.batch_loss)
        self.watch.validation(self.step, loss)
        return loss

    def sample_if_due(self, *, epoch_end: int | None) -> None:
        """Draw the sample prompts if their time has come."""
        from library.training.sampling.sampling import is_sample_due

        sampling = self.options.sampling
        if is_sample_due(self.step, epoch_end, sampling.sample_every_n_steps, sampling.sample_every_n_epochs):
            self.draw_samples(epoch_end=epoch_end)

    def draw_samples(self, *, epoch_end: int | None) -> None:
        """Draw the sample prompts on the main process; the training draws are not touched."""
        if self.sampler is None:
            return
        if self.accelerator.is_main_process:
            with self.shown_weights():
                self.sampler.draw(step=self.step, epoch_end=epoch_end)
            self.watch.pictures(self.sampler.last_drawn, self.step)
        self.accelerator.wait_for_everyone()

    # Saving

    def save_model(self, save: Save) -> None:
        """Write a model file in between."""
        if self.accelerator.is_main_process:
            self.continuation.remember()
            self.saver.try_to_save_model(save, self.step)
        self.accelerator.wait_for_everyone()

    def save_state(self, save: Save) -> None:
        """Write a state folder; all processes take part, the main one writes."""
        self.watch.gather()
        if self.accelerator.is_main_process:
            self.continuation.remember()
            self.saver.try_to_save_state(save)
        self.accelerator.wait_for_everyone()

    def _save_last(self, end: Save) -> None:
        if self.accelerator.is_main_process:
            self.continuation.remember()
            try:
                self.saver.save_model(end, self.step)
            except OutputError:
                self.watch.gather_here()
                self.saver.try_to_save_state(end)  # there may be room for it, or it may lie elsewhere
                raise
        self.accelerator.wait_for_everyone()

    def _write_models(self, path: Path, step: int, epoch: int) -> list[Path]:
        """The weights as trained and, where one is kept, their average."""
        from library.training.optimization.optimizer_modes import evaluation_weights
        from library.training.saving.saver import average_path, refuse_non_finite

        refuse_non_finite(self.trained_parameters(), path)
        with evaluation_weights(self.optimizer):
            written = self.write_model(path, step=step, epoch=epoch)
        if self.ema is not None:
            with self.ema.applied():
                written += self.write_model(average_path(path), step=step, epoch=epoch)
        return written

    def extension(self) -> str:
        """Ending of the saved files."""
        return {"ckpt": ".ckpt", "pt": ".pt"}.get(self.options.saving.save_model_as or "", ".safetensors")
