"""Whether a LoRA file fits a model of SD1, SD2 or SDXL and the network that the options ask for, as far as its header
tells.

Without torch and before any weights are read. What only the models know (layers of a text encoder) is checked again
when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from library.errors import CheckpointError
from networks.file_check import refuse_other_encoders
from networks.targets import ModelOutline, PlannedModule, Slot, adapter_name
from networks.unet_args import UnetNetworkArgs
from networks.unet_layers import DENOISER, UnetNames
from networks.unet_targets import plan_denoiser, with_own_ranks
from networks.weights import (
    describe_file,
    ranks_by_name,
    refuse_differences,
    refuse_other_modules,
    with_own_names,
)

Shape = tuple[int, ...]

_FAMILIES = {768: "SD1", 1024: "SD2", 2048: "SDXL"}  # by the width of the text states


def check_file_of_model(shapes: Mapping[str, Shape], what: str, model: ModelOutline) -> dict[str, int]:
    """A file that brings its own modules and ranks: all of them have a place in the model, in its sizes.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        model: The U-Net.

    Returns:
        {name of an adapter, as our files have it: its rank}

    Raises:
        CheckpointError: It is no LoRA, or for another model.
    """
    names = UnetNames.of_outline(model)
    own = with_own_names(shapes, names.aliases)
    found = ranks_by_name(own, what)
    layers = {adapter_name(DENOISER.prefix, name): shape for name, shape in model.layers.items()}
    unknown = [name for name in found if name not in layers and not name.startswith(_prefixes(names))]
    if unknown:
        raise CheckpointError(
            f"{what} is {describe_file(shapes)}, the model is {names.title}: {len(unknown)} of its {len(found)} "
            f"modules have no place there ({unknown[0]}). Give a LoRA that was trained for this model."
        )
    for name in found:
        if name in layers and (size := _size_in_file(own, name)) != _size(layers[name]):
            raise CheckpointError(
                f"{what} is {_kind(own)}, the model is {names.title}: {name} is {_words(_size(layers[name]))} in the "
                f"model and {_words(size)} in the file. Give a LoRA that was trained for this model."
            )
    return found


def check_file_of_network(
    found: Mapping[str, int],
    what: str,
    names: UnetNames,
    args: UnetNetworkArgs,
    *,
    rank: int,
    trains_text_encoders: bool,
    trains_denoiser: bool,
) -> None:
    """A file to continue from: it has the modules and ranks of the network.

    Args:
        found: From `check_file_of_model`.
        what: The option and the file, for messages.
        names: Of the model.
        args: From --network_args.
        rank: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        CheckpointError: It has other modules or ranks.
    """
    plans = plan_denoiser(names, args, rank, None) if trains_denoiser else ()
    planned = {adapter_name(DENOISER.prefix, plan.name): plan.rank for plan in plans}
    encoders = [name for name in found if name.startswith(_prefixes(names))]
    unknown = found.keys() - planned.keys() - set(encoders)
    missing = planned.keys() - found.keys()
    refuse_other_modules(found, what, names.title, missing=missing, unknown=unknown, is_of_model=True)
    refuse_other_encoders(encoders, what, _prefixes(names), is_trained=trains_text_encoders)
    ranks = planned | {name: _encoder_rank(name, names, args, rank) for name in encoders}
    refuse_differences(list(_other_ranks(found, ranks)), what, len(found))


def _prefixes(names: UnetNames) -> tuple[str, ...]:
    return tuple(f"{slot.prefix}_" for slot in names.encoders)


def _encoder_rank(name: str, names: UnetNames, args: UnetNetworkArgs, rank: int) -> int:
    """The rank that a module of a text encoder has here; 0 where it has no adapter."""
    slot: Slot = next(slot for slot in names.encoders if name.startswith(f"{slot.prefix}_"))
    module = PlannedModule(name.removeprefix(f"{slot.prefix}_"), rank, float(rank))
    planned = with_own_ranks([module], slot, args, None)
    return planned[0].rank if planned else 0


def _other_ranks(found: Mapping[str, int], ranks: Mapping[str, int]) -> Iterator[str]:
    for name, rank in found.items():
        if rank != ranks[name]:
            yield f"{name} has rank {rank} in the file and {ranks[name]} here"


def _size_in_file(shapes: Mapping[str, Shape], name: str) -> Shape:
    return _size((shapes[f"{name}.lora_up.weight"][0], *shapes[f"{name}.lora_down.weight"][1:]))


def _size(shape: Shape) -> Shape:
    """Of a weight; a linear layer may be written as a convolution of one pixel."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _words(size: Shape) -> str:
    return " x ".join(map(str, size))


def _kind(shapes: Mapping[str, Shape]) -> str:
    """For which of the U-Nets a file is, from the text states that its layers take."""
    widths = {shape[1] for key, shape in shapes.items() if key.endswith("attn2_to_k.lora_down.weight")}
    family = _FAMILIES.get(min(widths, default=0))
    return f"a LoRA for {family}" if family else "a LoRA for another size of model"
