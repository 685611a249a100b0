"""LoRA for SD1, SD2 and SDXL: which layers get an adapter, and of what rank.

By default: the linear layers and 1x1 convolutions of the attention blocks of the U-Net, and the attention and
feed-forward layers of the text encoders. Residual blocks and changes of size come by `conv_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.log import get_logger
from networks.arg_parsing import default_rank
from networks.targets import ModelOutline, PlannedModule, Slot
from networks.unet_args import UnetNetworkArgs, parse_network_args
from networks.unet_file_check import check_file_of_model, check_file_of_network
from networks.unet_layers import DENOISER, UnetNames
from networks.unet_targets import by_rate, nothing_to_train, plan_denoiser, plan_encoder, unmatched

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from networks.adapters import LoraAdapter
    from networks.network import AdapterNetwork, Part

logger = get_logger(__name__)


def check_network_args(
    kwargs: Mapping[str, object],
    depth: int | None = None,
    *,
    model: ModelOutline,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> UnetNetworkArgs:
    """Check --network_args before weights are read. Needs no torch.

    Args:
        kwargs: {name: value as typed}
        depth: Part of the contract; not used.
        model: The U-Net.
        network_dim: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        OptionError: Unknown names, wrong values, or arguments that leave nothing to train.
    """
    names = UnetNames.of_outline(model)
    args = parse_network_args(kwargs, names.layout)
    rank = default_rank(network_dim)
    if not trains_text_encoders and not (trains_denoiser and plan_denoiser(names, args, rank, None)):
        raise OptionError(nothing_to_train())
    _tell_idle(kwargs, trains_text_encoders=trains_text_encoders, trains_denoiser=trains_denoiser)
    return args


def _tell_idle(kwargs: Mapping[str, object], *, trains_text_encoders: bool, trains_denoiser: bool) -> None:
    """Warn of arguments for a part that does not train."""
    if not trains_denoiser and (idle := [name for name in kwargs if name in _OF_DENOISER]):
        logger.warning("--network_args %s: no effect with --network_train_text_encoder_only.", ", ".join(idle))
    if not trains_text_encoders and "loraplus_text_encoder_lr_ratio" in kwargs:
        logger.warning("--network_args loraplus_text_encoder_lr_ratio: no effect with --network_train_unet_only.")


def check_network_file(
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    depth: int | None = None,
    model: ModelOutline,
    args: UnetNetworkArgs | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> None:
    """Check the header of a network file before weights are read. Needs no torch.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        depth: Part of the contract; not used.
        model: The U-Net.
        args: The network that the file must fit; None for a file that brings its own modules and ranks.
        network_dim: As for `check_network_args`, and so the next two.

    Raises:
        CheckpointError: It is no LoRA, is for another model, or does not fit the network.
    """
    found = check_file_of_model(shapes, what, model)
    if args is None:
        return
    check_file_of_network(
        found,
        what,
        UnetNames.of_outline(model),
        args,
        rank=default_rank(network_dim),
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
    adapter: Callable[..., LoraAdapter] | None = None,
    **kwargs: Any,
) -> AdapterNetwork:
    """A new network; nothing is attached yet.

    Args:
        multiplier: Strength of the network.
        network_dim: Rank where no argument gives another; None is 4.
        network_alpha: The output of an adapter is scaled by alpha / rank; None or 0 is the rank.
        vae: Part of the contract; not used.
        text_encoder: CLIP; for SDXL CLIP-L and CLIP-G in this order. None or left out where there is none.
        unet: The U-Net, under the names of diffusers.
        neuron_dropout: As the argument `dropout`, which wins.
        generator: Draws the start values; None is torch's global one.
        adapter: Makes one adapter from the arguments of `LoraAdapter`, which is the default.
        kwargs: The arguments of `UnetNetworkArgs`, as strings.

    Raises:
        OptionError: A wrong argument, or nothing to train.
        ValueError: What is in the place of a text encoder is none.
    """
    from networks import building

    layers = building.layers_of(unet)
    names = names_of(layers)
    args = parse_network_args(kwargs, names.layout)
    rank = default_rank(network_dim)
    models = _models(text_encoder, names, layers)
    plans: dict[Slot, Sequence[PlannedModule]] = {
        slot: plan_encoder(modules, slot, args, rank, network_alpha)
        for slot, modules in models.items()
        if slot != DENOISER
    }
    if strange := [slot.title for slot, planned in plans.items() if not planned and not args.network_reg_dims]:
        raise ValueError(f"the text encoder in the place of {strange[0]} has no layers of CLIP")
    plans[DENOISER] = plan_denoiser(names, args, rank, network_alpha)
    dropouts = building.dropouts_of(args, neuron_dropout)
    parts = _parts(plans, models, names, args, adapter, {"multiplier": multiplier, "dropouts": dropouts})
    if not any(part.adapters for part in parts):
        raise OptionError(nothing_to_train())
    network = _network(parts, names, args)
    network.reset(generator)
    for warning in (*args.warnings(names.layout), *unmatched(args, models)):
        logger.warning(warning)
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
    adapter: Callable[..., LoraAdapter] | None = None,
    **kwargs: Any,
) -> tuple[AdapterNetwork, Mapping[str, Tensor]]:
    """A network with the modules, ranks, alphas and values of a file; nothing is attached yet.

    Args:
        multiplier: Strength of the network.
        file: The file; its name is for messages only if `weights_sd` is given.
        vae: Part of the contract; not used.
        text_encoder: As in `create_network`.
        unet: The U-Net, under the names of diffusers.
        weights_sd: Content of the file, if it has been read.
        for_inference: The network gets no gradients and is not in training mode.
        neuron_dropout: As the argument `dropout`, which wins.
        adapter: As in `create_network`.
        kwargs: As in `create_network`; those that choose modules and ranks have no effect, and the log says so.

    Returns:
        The network and the content of the file, under the names that our files have.

    Raises:
        CheckpointError: The file cannot be read, or is no LoRA for this model and these text encoders.
        OptionError: A wrong argument.
    """
    from networks import building
    from networks.weights import factors_by_name, read_network, with_own_names

    what = f"the network file {file}" if file else "the network"
    if weights_sd is None:
        weights_sd = read_network(str(file), "network file")
    layers = building.layers_of(unet)
    names = names_of(layers)
    args = parse_network_args(kwargs, names.layout)
    models = _models(text_encoder, names, layers)
    own = with_own_names(weights_sd, names.aliases, what)
    plans = building.plans_of_file(factors_by_name(own, what), what, names.title, models)
    dropouts = building.dropouts_of(args, neuron_dropout)
    parts = _parts(plans, models, names, args, adapter, {"multiplier": multiplier, "dropouts": dropouts})
    network = _network(parts, names, args)
    network.load_saved_state(own, what)
    if for_inference:
        network.eval().requires_grad_(False)
    if chosen := [name for name in kwargs if name in _CHOOSE_MODULES]:
        logger.warning("--network_args %s: no effect, modules and ranks are those of the file.", ", ".join(chosen))
    return network, own


_CHOOSE_MODULES = (
    "conv_dim",
    "conv_alpha",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "network_reg_dims",
)


_OF_DENOISER = (
    *(name for name in _CHOOSE_MODULES if name != "network_reg_dims"),
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "loraplus_unet_lr_ratio"),
)


def names_of(layers: Mapping[str, nn.Module]) -> UnetNames:
    """The family of a U-Net, and its names."""
    from torch import nn

    if any(name.startswith("add_embedding.") for name in layers):
        return UnetNames.of_model("sdxl", layers)
    projections = [layer for name, layer in layers.items() if name.endswith(".proj_in")]
    is_linear = any(isinstance(layer, nn.Linear) for layer in projections)
    return UnetNames.of_model("sd2" if is_linear else "sd1", layers)


def _models(text_encoder: Any, names: UnetNames, layers: Mapping[str, nn.Module]) -> dict[Slot, dict[str, nn.Module]]:
    """{slot: {name as files have it: layer}}: the text encoders that are there, then the U-Net."""
    from networks import building

    encoders = building.encoders_by_slot(text_encoder, names.encoders)
    models = {slot: building.encoder_layers(encoder) for slot, encoder in encoders.items()}
    return {**models, DENOISER: dict(zip(names.published, layers.values(), strict=True))}


def _parts(
    plans: Mapping[Slot, Sequence[PlannedModule]],
    models: Mapping[Slot, Mapping[str, nn.Module]],
    names: UnetNames,
    args: UnetNetworkArgs,
    adapter: Callable[..., LoraAdapter] | None,
    shared: Mapping[str, Any],
) -> list[Part]:
    """One part for each model and learning rate."""
    from networks.adapters import LoraAdapter
    from networks.network import make_part

    return [
        make_part(
            group.name,
            slot.prefix,
            models[slot],
            planned,
            is_denoiser=slot == DENOISER,
            rate=group.rate,
            rate_factor=group.factor,
            adapter=adapter or LoraAdapter,
            **shared,
        )
        for slot, plan in plans.items()
        for group, planned in by_rate(plan, slot, args, names).items()
    ]


def _network(parts: Sequence[Part], names: UnetNames, args: UnetNetworkArgs) -> AdapterNetwork:
    from networks import building
    from networks.network import AdapterNetwork

    network = AdapterNetwork(parts, family=names.title, loraplus=building.loraplus_of(args), aliases=names.aliases)
    building.log_network(network, (*names.encoders, DENOISER), is_verbose=args.verbose)
    return network
