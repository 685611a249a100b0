"""LoRA for Stable Diffusion 3 and 3.5: which layers get an adapter, and of what rank.

By default: every linear layer of every joint block, and the attention and feed-forward layers of CLIP-L and CLIP-G.
The embedders and the final layer come by `emb_dims`, T5 by `train_t5xxl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.log import get_logger
from networks.arg_parsing import default_rank
from networks.sd3_args import Sd3NetworkArgs, parse_network_args
from networks.sd3_file_check import check_file_of_model, check_file_of_network
from networks.sd3_targets import denoiser_rules, encoder_rules, nothing_to_train, trains_blocks
from networks.targets import ModelOutline, Slot, plan_modules

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from networks.layer_adapter import LayerAdapter
    from networks.network import AdapterNetwork, Part

logger = get_logger(__name__)

FAMILY = "SD3"
_ADVICE = "Use networks.lora."


_ENCODERS = (
    Slot("textencoder 1", "lora_te1", "CLIP-L"),
    Slot("textencoder 2", "lora_te2", "CLIP-G"),
    Slot("textencoder 3", "lora_te3", "T5"),
)
_DENOISER = Slot("unet", "lora_unet", "MMDiT")


def check_network_args(
    kwargs: Mapping[str, object],
    depth: int | None = None,
    *,
    model: ModelOutline | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> Sd3NetworkArgs:
    """Check --network_args before weights are read. Needs no torch.

    Args:
        kwargs: {name: value as typed}
        depth: Number of joint blocks, if it is known.
        model: The model, if it is known.
        network_dim: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        OptionError: Unknown names, wrong values, arguments that leave nothing to train, or another family of models.
    """
    if model is not None and model.family != "sd3":
        raise OptionError(f"--network_module networks.lora_sd3 is for {FAMILY}, and this model is not. {_ADVICE}")
    args = parse_network_args(kwargs, depth)
    least_depth = depth or max(args.train_block_indices or {0}) + 2
    if not trains_text_encoders and not (trains_denoiser and trains_blocks(args, network_dim, least_depth)):
        raise OptionError(nothing_to_train(depth))
    return args


def check_network_file(
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    depth: int,
    model: ModelOutline | None = None,
    args: Sd3NetworkArgs | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> None:
    """Check the header of a network file before weights are read. Needs no torch.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        depth: Number of joint blocks of the model.
        model: Part of the contract; the depth is enough.
        args: The network that the file must fit; None for a file that brings its own modules and ranks.
        network_dim: As for `check_network_args`, and so the next two.

    Raises:
        CheckpointError: It is no LoRA, is for another model, or does not fit the network.
    """
    if args is None:
        check_file_of_model(shapes, what, FAMILY, depth)
        return
    check_file_of_network(
        shapes,
        what,
        FAMILY,
        depth,
        args,
        network_dim=network_dim,
        trains_text_encoders=trains_text_encoders,
        trains_denoiser=trains_denoiser,
    )


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module | None] | None,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    *,
    generator: Generator | None = None,
    adapter: Callable[..., LayerAdapter] | None = None,
    **kwargs: Any,
) -> AdapterNetwork:
    """A new network; nothing is attached yet.

    Args:
        multiplier: Strength of the network.
        network_dim: Rank where no argument gives another; None is 4.
        network_alpha: The output of an adapter is scaled by alpha / rank; None or 0 is the rank.
        vae: Part of the contract; not used.
        text_encoder: CLIP-L, CLIP-G and T5 in this order; None or left out where there is none.
        unet: The MMDiT.
        neuron_dropout: As the argument `dropout`, which wins.
        generator: Draws the start values; None is torch's global one.
        adapter: Makes one adapter from the arguments of `LoraAdapter`, which is the default.
        kwargs: The arguments of `Sd3NetworkArgs`, as strings.

    Raises:
        OptionError: A wrong argument, or nothing to train.
        ValueError: A text encoder is in the place of another.
    """
    from networks import building
    from networks.adapters import LoraAdapter
    from networks.network import AdapterNetwork, make_part

    layers = building.layers_of(unet)
    args = parse_network_args(kwargs, _depth(layers))
    rank = default_rank(network_dim)
    dropouts = building.dropouts_of(args, neuron_dropout)
    shared: dict[str, Any] = {"multiplier": multiplier, "dropouts": dropouts, "adapter": adapter or LoraAdapter}
    parts: list[Part] = []
    for slot, encoder in _trained_encoders(text_encoder, args.train_t5xxl).items():
        modules = building.encoder_layers(encoder)
        planned = plan_modules(modules, encoder_rules(slot.title, rank, network_alpha))
        if not planned:
            raise ValueError(f"the text encoder in the place of {slot.title} is a {type(encoder).__name__}")
        parts.append(make_part(slot.part_name, slot.prefix, modules, planned, is_denoiser=False, **shared))
    planned = plan_modules(layers, denoiser_rules(args, rank, network_alpha))
    parts.append(make_part(_DENOISER.part_name, _DENOISER.prefix, layers, planned, is_denoiser=True, **shared))
    if not any(part.adapters for part in parts):
        raise OptionError(nothing_to_train(_depth(layers)))
    network = AdapterNetwork(parts, family=FAMILY, loraplus=building.loraplus_of(args))
    network.reset(generator)
    _warn(args)
    building.log_network(network, (*_ENCODERS, _DENOISER), is_verbose=args.verbose)
    return network


def create_network_from_weights(
    multiplier: float,
    file: str | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module | None] | None,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    neuron_dropout: float | None = None,
    *,
    adapter: Callable[..., LayerAdapter] | None = None,
    **kwargs: Any,
) -> tuple[AdapterNetwork, Mapping[str, Tensor]]:
    """A network with the modules, ranks, alphas and values of a file; nothing is attached yet.

    Args:
        multiplier: Strength of the network.
        file: The file; its name is for messages only if `weights_sd` is given.
        vae: Part of the contract; not used.
        text_encoder: As in `create_network`.
        unet: The MMDiT.
        weights_sd: Content of the file, if it has been read.
        for_inference: The network gets no gradients and is not in training mode.
        neuron_dropout: As the argument `dropout`, which wins.
        adapter: As in `create_network`.
        kwargs: As in `create_network`; those that choose modules and ranks have no effect, and the log says so.

    Returns:
        The network and the content of the file.

    Raises:
        CheckpointError: The file cannot be read, or is no LoRA for this model and these text encoders.
        OptionError: A wrong argument.
    """
    from networks import building
    from networks.adapters import LoraAdapter
    from networks.network import AdapterNetwork, make_part
    from networks.weights import factors_by_name, read_network

    what = f"the network file {file}" if file else "the network"
    if weights_sd is None:
        weights_sd = read_network(str(file), "network file")
    layers = building.layers_of(unet)
    args = parse_network_args(kwargs, _depth(layers))
    encoders = building.encoders_by_slot(text_encoder, _ENCODERS)
    models = {slot: building.encoder_layers(encoder) for slot, encoder in encoders.items()} | {_DENOISER: layers}
    dropouts = building.dropouts_of(args, neuron_dropout)
    shared: dict[str, Any] = {"multiplier": multiplier, "dropouts": dropouts, "adapter": adapter or LoraAdapter}
    parts = [
        make_part(slot.part_name, slot.prefix, models[slot], planned, is_denoiser=slot is _DENOISER, **shared)
        for slot, planned in building.plans_of_file(factors_by_name(weights_sd, what), what, FAMILY, models).items()
    ]
    network = AdapterNetwork(parts, family=FAMILY, loraplus=building.loraplus_of(args))
    network.load_saved_state(weights_sd, what)
    if for_inference:
        network.eval().requires_grad_(False)
    if chosen := [name for name in kwargs if name.endswith("_dim") or name in _CHOOSE_MODULES]:
        logger.warning("--network_args %s: no effect, modules and ranks are those of the file.", ", ".join(chosen))
    _warn(args)
    building.log_network(network, (*_ENCODERS, _DENOISER), is_verbose=args.verbose)
    return network, weights_sd


_CHOOSE_MODULES = ("emb_dims", "train_block_indices", "split_qkv", "train_t5xxl", "conv_alpha")


def _trained_encoders(
    text_encoder: nn.Module | Sequence[nn.Module | None] | None, trains_t5: bool
) -> dict[Slot, nn.Module]:
    """The encoders that get adapters. None at all is a run without them, in which train_t5xxl has no effect."""
    from networks import building

    given = building.encoders_by_slot(text_encoder, _ENCODERS)
    if given and trains_t5 and _ENCODERS[2] not in given:
        raise OptionError("--network_args train_t5xxl=True needs T5, which is not loaded. Give --t5xxl, or drop it.")
    return {slot: encoder for slot, encoder in given.items() if slot.title != "T5" or trains_t5}


def _depth(layers: Mapping[str, nn.Module]) -> int:
    indices = [int(name.split(".")[1]) for name in layers if name.startswith("joint_blocks.")]
    if not indices:
        raise OptionError(f"networks.lora_sd3 is for {FAMILY}, and this model has no joint blocks. {_ADVICE}")
    return max(indices) + 1


def _warn(args: Sd3NetworkArgs) -> None:
    for warning in args.warnings():
        logger.warning(warning)
