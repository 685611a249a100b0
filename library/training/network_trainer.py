"""Training adapters beside a frozen model: what `*_train_network.py` scripts do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.log import get_logger
from library.memory_use import is_out_of_memory
from library.pickled import read_any_header, read_any_tensors
from library.training.base_format import check_base_format
from library.training.network_module import (
    as_modules_take,
    changed_encoders,
    check_network,
    import_network_module,
    pickled_network,
)
from library.training.network_tensors import load_network_file, load_network_tensors, network_state, network_tensors
from library.training.optimization.optimizers import split_key_values
from library.training.saving.saver import is_average
from library.training.trainer import Trainer
from networks.base_networks import merge_base_network, module_of_file
from networks.other_packages import PACKAGE_FAULTS, change_at_strength_0, is_ours

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.training.saving.run_metadata import RunMetadata
    from library.training.saving.saver import Save

logger = get_logger(__name__)

STRENGTH = 1.0  # of the network while it trains
_FEW = 6  # groups of the optimizer that the log names
_RANK = 4  # of --network_dim where it is not set


class NetworkTrainer(Trainer):
    """Builds the network of `--network_module`, trains it and saves it."""

    network: Any  # keeps to the contract of network modules, which has no common class
    module: ModuleType
    run_metadata: RunMetadata
    network_kind = "lora"  # as modelspec.architecture has it

    def check_options(self) -> None:
        """Also: the form of --network_args, what cannot be cached, and what a denoiser in fewer bits needs."""
        super().check_options()
        self.network_args = network_args(self.options.network.network_args, self.options.network.network_dropout)
        check_base_format(self.options.memory, str(self.options.network.network_module), self.network_args)
        self.family.check_network_options(self.options, self.network_args)

    def check_trainables(self) -> None:
        """The network module can be imported; its arguments and files fit a model of this depth."""
        options = self.options.network
        self.module = import_network_module(options.network_module)
        self._refuse_other_data()
        model, depth = self.family.network_model(self.files), self.family.depth(self.files)
        allow_pickle = self.options.model.allow_pickle
        check_network(self.module, options, self.network_args, model=model, depth=depth, allow_pickle=allow_pickle)
        self._refuse_cached_encoder_changes()
        self._refuse_no_way_back()
        self._refuse_what_cannot_be_saved()

    def _refuse_other_data(self) -> None:
        """A network that learns from conditioning pictures needs them."""
        if getattr(self.module, "IS_CONDITIONED", False) and not self.is_conditioned:
            raise OptionError(
                f"--network_module {self.options.network.network_module} learns from conditioning pictures. Train it "
                f"with {self.module.SCRIPT}."
            )

    def _refuse_cached_encoder_changes(self) -> None:
        """Merging into a text encoder would not reach outputs that are already cached."""
        for path in self.options.network.base_weights or []:
            changed = changed_encoders(path, self.family.encoder_names)
            self.family.check_changed_encoders(changed, f"is changed by --base_weights {path}")
            if self.options.cache.caches_text and changed:
                raise OptionError(
                    f"--base_weights {path} changes text encoders, which --cache_text_encoder_outputs cannot show. "
                    "Leave --cache_text_encoder_outputs out."
                )

    def _refuse_no_way_back(self) -> None:
        """A network that changes the model at strength 0 too cannot show what the model does without it."""
        is_asked = any(subset.preserves_output for spec in self.plan.specs for subset in spec.subsets)
        if is_asked and (name := change_at_strength_0(self.network_args)):
            raise OptionError(
                f"{self.plan.source}: diff_output_preservation needs the model without the network, which "
                f"--network_args {name} changes at strength 0 too. Leave one of them out."
            )

    def _refuse_what_cannot_be_saved(self) -> None:
        module = self.options.network.network_module
        is_lora = getattr(self.module, "IS_LORA", None)  # False: what it makes is no product of two factors
        if self.options.network.scale_weight_norms and is_lora is False:
            raise OptionError(f"--scale_weight_norms has no place in --network_module {module}. Leave it out.")
        if self.options.network.verify_export and (is_lora is False or not is_ours(module)):
            raise OptionError(f"--verify_export knows files of LoRA only, not those of {module}. Leave it out.")
        if self.options.layout == "diffusers" and (is_lora is False or not is_ours(module)):
            raise OptionError(
                f"--save_model_as diffusers: files of {module} have no layout that diffusers loads. Use safetensors."
            )
        for name in self.trained_encoders():
            if not self.family.has_encoder(self.files, name):
                advice = self.family.advice_for_missing(name)
                raise OptionError(f"--network_args: there is no {name} to train. {advice}.")

    def trained_encoders(self) -> tuple[str, ...]:
        """Those that the network is for, unless --network_train_unet_only."""
        if self.options.network.network_train_unet_only:
            return ()
        return self.family.network_encoders(self.network_args)

    def planned_rates(self) -> dict[str, float]:
        """{part of the model that the network is for: its learning rate}"""
        options, default = self.options.network, self.options.optimizer.learning_rate
        rates: dict[str, float] = {}
        if not options.network_train_text_encoder_only:
            rates[self.family.denoiser_name] = default if options.unet_lr is None else options.unet_lr
        of_encoders = options.text_encoder_lr or (default,)
        for name in self.trained_encoders():
            index = self.family.encoder_names.index(name)
            rates[name] = of_encoders[min(index, len(of_encoders) - 1)]
        return rates

    def highest_rate(self) -> float:
        """Of the parts, without what --network_args make of it."""
        return max(self.planned_rates().values(), default=super().highest_rate())

    def planned_trainables(self) -> list[str]:
        """The network, and what it is for."""
        options = self.options.network
        size = f"rank {options.network_dim or _RANK}, alpha {options.network_alpha:g}"
        if options.dim_from_weights:
            size = f"ranks and alphas of {options.network_weights}"
        return [f"{options.network_module} of {size}", *self.rates_in_words(self.planned_rates())]

    # Building

    def build_trainables(self) -> None:
        """Create the network, attach it, load its weights."""
        import torch

        options = self.options.network
        live = self.text.encoders
        trained = [live[name] for name in self.trained_encoders() if name in live]  # the start values depend on them
        encoders = as_modules_take(trained, self.family.encoder_names)
        self.run_metadata = self.describe_run(self.network_args)
        torch.manual_seed(self.seed)
        self.network = self._create_network(encoders)
        self.network.apply_to(
            encoders, self.denoiser, bool(self.trained_encoders()), not options.network_train_text_encoder_only
        )
        if options.network_weights:
            load_network_file(self.network, options.network_weights, str(options.network_module))
        self.network.to(self.device, dtype=self._network_dtype())
        if self.options.training.recomputes:
            self.checkpoint_encoders()

    def _create_network(self, encoders: nn.Module | list[nn.Module]) -> Any:
        """The network, not yet attached. What a module of another package makes of wrong arguments is told plainly."""
        try:
            return self._call_network_module(encoders)
        except PACKAGE_FAULTS as error:
            name = self.options.network.network_module
            if is_ours(name) or is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise OptionError(
                f"--network_module {name} cannot make a network of these --network_args ({reason}). Check their values."
            ) from error

    def _call_network_module(self, encoders: nn.Module | list[nn.Module]) -> Any:
        options = self.options.network
        if options.dim_from_weights and (path := options.network_weights):
            weights = pickled_network(path)
            made = self.module.create_network_from_weights(
                STRENGTH, str(path), None, encoders, self.denoiser, weights_sd=weights, **self.network_args
            )
            return made[0] if isinstance(made, tuple) else made
        return self.module.create_network(
            STRENGTH,
            options.network_dim,
            options.network_alpha,
            None,
            encoders,
            self.denoiser,
            neuron_dropout=options.network_dropout,
            **self.network_args,
        )

    def denoiser_change(self) -> Callable[[nn.Module], None] | None:
        """The networks of --base_weights are merged while weights are wide: small changes would be lost afterwards."""
        return self._merge_base_weights if self.options.network.base_weights else None

    def _merge_base_weights(self, denoiser: nn.Module) -> None:
        """Merge the networks of --base_weights into the frozen models, for this run only."""
        options, live = self.options.network, self.text.encoders
        names = self.family.encoder_names
        encoders = as_modules_take([live[name] for name in names if name in live], names)
        multipliers = list(options.base_weights_multiplier or [])
        for index, path in enumerate(options.base_weights or []):
            multiplier = multipliers[index] if index < len(multipliers) else 1.0
            logger.info("--base_weights: merging %s at %g", path, multiplier)  # the module lists what the file has
            header = read_any_header(path, "--base_weights", allow_pickle=True, is_told=True)
            merge_base_network(
                module_of_file(header.tensors, self.module),
                path,
                read_any_tensors(header),
                multiplier,
                encoders,
                denoiser,
                dtype=self.weight_dtype,
                device=str(self.device),
            )

    def _network_dtype(self) -> torch.dtype:
        """Float32, unless --full_fp16 or --full_bf16 asks to train in half precision."""
        import torch

        precision = self.options.precision
        return self.weight_dtype if precision.full_fp16 or precision.full_bf16 else torch.float32

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the network with their learning rates."""
        options = self.options.network
        default, denoiser = self.options.optimizer.learning_rate, options.unet_lr
        rates = list(options.text_encoder_lr or [])
        prepare = getattr(self.network, "prepare_optimizer_params_with_multiple_te_lrs", None)
        if prepare is not None:
            result = prepare(rates, denoiser, default)
        else:
            result = self.network.prepare_optimizer_params(rates[0] if rates else None, denoiser, default)
        groups, self.group_names = result if isinstance(result, tuple) else (result, [])
        groups = [{**group, "params": list(group["params"])} for group in groups]
        if not any(group["params"] for group in groups):
            raise OptionError("nothing is left to train: every learning rate is 0. Give --learning_rate or --unet_lr.")
        return groups

    def describe_trainables(self) -> list[str]:
        """How many modules and numbers train."""
        count = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        names, more = self.group_names[:_FEW], len(self.group_names) - _FEW
        groups = ", ".join(names) + (f" and {more} more groups" if more > 0 else "")
        return [f"{self.options.network.network_module}: {count:,} numbers train ({groups})"]

    # Training

    def set_training(self, is_training: bool) -> None:
        """Dropout of the adapters is on while training only."""
        if self.network.training != is_training:
            self.network.train(is_training)
        self.set_models_training(is_training)

    @contextmanager
    def unchanged_model(self) -> Iterator[None]:
        """The network is off."""
        self.network.set_multiplier(0.0)
        try:
            yield
        finally:
            self.network.set_multiplier(STRENGTH)

    def after_step(self) -> None:
        """Keep the norms below --scale_weight_norms."""
        limit = self.options.network.scale_weight_norms
        if limit:
            self.network.apply_max_norm_regularization(limit, self.device)

    def trained_state(self) -> dict[str, Tensor]:
        """Everything that the network holds."""
        return network_tensors(self.network)

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the numbers of a network of the same form back."""
        load_network_tensors(self.network, state)

    def optimizer_group_names(self) -> list[str]:
        """As the network describes its groups."""
        return list(self.group_names)

    # Saving

    def session(self) -> dict[str, Any]:
        """Identity and start of the run, which its files tell."""
        return self.run_metadata.session

    def has_header(self) -> bool:
        """Pickles have none."""
        return self.options.saving.save_model_as not in ("ckpt", "pt")

    def save_last(self, end: Save) -> None:
        """Also: what other programs make of the final file, with --verify_export."""
        super().save_last(end)
        if not self.options.network.verify_export or not self.accelerator.is_main_process:
            return
        from library.loras.export_check import check_export

        depth = self.family.depth(self.files)
        check_export(self.folder / end.model, self.network.adapters(), family=self.family.name, depth=depth)

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the network with its metadata and hashes."""
        from library.training.saving.run_metadata import write_network

        state = network_state(self.network, self.save_dtype())
        if self.options.layout == "diffusers":
            state = self.family.network_to_diffusers(state)
        architecture = f"{self.family.architecture(self.files)}/{self.network_kind}"
        metadata = self.run_metadata.for_file(
            state, step=step, epoch=epoch, architecture=architecture, is_average=is_average(path)
        )
        write_network(path, state, metadata)
        return [path]


def network_args(items: Sequence[str] | None, dropout: float | None) -> dict[str, str]:
    """The `key=value` items of --network_args; the dropout of --network_dropout joins them.

    Raises:
        OptionError: An item without `=`, or a key given twice.
    """
    given = split_key_values(items, "--network_args")
    return given if dropout is None else {"dropout": str(dropout), **given}
