"""From options to saved files: the phases of a training.

`Trainer.run` is the list of phases. What the built training can do is in `built_training.py`, when it does it in
`loop.py`, what it takes to go on with a run in `continuation.py`. This file imports nothing heavy at its top, so that
wrong options and wrong data are reported before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import OptionError, OutputError, UserError
from library.log import get_logger
from library.options.entry import INTERRUPTED
from library.training.attention_choice import check_attention, check_attention_device, chosen_attention
from library.training.checks import (
    check_block_swap,
    check_free_space,
    check_output_dir,
    check_picture_sizes,
    check_steps_in_backward,
    check_writable,
)
from library.training.compiling import check_compiler, compute_capability
from library.training.course import Course
from library.training.denoiser_phases import DenoiserPhases
from library.training.processes import scale_fp16_gradients
from library.training.sampling.prompts import PromptDefaults, PromptFile
from library.training.saving.saver import SavePlan, Saver
from library.training.sharding.launch import read_settings
from library.training.sharding.limits import check_sharding
from library.training.watching.watch import Watch

if TYPE_CHECKING:
    from library.training.encoding.encoders import Encoders

logger = get_logger(__name__)

STOPPED_UPLOAD_SECONDS = 30.0


class Trainer(DenoiserPhases):
    """Runs a training from options to saved files. Subclasses say what trains."""

    # Phases

    def run(self) -> int:
        """Train from beginning to end; returns the exit code."""
        with self.stop, self.continuation:
            code = self.prepare()
            if code is not None:
                return code
            self.train()
            return self.finish()

    def prepare(self) -> int | None:
        """Everything before the first step; the exit code where there is nothing to train."""
        self.stop.is_training = False
        self.check_options()
        self.plan_run()
        self.inspect_files()
        if self.options.data.dry_run or self.options.data.debug_dataset:
            return self.show()
        self.start()
        self.look_at_pictures()
        if self.continuation.is_finished():
            return 0
        self.load()
        self.build_trainables()
        self.compile_blocks()
        self.swap_blocks()
        self.build_optimizer()
        self.build_loop()
        self.announce()
        self.warm_up()
        return None

    def check_options(self) -> None:
        """Also: optimizer and schedule by name, sample prompts, trackers, output folder."""
        from library.training.optimization.optimizers import find_optimizer
        from library.training.optimization.schedules import check_schedule
        from library.training.watching.trackers import check_trackers

        super().check_options()
        if self.options.distributed.deepspeed and not self.can_shard:
            raise OptionError(
                "--deepspeed shards a model that trains as a whole, which this script does not do. Leave it out; plain "
                "multi-GPU needs no option."
            )
        self.sharding = read_settings(options=self.options.distributed)
        optimizer, sampling = self.options.optimizer, self.options.sampling
        kind = find_optimizer(optimizer.optimizer_name)
        if self.sharding is not None:
            check_sharding(self.options, kind, self.sharding)
        check_steps_in_backward(self.options)
        check_attention(self.options.compute, self.options.precision)
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
            defaults = PromptDefaults.of_family(
                self.family, sampling.sample_sampler, is_conditioned=self.is_conditioned
            )
            self.prompt_file = PromptFile(Path(sampling.sample_prompts), defaults)
        self._tell_lost_metadata()
        check_output_dir(self.folder)
        self.continuation.check_options()

    def _tell_lost_metadata(self) -> None:
        given = sorted(f"--{n}" for n in self.options.given if n.startswith("metadata_") or n == "training_comment")
        if given and not self.has_header():
            logger.warning("%s without effect: the format %s has no metadata.", ", ".join(given), self.options.layout)

    def inspect_files(self) -> None:
        """Also: what the model files say of themselves and about the options, and whose files are in the output
        folder."""
        from library.device import choose_device, has_accelerator
        from library.training.optimization.optimizers import check_optimizer

        super().inspect_files()
        buckets = {crop.bucket: None for crop in self.plan.crops}
        prompts = self.prompts if self.options.sampling.is_on else ()
        check_picture_sizes(self.family.longest_side(self.files), buckets, prompts, self.plan.source)
        is_for_other_machine = bool(self.options.data.dry_run and self.options.memory.fit)
        check_block_swap(
            self.options.memory.blocks_to_swap, self.family.depth(self.files), has_accelerator() or is_for_other_machine
        )
        check_attention_device(self.options.compute.attention_package, choose_device())
        self._check_compiler()
        self.check_trainables()
        self.family.check_changed_encoders(self.trained_encoders(), "trains in this run")
        optimizer, precision = self.options.optimizer, self.options.precision
        check_optimizer(
            optimizer.optimizer_name,
            optimizer.optimizer_args,
            self.highest_rate(),
            keeps_state=True,
            rounding=precision.bf16_rounding if precision.full_bf16 else None,
        )
        self._fit_memory()
        self.family = self.family.as_marked(self.files)  # of the family that the run goes on with
        self._foresee_memory()
        self.course = Course(self.plan.steps)
        self.saves = self._save_plan()
        self.continuation.check_files()

    def _fit_memory(self) -> None:
        """With `--fit` or `--blocks_to_swap auto`, go on with options that fit; who only looks is told them later."""
        memory, data = self.options.memory, self.options.data
        is_asked = memory.fit is not None or memory.blocks_to_swap == "auto"
        if not is_asked or data.dry_run or data.debug_dataset:
            return
        from library.training.forecast.fitting import fit_run

        self.options = fit_run(self)
        self._check_compiler()
        self.family = self.make_family()
        self.set_plan(self.plan)

    def _check_compiler(self) -> None:
        from library.device import choose_device

        memory = self.options.memory
        check_compiler(self.options.compute, memory, lambda: compute_capability(choose_device()))

    def _save_plan(self) -> SavePlan:
        return SavePlan(
            self.options.saving,
            self.course,
            self.extension(),
            side_parts=self.side_parts(),
            has_average=self.options.ema.ema_decay is not None,
        )

    def _foresee_memory(self) -> None:
        """Say it if reading the text encoders needs more host memory than there is."""
        from library.memory_use import available_host_memory, host_memory_note

        names, is_cached = self.family.encoder_names, self.options.cache.caches_text
        sizes = {name: self.family.encoder_bytes(self.files, name) for name in names}
        live = [size for name, size in sizes.items() if not is_cached or name in self.trained_encoders()]
        needed = max(sum(live), *sizes.values())  # those that fill caches are read one after the other
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
        if self.sharding is not None:
            from library.training.sharding.sharded import Sharded

            self.shards = Sharded(self.sharding, self.accelerator, self.options.distributed.timeout)
        self.family.check_devices(self.device)
        self.attend = chosen_attention(self.options.compute, self.device, self.weight_dtype, self.head_widths)
        if precision.full_fp16 and self.accelerator.scaler is not None:
            scale_fp16_gradients(self.accelerator.scaler)
        uploader = make_uploader(self.options.hub)
        self.uploader = uploader if self.accelerator.is_main_process else None
        self.continuation.find()

    def show(self) -> int:
        """What would be trained, instead of training; returns the exit code."""
        from library.device import choose_device
        from library.training.looking.look import show_batches, show_forecast, show_plan, show_training

        if self.options.data.dry_run:
            show_plan(self, trained=self.trained_encoders())
            show_training(self)
            show_forecast(self)
        if self.options.data.debug_dataset:
            show_batches(self)
        self.plan.tell_unusable()
        self._check_folders()
        self.family.check_devices(choose_device())
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
            self.continuation.look_anew()
            self.encoders = self._make_encoders()
            self.course = Course(self.plan.steps)
            self.saves = self._save_plan()
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
            trained_dtype=self.model_dtype(is_trained=True),
            shards=self.shards,
        )

    def build_optimizer(self) -> None:
        """Optimizer, schedule and average over what trains."""
        from library.training.optimization.optimizers import forced_schedule, make_optimizer
        from library.training.optimization.schedules import make_schedule

        chosen, precision = self.options.optimizer, self.options.precision
        optimizer = make_optimizer(
            chosen.optimizer_name,
            self.shards.groups(self.parameter_groups()),
            learning_rate=chosen.learning_rate,
            args=chosen.optimizer_args,
            seed=self.seed,
            rounding=precision.bf16_rounding if precision.full_bf16 or precision.full_fp16 else None,
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
        self.shards.know(self.optimizer, self.ema, shown=self.weights_to_show, average=self.average_weights)

    def build_loop(self) -> None:
        """What makes steps and what watches them; then, with `--resume`, the state is put back."""
        from library.training.building import make_batch_loss, make_optimizer_step, make_sampler, make_validation
        from library.training.loop import Loop
        from library.training.stepping.step_log import StepLog

        self.log = StepLog()
        self.batch_loss = make_batch_loss(self)
        self.make_step = make_optimizer_step(self)
        upload = None if self.uploader is None else self.uploader.submit
        self.saver = Saver(self.folder, self.saves, self._write_models, self.continuation.write, upload)
        self.saver.uploads_states = self.options.hub.save_state_to_huggingface
        self.watch = Watch(self)
        self.validation = make_validation(self)
        self.loop = Loop(self)
        self.continuation.restore()
        num_averages = int(self.ema is not None)
        trained = self.shards.outlines(self.trained_parameters())
        check_free_space(
            self.folder,
            self.saves,
            trained,
            first_step=self.step,
            num_averages=num_averages,
            model_bytes=self.model_bytes(),
        )
        self.sampler = make_sampler(self)

    def announce(self) -> None:
        """The start banner."""
        from library.device import device_words

        checkpoints = self.options.training.recomputes
        lines = [
            self.plan.steps.describe(),
            f"seed {self.seed}, {self.options.optimizer.optimizer_name} {self._rate_in_words()}, "
            f"mixed precision {self.options.precision.mixed_precision}, "
            f"gradient checkpointing {'on' if checkpoints else 'off'}, on {device_words(self.device)}",
            *self.describe_trainables(),
        ]
        for line in lines:
            logger.info("%s", line)

    def _rate_in_words(self) -> str:
        """The highest of what was asked for, as far as the optimizer took it: some take one rate for all parts."""
        from library.training.optimization.optimizers import sets_its_own_rate

        if sets_its_own_rate(self.options.optimizer.optimizer_name, self.options.optimizer.optimizer_args):
            return "at a rate of its own"
        taken = max(float(group.get("initial_lr", group["lr"])) for group in self.optimizer.param_groups)
        return f"at {min(self.highest_rate(), taken):g}"

    def train(self) -> None:
        """All steps that are left; see `steps`."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """All steps that are left, one at a time: whoever takes them says when the next one is made. Where data cannot
        be read any more, what was trained so far is saved.

        Raises:
            DatasetError: A picture or a cached caption has vanished or been damaged meanwhile.
            EnvironmentFault: Out of memory.
            DivergedError: Losses are not finite any more.
        """
        self.continuation.begin()
        self.watch.start(self.step)
        self.stop.is_training = True
        try:
            yield from self.loop.steps()
        except UserError:
            if self.accelerator.is_main_process:
                self.watch.write()
            raise
        finally:
            self.watch.close_bar()

    def finish(self) -> int:
        """Write the final file, or say how to go on; returns the exit code.

        Raises:
            OutputError: The final file, or the state of a run that was stopped, cannot be written.
        """
        is_stopped = self.loop.is_stopped
        is_saved = self.loop.is_saved if is_stopped else self._save_end()
        self.stop.is_training = False  # a signal now cuts the wait for uploads short, and nothing else
        if self.accelerator.is_main_process:
            self.watch.write()
            self.watch.finish(self._finish_uploads(), INTERRUPTED if is_stopped else 0)
        if not is_saved:
            raise OutputError(
                f"{self.folder}: the state could not be written, see above, so the run cannot go on from its end. "
                "Free some space; what was saved before is complete."
            )
        if is_stopped and self.accelerator.is_main_process:
            logger.info("stopped after step %d; continue with --resume auto.", self.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return INTERRUPTED if is_stopped else 0

    def _save_end(self) -> bool:
        """The final file and, if asked for, the state; whether the state is there."""
        saving, end = self.options.saving, self.saves.of_end()
        self.save_last(end)
        return self.save_state(end) if saving.save_state or saving.save_state_on_train_end else True

    def _finish_uploads(self) -> list[str]:
        """Lines about copies on the hub. Who has stopped a run does not want to wait long for them."""
        if self.uploader is None:
            return []
        try:
            return self.uploader.finish(STOPPED_UPLOAD_SECONDS) if self.loop.is_stopped else self.uploader.finish()
        except KeyboardInterrupt:
            return self.uploader.finish(0)
