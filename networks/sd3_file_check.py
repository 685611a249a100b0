"""Whether a LoRA file fits an SD3 model and the network that the options ask for, as far as its header tells.

Without torch and before any weights are read. What only the models know (sizes of layers, layers of a text encoder) is
checked again when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from library.errors import CheckpointError
from networks.arg_parsing import default_rank
from networks.file_check import refuse_other_encoders
from networks.sd3_args import Sd3NetworkArgs
from networks.sd3_targets import denoiser_rules, layers_of_mmdit
from networks.targets import PlannedModule, adapter_name, plan_modules
from networks.weights import describe_file, ranks_by_name, refuse_differences, refuse_other_modules

_DENOISER = "lora_unet"
_CLIPS = ("lora_te1_", "lora_te2_")
_T5 = "lora_te3_"
_ADVICE = "Set train_t5xxl in --network_args as it was for the file"


def check_file_of_model(shapes: Mapping[str, tuple[int, ...]], what: str, family: str, depth: int) -> None:
    """A file that brings its own modules and ranks: all of them have a place in a model of this family.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        family: As messages call it.
        depth: Number of joint blocks of the model.

    Raises:
        CheckpointError: It is no LoRA, or for another model.
    """
    found = ranks_by_name(shapes, what)
    possible = {adapter_name(_DENOISER, name) for name in [*layers_of_mmdit(depth), *_second_attention(depth)]}
    unknown = [name for name in found if name not in possible and not name.startswith((*_CLIPS, _T5))]
    if unknown:
        raise CheckpointError(
            f"{what} is {describe_file(shapes)}, the model is {family} with {depth} blocks: {len(unknown)} of its "
            f"{len(found)} modules have no place there ({unknown[0]}). Give a LoRA that was trained for this model."
        )


def check_file_of_network(
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    family: str,
    depth: int,
    args: Sd3NetworkArgs,
    *,
    network_dim: int | None,
    trains_text_encoders: bool,
    trains_denoiser: bool,
) -> None:
    """A file to continue from: it has the modules and ranks of the network.

    Args:
        shapes: As for `check_file_of_model`, and so the next three.
        args: From --network_args.
        network_dim: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        CheckpointError: It is no LoRA, for another model, or has other modules or ranks.
    """
    check_file_of_model(shapes, what, family, depth)
    found = ranks_by_name(shapes, what)
    rank = default_rank(network_dim)
    rules = denoiser_rules(args, rank, None) if trains_denoiser else ()
    planned = {adapter_name(_DENOISER, plan.name): plan for plan in plan_modules(layers_of_mmdit(depth), rules)}
    optional = {adapter_name(_DENOISER, p.name): p for p in plan_modules(_second_attention(depth), rules)}
    known = planned | optional
    encoders = [name for name in found if name.startswith((*_CLIPS, _T5))]
    unknown = found.keys() - known.keys() - set(encoders)
    refuse_other_modules(found, what, family, missing=planned.keys() - found.keys(), unknown=unknown)
    prefixes = (*_CLIPS, _T5) if args.train_t5xxl else _CLIPS
    refuse_other_encoders(encoders, what, prefixes, is_trained=trains_text_encoders, advice=_ADVICE)
    refuse_differences(list(_other_ranks(found, known, rank)), what, len(found))


def _second_attention(depth: int) -> list[str]:
    """Layers that only some models have, in some blocks."""
    return [f"joint_blocks.{index}.x_block.attn2.{layer}" for index in range(depth) for layer in ("qkv", "proj")]


def _other_ranks(found: Mapping[str, int], planned: Mapping[str, PlannedModule], encoder_rank: int) -> Iterator[str]:
    for name, rank in found.items():
        own, parts = (planned[name].rank, planned[name].num_parts) if name in planned else (encoder_rank, 1)
        if rank not in (own, own * parts):
            yield f"{name} has rank {rank} in the file and {own} here"
