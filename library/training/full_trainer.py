"""Training the whole model: the denoiser and, on request, its text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import DatasetError, OptionError
from library.log import get_logger
from library.training.checks import check_one_save
from library.training.processes import num_processes
from library.training.trained_parts import Part, denoiser_parts, optimizer_groups, part_rates, train_only
from library.training.trainer import Trainer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

    from library.records import Batch
    from library.training.saving.run_metadata import RunMetadata

logger = get_logger(__name__)

DENOISER = "denoiser"  # begins the names of its weights in a saved state; those of an encoder begin with its name


class FullTrainer(Trainer):
    """Trains the denoiser and, on request, text encoders, and saves whole models."""

    parts: list[Part]
    run_metadata: RunMetadata
    can_shard = True

    # Before weights are read

    def check_options(self) -> None:
        """Also: something trains, and what is asked for has an effect."""
        super().check_options()
        full, trained = self.options.full, self.trained_encoders()
        if not trained and not self._may_train_denoiser():
            raise OptionError(
                "nothing is left to train: every learning rate is 0. Give --learning_rate"
                + (" or --block_lr." if full.block_rates is None else " or rates above 0 in --block_lr.")
            )
        if self.options.memory.swaps and self._may_train_denoiser() and not self.options.optimizer.steps_in_backward:
            raise OptionError(
                "--blocks_to_swap with weights that train needs --fused_backward_pass or --blockwise_fused_optimizers: "
                "a block makes its step while it is on the GPU, and goes back. Give one of them."
            )
        choices = self.options.encoders
        for flag in filter(None, dict.fromkeys(encoder.flags[0] for encoder in choices if encoder.is_asked)):
            if not any(encoder.name in trained for encoder in choices if encoder.flags[0] == flag):
                logger.warning("%s has no effect: the learning rates of its encoders are 0.", flag)
        if self.options.layout == "diffusers":
            for flag in filter(None, dict.fromkeys(encoder.flags[1] for encoder in choices if encoder.is_saved)):
                logger.warning("%s has no effect: a diffusers folder has all encoders.", flag)

    def highest_rate(self) -> float:
        """Of the parts of the denoiser and of the encoders."""
        own = self.options.full.block_rates or (self.options.optimizer.learning_rate,)
        return max(*own, *self._encoder_rates().values(), 0.0)

    def _may_train_denoiser(self) -> bool:
        rates = self.options.full.block_rates
        return self.options.optimizer.learning_rate > 0 if rates is None else any(rates)

    def trained_encoders(self) -> tuple[str, ...]:
        """Those that are asked for, unless their learning rate is 0."""
        return tuple(name for name, rate in self._encoder_rates().items() if rate > 0)

    def _encoder_rates(self) -> dict[str, float]:
        default = self.options.optimizer.learning_rate
        asked = (encoder for encoder in self.options.encoders if encoder.is_asked)
        return {encoder.name: default if encoder.rate is None else encoder.rate for encoder in asked}

    def inspect_files(self) -> None:
        """Also: what is saved has room and replaces nothing that is needed; the denoiser can be sharded as asked."""
        super().inspect_files()
        if self.sharding is not None:
            self._check_parts()
        places = [self.folder / name for name in self.saves.all_models()]
        self.family.check_places(self.files, places, layout=self.options.layout)
        self._check_space()

    def _check_space(self) -> None:
        """Where not even one save fits, say so before caches are filled: the files' headers tell the sizes."""
        dtype, names = self.model_dtype(is_trained=True), self.trained_encoders()
        encoders = {name: self.family.encoder_outline(self.files, name, dtype) for name in names}
        denoiser = self._trained_outline()
        learned = [weight for name in names for weight in self.family.encoder_parameters(name, encoders[name]).values()]
        size = self.family.model_bytes(
            self.files,
            denoiser=denoiser,
            encoders={name: encoder.state_dict() for name, encoder in encoders.items()},
            layout=self.options.layout,
            bundled=self.bundled_encoders(),
            dtype=self.save_dtype(),
        )
        num_averages = int(self.options.ema.ema_decay is not None)
        trained = [*denoiser.values(), *learned]
        check_one_save(self.folder, self.saves, trained, num_averages=num_averages, model_bytes=size)

    def _trained_outline(self) -> dict[str, Tensor]:
        """The weights of the denoiser that will train, without numbers."""
        outline = self.family.denoiser_outline(self.files).to(self.model_dtype())
        names = {weight: name for name, weight in outline.named_parameters()}
        parts = zip(self.family.denoiser_parts(outline).values(), self._denoiser_rates(), strict=True)
        modules = [module for part, rate in parts if rate > 0 for module in part]
        return {names[weight]: weight.detach() for module in modules for weight in module.parameters()}

    def _check_parts(self) -> None:
        """Encoders that train are looked at when they are read."""
        import torch

        from library.training.optimization.optimizers import make_optimizer
        from library.training.sharding.limits import check_parts

        outline, chosen = self.family.denoiser_outline(self.files), self.options.optimizer
        parts = zip(self.family.denoiser_parts(outline).values(), self._denoiser_rates(), strict=True)
        check_parts(
            outline,
            [weight for modules, rate in parts if rate > 0 for module in modules for weight in module.parameters()],
            make_optimizer(
                chosen.optimizer_name,
                [{"params": [torch.nn.Parameter(torch.zeros(1))]}],
                learning_rate=chosen.learning_rate,
                args=chosen.optimizer_args,
            ),
            num_processes(),
        )

    def check_trainables(self) -> None:
        """Rates fit the depth of the model, the encoders that shall train are there, and all data can be learned."""
        if not any(self._denoiser_rates()) and not self.trained_encoders():
            raise OptionError("nothing is left to train: all parts of --block_lr above 0 are frozen.")
        self._check_last_step()
        for encoder in self.options.encoders:
            is_there = self.family.has_encoder(self.files, encoder.name)
            for is_asked, flag in zip((encoder.is_asked, encoder.is_saved), encoder.flags, strict=True):
                if is_asked and flag and not is_there:
                    advice = self.family.advice_for_missing(encoder.name)
                    raise OptionError(f"{flag}: there is no {encoder.name}. {advice}, or leave it out.")
        specs = self.plan.specs
        if any(subset.preserves_output for spec in specs for subset in spec.subsets):
            raise DatasetError(
                f"{self.plan.source}: diff_output_preservation compares with the model as it was, which is not kept "
                "where the whole model trains. Train a LoRA, or leave it out."
            )

    def _check_last_step(self) -> None:
        """Refuse a run of encoders alone that all stop before it ends."""
        last, names = self.plan.steps.max_steps, self.trained_encoders()
        trained = [encoder for encoder in self.options.encoders if encoder.name in names]
        end = max((last if encoder.num_steps is None else encoder.num_steps for encoder in trained), default=last)
        if end < last and not any(self._denoiser_rates()):
            steps = f"step {last}" if end + 1 == last else f"steps {end + 1} to {last}"
            is_by_block = self.options.full.block_rates is not None
            rates = "rates above 0 in --block_lr" if is_by_block else "a --learning_rate above 0"
            raise OptionError(
                f"--stop_text_encoder_training {end}: nothing else trains, so nothing is left to train in {steps} of "
                f"the run. Give {rates}, leave --stop_text_encoder_training out, or end the run at step {end}."
            )

    def _denoiser_rates(self) -> tuple[float, ...]:
        full, names = self.options.full, self.family.part_names(self.files)
        rate = self.options.optimizer.learning_rate
        return part_rates(names, rate, full.block_rates, full.num_frozen_blocks)

    # Building

    def model_dtype(self, *, is_trained: bool = False) -> torch.dtype:
        """What trains is kept in float32, unless --full_fp16 or --full_bf16 asks for half precision."""
        import torch

        from library.device import precision_dtype

        precision = self.options.precision
        is_half = precision.full_fp16 or precision.full_bf16 or not (is_trained or self._may_train_denoiser())
        return precision_dtype(precision.mixed_precision) if is_half else torch.float32

    def build_trainables(self) -> None:
        """Choose the parameters, and let gradients flow to them only."""
        self.run_metadata = self.describe_run()
        parts = denoiser_parts(self._denoiser_parameters(), self._denoiser_rates(), self.family.denoiser_name)
        for name, rate in self._encoder_rates().items():
            if rate > 0:
                parts.append(Part(name, rate, self._encoder_parameters(name)))
        self.parts = train_only(parts)
        if self.options.training.recomputes:
            self.checkpoint_encoders()

    def _denoiser_parameters(self) -> dict[str, dict[str, Parameter]]:
        """{part: {name in a state: parameter}}."""
        names = {parameter: f"{DENOISER}.{name}" for name, parameter in self.denoiser.named_parameters()}
        parts = self.family.denoiser_parts(self.denoiser)
        return {
            part: {names[parameter]: parameter for module in modules for parameter in module.parameters()}
            for part, modules in parts.items()
        }

    def _encoder_parameters(self, name: str) -> dict[str, Parameter]:
        parameters = self.family.encoder_parameters(name, self.text.encoders[name])
        return {f"{name}.{key}": parameter for key, parameter in parameters.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One for each part."""
        return optimizer_groups(self.parts)

    def optimizer_group_names(self) -> list[str]:
        """Names of the parts."""
        return [part.name for part in self.parts]

    def planned_trainables(self) -> list[str]:
        """The parts of the model."""
        rates = self._denoiser_rates()
        own = sorted({rate for rate in rates if rate > 0})
        name, frozen = self.family.denoiser_name, sum(rate == 0 for rate in rates)
        note = f" ({frozen} of its {len(rates)} parts are frozen)" if own and frozen else ""
        shown: dict[str, float | str] = {
            name + note: f"{own[0]:g} to {own[-1]:g}" if len(own) > 1 else max(own, default=0.0)
        }
        return self.rates_in_words({**shown, **self._encoder_rates()})

    def describe_trainables(self) -> list[str]:
        """How many numbers train, and where."""
        from library.training.optimization.optimizers import sets_its_own_rate

        optimizer = self.options.optimizer
        is_own = sets_its_own_rate(optimizer.optimizer_name, optimizer.optimizer_args)
        listed = ", ".join(
            f"{part.name} {part.count:,}" + ("" if is_own else f" at {part.rate:g}") for part in self.parts
        )
        return [f"{sum(part.count for part in self.parts):,} numbers train: {listed}"]

    # Training

    def optimizer_step(self, batches: list[Batch]) -> None:
        """Make a step; before it, encoders that have had theirs are frozen, and stay in the saved model as they are."""
        for encoder in self.options.encoders:
            if encoder.num_steps is not None and self.step >= encoder.num_steps:
                self._freeze(encoder.name)
        super().optimizer_step(batches)

    def _freeze(self, name: str) -> None:
        trained = [p for part in self.parts if part.name == name for p in part.parameters.values() if p.requires_grad]
        self.shards.freeze(trained)
        if trained:
            logger.info("%s trains no more after step %d.", name, self.step)

    def set_training(self, is_training: bool) -> None:
        """Nothing here drops values, but recomputed layers of encoders ask for it."""
        self.set_models_training(is_training)

    def unchanged_model(self) -> AbstractContextManager[None]:
        """There is none: `check_trainables` has refused data that asks for it."""
        raise NotImplementedError

    def trained_state(self) -> dict[str, Tensor]:
        """Every parameter that trains."""
        self.shards.settle()
        return {name: parameter.detach() for part in self.parts for name, parameter in part.parameters.items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the numbers back."""
        for part in self.parts:
            for name, parameter in part.parameters.items():
                self.shards.put(parameter, state[name])

    # Saving

    def session(self) -> dict[str, Any]:
        """Identity and start of the run, which its files tell."""
        return self.run_metadata.session

    def has_header(self) -> bool:
        """Of the layouts, one has a header for metadata."""
        return bool(self.options.layout == "safetensors")

    def extension(self) -> str:
        """Ending of the saved files; folders have none."""
        return {"ckpt": ".ckpt", "diffusers": ""}.get(self.options.layout, ".safetensors")

    def side_parts(self) -> tuple[str, ...]:
        """Encoders that train and get a file of their own."""
        if self.options.layout == "diffusers":
            return ()
        bundled = self.bundled_encoders()
        return tuple(name for name in self.trained_encoders() if name not in bundled)

    def bundled_encoders(self) -> tuple[str, ...]:
        """Encoders that go into the saved file."""
        return tuple(encoder.name for encoder in self.options.encoders if encoder.is_saved)

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the whole model: what was trained, and beside it the parts that belong to the file."""
        return self.family.write_model(
            path, **self._model_to_save(), metadata=self.file_metadata(path, step=step, epoch=epoch)
        )

    def model_bytes(self) -> int:
        """What one saved model takes."""
        return self.family.model_bytes(**self._model_to_save())

    def _trained_denoiser(self) -> dict[str, Tensor]:
        """What trained of its state, and its buffers; nothing where nothing of it trains."""
        frozen = {name for name, parameter in self.denoiser.named_parameters() if not parameter.requires_grad}
        state = self.denoiser.state_dict()
        is_trained = any(part.name not in self.trained_encoders() for part in self.parts)
        return {name: tensor for name, tensor in state.items() if name not in frozen} if is_trained else {}

    def _model_to_save(self) -> dict[str, Any]:
        """What `write_model` and `model_bytes` of the family have to know."""
        whole = self.shards.whole
        return {
            "files": self.files,
            "denoiser": whole(self._trained_denoiser()),
            "encoders": {name: whole(self.text.encoders[name].state_dict()) for name in self.trained_encoders()},
            "layout": self.options.layout,
            "bundled": self.bundled_encoders(),
            "dtype": self.save_dtype(),
        }

    def file_metadata(self, path: Path, *, step: int, epoch: int) -> dict[str, str]:
        """The header of a saved file."""
        from library.training.saving.saver import is_average

        architecture = self.family.architecture(self.files)
        return self.run_metadata.for_model(
            step=step, epoch=epoch, architecture=architecture, is_average=is_average(path)
        )
