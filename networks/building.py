"""From models and arguments to the parts of a network: what all our LoRA modules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from library.errors import CheckpointError
from library.log import get_logger
from networks.adapters import Dropouts, Factors
from networks.arg_parsing import LoraArgs
from networks.network import AdapterNetwork, LoraPlus
from networks.targets import PlannedModule, Slot, adapter_name
from networks.weights import describe_file, how_to_use

logger = get_logger(__name__)

Encoders: TypeAlias = nn.Module | Sequence[nn.Module | None] | None


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolution layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def encoder_layers(encoder: nn.Module) -> dict[str, nn.Module]:
    """Layers of a text encoder under the names that files use, whatever the installed transformers calls them."""
    layers = layers_of(encoder)
    return {f"text_model.{name}" if name.startswith("encoder.layers.") else name: layers[name] for name in layers}


def encoders_by_slot(text_encoder: Encoders, slots: Sequence[Slot]) -> dict[Slot, nn.Module]:
    """The encoders that are there, in the order of the slots. A place may be None or left out."""
    if text_encoder is None:
        return {}
    given = list(text_encoder) if isinstance(text_encoder, (list, tuple)) else [text_encoder]
    return {slot: encoder for slot, encoder in zip(slots, given, strict=False) if isinstance(encoder, nn.Module)}


def dropouts_of(args: LoraArgs, neuron_dropout: float | None) -> Dropouts:
    """What is left out while training; the argument `dropout` wins over --network_dropout."""
    neuron = neuron_dropout if args.dropout is None else args.dropout
    return Dropouts(neuron=neuron or 0.0, rank=args.rank_dropout, module=args.module_dropout)


def loraplus_of(args: LoraArgs) -> LoraPlus:
    """Learning rate ratios; those of a kind of model win over the general one."""
    return LoraPlus(
        text_encoder=args.loraplus_text_encoder_lr_ratio or args.loraplus_lr_ratio,
        denoiser=args.loraplus_unet_lr_ratio or args.loraplus_lr_ratio,
    )


def plans_of_file(
    found: Mapping[str, Factors], what: str, family: str, models: Mapping[Slot, Mapping[str, nn.Module]]
) -> dict[Slot, list[PlannedModule]]:
    """Every module that a file names, with its rank and alpha; none may be left over.

    Args:
        found: Content of the file.
        what: The file, for messages.
        family: As messages call it.
        models: {slot: {name as files have it: layer}}

    Raises:
        CheckpointError: A module is in no model.
    """
    plans, taken = {}, set[str]()
    for slot, layers in models.items():
        names = {name: adapter_name(slot.prefix, name) for name in layers}
        present = {name: found[key] for name, key in names.items() if key in found}
        plans[slot] = [PlannedModule(name, factors.rank, factors.alpha) for name, factors in present.items()]
        taken.update(names[name] for name in present)
    if unknown := sorted(found.keys() - taken):
        keys = [f"{name}.lora_down.weight" for name in found]
        raise CheckpointError(
            f"{what} is {describe_file(keys)}, the model is {family}: {len(unknown)} of its {len(found)} modules are "
            f"neither in the model nor in a loaded text encoder ({', '.join(unknown[:3])}). {how_to_use(keys)}"
        )
    return plans


def log_network(network: AdapterNetwork, slots: Sequence[Slot], *, is_verbose: bool) -> None:
    """Say how many modules of which model there are, and list them if asked to."""
    counts = [
        f"{number} in {slot.title}"
        for slot in slots
        if (number := sum(len(part.adapters) for part in network.parts if part.prefix == slot.prefix))
    ]
    logger.info("LoRA for %s: %s modules", network.family, " + ".join(counts))
    if is_verbose:
        for adapter in network.adapters():
            logger.info("  %s: rank %d, alpha %g", adapter.name, adapter.rank, adapter.alpha)
