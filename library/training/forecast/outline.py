"""The models of a run with everything that trains, without numbers: made as the run will make them."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import Parameter

from library.device import encoder_dtype, precision_dtype
from library.errors import UserError
from library.log import LOGGER_NAME
from library.memory.blocks import blocks
from library.models.added_words import add_rows, token_table
from library.training.network_module import as_modules_take, pickled_network
from library.training.trained_parts import Part, denoiser_parts, part_rates, train_only

if TYPE_CHECKING:
    from library.training.trainer import Trainer

_STAND_IN = "networks.lora"  # for a network module that cannot be made without numbers


@dataclass(frozen=True)
class Outline:
    """Models on the meta device.

    Attributes:
        denoiser: With what is attached to it.
        encoders: Text encoders that train, or that adapters are attached to.
        trained: Everything that trains.
        note: What could not be made as the run will make it.
    """

    denoiser: nn.Module
    encoders: Mapping[str, nn.Module]
    trained: tuple[Parameter, ...]
    note: str = ""


@dataclass(frozen=True)
class Formats:
    """Number formats of a run.

    Attributes:
        weights: Of frozen weights.
        denoiser: Of the denoiser's.
        encoders: Of frozen text encoders.
        vae: Of the VAE.
        trained: Of a text encoder that trains.
        autocast: Of the arithmetic; None where that is as the weights are.
    """

    weights: torch.dtype
    denoiser: torch.dtype
    encoders: torch.dtype
    vae: torch.dtype
    trained: torch.dtype
    autocast: torch.dtype | None


def formats_of(trainer: Trainer, device: torch.device) -> Formats:
    """As the run will have them on a device."""
    precision = trainer.options.precision
    weights = precision_dtype(precision.mixed_precision)
    sketch = _sketch(trainer)
    frozen = encoder_dtype(weights, device)
    return Formats(
        weights=weights,
        denoiser=sketch.model_dtype(),
        encoders=frozen,
        vae=torch.float32 if precision.no_half_vae else frozen,
        trained=sketch.model_dtype(is_trained=True),
        autocast=None if precision.mixed_precision == "no" else weights,
    )


def outline_of(trainer: Trainer, formats: Formats) -> Outline:
    """The models of a run whose options and files are known."""
    family, files = trainer.family, trainer.files
    denoiser = family.denoiser_outline(files).to(formats.denoiser).requires_grad_(False)
    if form := trainer.options.memory.weights_format:
        from library.memory.quantized_layers import replace_layers

        for block in blocks(denoiser):
            replace_layers(block, form, lambda _: formats.denoiser)
    names = [name for name in trainer.trained_encoders() if family.has_encoder(files, name)]
    encoders = {name: family.encoder_outline(files, name, formats.trained).requires_grad_(False) for name in names}
    if hasattr(trainer.options, "network"):
        return _with_network(trainer, denoiser, encoders, formats.weights)
    if hasattr(trainer.options, "inversion"):
        return _with_word(trainer.options.inversion.num_vectors_per_token, denoiser, encoders)
    return _whole(trainer, denoiser, encoders)


def _sketch(trainer: Trainer) -> Any:
    """A copy of the trainer to ask, that may be given what the trainer itself does not have yet."""
    sketch = copy.copy(trainer)
    sketch.weight_dtype = precision_dtype(trainer.options.precision.mixed_precision)
    return sketch


def _whole(trainer: Trainer, denoiser: nn.Module, encoders: Mapping[str, nn.Module]) -> Outline:
    """The denoiser and encoders themselves train."""
    options, family = trainer.options, trainer.family
    full, names = options.full, family.part_names(trainer.files)
    rates = part_rates(names, options.optimizer.learning_rate, full.block_rates, full.num_frozen_blocks)
    named = {
        part: {f"{part}.{number}": weight for number, weight in enumerate(w for m in modules for w in m.parameters())}
        for part, modules in family.denoiser_parts(denoiser).items()
    }
    parts = denoiser_parts(named, rates, family.denoiser_name)
    parts += [Part(name, 1.0, family.encoder_parameters(name, encoder)) for name, encoder in encoders.items()]  # type: ignore[arg-type]
    trained = tuple(weight for part in train_only(parts) for weight in part.parameters.values())
    return Outline(denoiser, encoders, trained)


def _with_word(number: int, denoiser: nn.Module, encoders: Mapping[str, nn.Module]) -> Outline:
    """Text encoders have so many rows of tokens more, which train."""
    rows = [
        Parameter(torch.empty(number, token_table(encoder).embedding_dim, device="meta"))
        for encoder in encoders.values()
    ]
    for encoder, own in zip(encoders.values(), rows, strict=True):
        add_rows(encoder, own, end=0)
    return Outline(denoiser, encoders, tuple(rows))


def _with_network(
    trainer: Trainer, denoiser: nn.Module, encoders: Mapping[str, nn.Module], dtype: torch.dtype
) -> Outline:
    """A network is attached."""
    options, note = trainer.options, ""
    sketch = _sketch(trainer)
    taken = as_modules_take(list(encoders.values()), trainer.family.encoder_names)
    with _unseen():
        try:
            network = _network(sketch.module, options.network, sketch.network_args, taken, denoiser)
        except UserError:
            raise
        except Exception as fault:  # what other packages do without numbers is theirs
            name, kind = options.network.network_module, type(fault).__name__
            note = f"{name} cannot be made without numbers ({kind}); counted as {_STAND_IN} of the same rank"
            stand_in = importlib.import_module(_STAND_IN)
            network = _network(stand_in, options.network, {}, taken, denoiser)
        has_encoders = bool(encoders) and not options.network.network_train_unet_only
        network.apply_to(taken, denoiser, has_encoders, not options.network.network_train_text_encoder_only)
        if hasattr(network, "assume_condition"):
            network.assume_condition()
        sketch.network = network
        is_half = options.precision.full_fp16 or options.precision.full_bf16
        network.to(dtype=dtype if is_half else torch.float32)
        groups = sketch.parameter_groups()
    trained = tuple(parameter for group in groups for parameter in group["params"])
    return Outline(denoiser, encoders, trained, note)


def _network(
    module: Any,
    options: Any,
    arguments: Mapping[str, str],
    encoders: nn.Module | Sequence[nn.Module],
    denoiser: nn.Module,
) -> Any:
    path = options.network_weights if options.dim_from_weights else None
    weights = pickled_network(path) if path else None
    with torch.device("meta"):
        if path:
            made = module.create_network_from_weights(
                1.0, str(path), None, encoders, denoiser, weights_sd=weights, **arguments
            )
            return made[0] if isinstance(made, tuple) else made
        return module.create_network(
            1.0,
            options.network_dim,
            options.network_alpha,
            None,
            encoders,
            denoiser,
            neuron_dropout=options.network_dropout,
            **arguments,
        )


@contextmanager
def _unseen() -> Iterator[None]:
    """Nothing is logged, and no random number is used up: the run will do it again."""
    logger = logging.getLogger(LOGGER_NAME)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logger.setLevel(level)


def num_block_bytes(denoiser: nn.Module) -> list[int]:
    """Bytes of each block's weights, buffers included, without what is attached."""
    own = [[*block.parameters(), *block.buffers()] for block in blocks(denoiser)]
    return [sum(tensor.numel() * tensor.element_size() for tensor in tensors) for tensors in own]


def model_bytes(denoiser: nn.Module) -> int:
    """Bytes of all weights, buffers included, without what is attached."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*denoiser.parameters(), *denoiser.buffers()])
