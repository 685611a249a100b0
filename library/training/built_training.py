"""What a training is made of and what it can do once it is built: steps, samples, validation, saving.

Kinds of training (adapters, the whole model) say here what trains and what is saved. When something is done is decided
by `loop.py`; how everything is built, by the phases in `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import DatasetError, EnvironmentFault, OutputError
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.records import Batch
from library.training.continuation import Continuation
from library.training.course import Course
from library.training.run import Run
from library.training.sampling.prompts import PromptFile, SamplePrompt
from library.training.saving.saver import Save, SavePlan, Saver
from library.training.sharding.unsharded import Unsharded
from library.training.stopping import StopRequest
from library.training.watching.watch import Watch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from library.memory.block_swap import BlockSwapper
    from library.training.encoding.encoders import Encoders
    from library.training.encoding.text_stage import TextStage
    from library.training.loop import Loop
    from library.training.optimization.ema import Ema
    from library.training.sampling.sampling import SamplePictures
    from library.training.saving.run_metadata import RunMetadata
    from library.training.saving.upload import Uploader
    from library.training.sharding.settings import ShardingSettings
    from library.training.stepping.batch_loss import BatchLoss
    from library.training.stepping.optimizer_step import OptimizerStep
    from library.training.stepping.step_log import StepLog, StepReport
    from library.training.stepping.validation import Validation

logger = get_logger(__name__)


class BuiltTraining(Run):
    """A training, what it can do once it is built, and what kinds of training define.

    Attributes:
        step: Optimizer steps that are done.
        course: What follows from that number.
        stop: Whether the run was asked to stop.
        sharding: What is asked for; None where every process has the whole model.
        shards: How the model lies in the processes.
        swapper: Lets blocks of the denoiser wait in host memory; None where all are on the device.
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
        self.sharding: ShardingSettings | None = None
        self.shards = Unsharded()
        self.swapper: BlockSwapper | None = None
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

    def model_dtype(self, *, is_trained: bool = False) -> torch.dtype:
        """Format in which the denoiser, or an encoder that trains, is loaded. By default that of what is frozen."""
        return self.weight_dtype

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

    def tell(self, batch: Batch) -> None:
        """Tell what trains of a batch, before the denoiser runs. By default there is nothing to tell."""

    def tell_prompt(self, prompt: SamplePrompt) -> None:
        """Tell what trains of a prompt, before it is drawn. By default there is nothing to tell."""

    def unchanged_model(self) -> AbstractContextManager[None]:
        """A context in which the model is as it was before training."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What has to happen to the trained weights after each optimizer step."""

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the trained weights; returns the files."""
        raise NotImplementedError

    def has_header(self) -> bool:
        """Whether saved files have a place for metadata."""
        return True

    def side_parts(self) -> tuple[str, ...]:
        """Parts of a model that are saved in files of their own beside it."""
        return ()

    def model_bytes(self) -> int | None:
        """What one saved model takes; None for the size of what trains."""
        return None

    def session(self) -> dict[str, Any]:
        """What saved files say of this run and of no other, as JSON."""
        return {}

    def highest_rate(self) -> float:
        """The highest learning rate of what trains."""
        return float(self.options.optimizer.learning_rate)

    def optimizer_group_names(self) -> list[str]:
        """Names of the optimizer's groups, for logs."""
        return []

    def describe_trainables(self) -> list[str]:
        """Lines of the start banner about what trains."""
        return []

    def planned_trainables(self) -> list[str]:
        """What of the model will train and at which rates, told before anything is built."""
        return []

    def rates_in_words(self, rates: Mapping[str, float | str]) -> list[str]:
        """A line about parts and their rates; what has the rate 0 does not train."""
        from library.training.optimization.optimizers import sets_its_own_rate

        chosen = self.options.optimizer
        is_own = sets_its_own_rate(chosen.optimizer_name, chosen.optimizer_args)
        words = {name: f"{rate:g}" if isinstance(rate, float | int) else rate for name, rate in rates.items() if rate}
        listed = ", ".join(name if is_own else f"{name} at {rate}" for name, rate in words.items())
        return [f"trains: {listed}" + (" at a rate of the optimizer's own" if is_own else "")]

    def trained_parameters(self) -> list[Any]:
        """Everything that the optimizer changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    # Models

    def set_models_training(self, is_training: bool) -> None:
        """Switch the denoiser and the encoders that train."""
        for model in (self.denoiser, *(self.text.encoders[name] for name in self.trained_encoders())):
            if model.training != is_training:  # walking through all modules takes a moment
                model.train(is_training)

    def checkpoint_encoders(self) -> None:
        """Recompute the layers of encoders that train in the backward pass. Newer transformers rename the method."""
        for name in self.trained_encoders():
            encoder: Any = self.text.encoders[name]
            new = getattr(encoder, "activation_checkpointing_enable", None)
            (new or encoder.gradient_checkpointing_enable)({"use_reentrant": False})

    # Steps

    def optimizer_step(self, batches: list[Batch]) -> None:
        """Make a step, and count it."""
        self.set_training(True)
        self._optimizer_step(batches)
        self.after_step()
        if self.ema is not None:
            self.shards.settle()
            self.ema.update()
        self.step += 1
        self.make_step.is_halfway = False

    def _optimizer_step(self, batches: list[Batch]) -> None:
        asked, failed = self.stop.is_asked, self.loop.has_failed
        if self.shards.any_failed(failed):
            batches = []
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

    def batches_from(self, step: int) -> Generator[Batch, None, None]:
        """Batches of all steps after `step`, in the order of the plans. The loader's workers never restart; closing it
        ends them."""
        from library.training.building import make_batches

        return make_batches(self, step)

    @contextmanager
    def weights_to_show(self) -> Iterator[None]:
        """A context for samples and validation: no dropout, and the weights that are meant to be used."""
        from library.training.optimization.optimizer_modes import evaluation_weights

        self.set_training(False)
        try:
            with evaluation_weights(self.optimizer) if self.ema is None else self.average_weights():
                self.shards.forget_gathered()
                yield
        finally:
            self.shards.forget_gathered()

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """A context in which the weights are their average."""
        assert self.ema is not None
        self.shards.settle()
        with self.ema.applied():
            try:
                yield
            finally:
                self.shards.settle()

    def shown_weights(self) -> AbstractContextManager[None]:
        """`weights_to_show`; where one process leads the others, on all of them."""
        return self.shards.everywhere("shown")

    # After a step

    def is_validation_due(self, epoch_end: int | None) -> bool:
        """Whether the validation loss is computed now; after every epoch if nothing else is said."""
        chosen = self.options.validation
        every_n_epochs = chosen.validate_every_n_epochs
        if every_n_epochs is None and chosen.validate_every_n_steps is None:
            every_n_epochs = 1
        is_step = self.course.is_save_due(self.step, chosen.validate_every_n_steps)
        return is_step or bool(epoch_end and every_n_epochs and epoch_end % every_n_epochs == 0)

    def validate(self) -> None:
        """Take the validation loss of the weights as they are; all processes take part. No fault in it ends a run."""
        assert self.validation is not None
        try:
            with self.shown_weights():
                loss = self.validation(self.batch_loss)
        except (DatasetError, EnvironmentFault) as error:
            logger.error("no validation loss at step %d, training goes on: %s", self.step, error)
            return
        self.watch.validation(self.step, loss)

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
        self.shards.lead(self.accelerator, partial(self._draw_samples, self.sampler, epoch_end))

    def _draw_samples(self, sampler: SamplePictures, epoch_end: int | None) -> None:
        try:
            with self.shown_weights(), self._swapping_for_samples():
                sampler.draw(step=self.step, epoch_end=epoch_end)
        except RuntimeError as error:  # the sampler tells its own; here is what puts the weights in place
            if not is_out_of_memory(error):
                raise
            logger.error("no sample pictures at step %d, training goes on: there is not enough memory", self.step)
        self.watch.pictures(sampler.last_drawn, self.step)

    @contextmanager
    def _swapping_for_samples(self) -> Iterator[None]:
        """A context in which `--sample_blocks_to_swap` counts, if there is memory for it."""
        number = self.options.memory.sample_blocks_to_swap
        with ExitStack() as stack:
            if self.swapper is not None and number is not None:
                try:
                    stack.enter_context(self.swapper.swapping(number))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    logger.warning(
                        "--sample_blocks_to_swap %d: there is no memory for so many blocks on the GPU; these samples "
                        "are drawn with --blocks_to_swap.",
                        number,
                    )
            yield

    # Saving

    def save_model(self, save: Save) -> None:
        """Write a model file in between."""

        def write() -> None:
            self.continuation.remember()
            self.saver.try_to_save_model(save, self.step)

        self.shards.lead(self.accelerator, write)

    def save_state(self, save: Save) -> bool:
        """Write a state folder; all processes take part, the main one writes. Whether it could be written, there."""

        def write() -> bool:
            self.continuation.remember()
            return self.saver.try_to_save_state(save)

        self.watch.gather()
        return self.shards.lead(self.accelerator, write) is not False

    def save_last(self, end: Save) -> None:
        """Write the final file; where that fails, at least a state.

        Raises:
            OutputError: It cannot be written.
            EnvironmentFault: There is no memory to write it.
        """

        def write() -> None:
            self.continuation.remember()
            try:
                self.saver.save_model(end, self.step)
            except (OutputError, EnvironmentFault):
                self.watch.gather_here()
                self.saver.try_to_save_state(end)  # there may be room for it, or it may lie elsewhere
                raise

        try:
            self.shards.lead(self.accelerator, write)
        except RuntimeError as error:
            self.shards.refuse_to_go_on(error)
            raise

    @contextmanager
    def memory_for(self, path: Path) -> Iterator[None]:
        """A context for writing something. Having no memory for it is one of the faults that cost a file.

        Raises:
            EnvironmentFault: There is none.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if self.shards.is_sharded or not is_out_of_memory(error):  # the other processes may wait inside a pass
                raise
            reason = str(error).partition("\n")[0]
            raise EnvironmentFault(
                f"{path}: not enough memory to write it ({reason}). Use --gradient_checkpointing, a lower resolution "
                "or a smaller batch, or close other programs."
            ) from error

    def _write_models(self, path: Path, step: int, epoch: int) -> list[Path]:
        """The weights as trained and, where one is kept, their average."""
        from library.training.optimization.optimizer_modes import evaluation_weights
        from library.training.saving.saver import average_path, refuse_non_finite

        with self.memory_for(path):
            refuse_non_finite(self.shards.all_finite(), path)
            with evaluation_weights(self.optimizer):
                written = self.write_model(path, step=step, epoch=epoch)
            if self.ema is not None:
                with self.shards.everywhere("average"):
                    written += self.write_model(average_path(path), step=step, epoch=epoch)
        return written

    def describe_run(self, network_args: Mapping[str, str] | None = None) -> RunMetadata:
        """What is known at the start of what saved files say."""
        from library.training.saving.run_metadata import RunMetadata

        return RunMetadata(
            self.described_values(),
            family=self.family,
            files=self.files,
            plan=self.plan,
            seed=self.seed,
            network_args=network_args or {},
            is_saved_here=self.accelerator.is_main_process,
            session=self.continuation.session,
        )

    def described_values(self) -> dict[str, Any]:
        """The options by name, as files tell them."""
        return {**self.options.values(), "optimizer_type": self.options.optimizer.optimizer_name}

    def save_dtype(self) -> torch.dtype | None:
        """Number format of saved files; None for that of training."""
        from library.device import precision_dtype

        precision = self.options.saving.save_precision
        return precision_dtype(precision) if precision else None

    def extension(self) -> str:
        """Ending of the saved files."""
        return {"ckpt": ".ckpt", "pt": ".pt"}.get(self.options.saving.save_model_as or "", ".safetensors")
