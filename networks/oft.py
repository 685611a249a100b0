"""`--network_module=networks.oft`: orthogonal finetuning of the U-Nets of SD1, SD2 and SDXL; see `oft_adapter.py`.

--network_dim is the number of groups that the outputs of a layer are divided into, each with its rotation: more groups
are fewer numbers. --network_alpha limits how far they can turn: 0.001 is usual, from 1 on hardly anything is limited,
and 0 is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.log import get_logger
from networks.oft_file import check_fit, groups_by_name
from networks.oft_targets import (
    DEFAULT_LIMIT,
    DENOISER,
    OftArgs,
    num_groups,
    parse_network_args,
    plan_denoiser,
    refuse_undivided,
)
from networks.targets import ModelOutline, PlannedModule, adapter_name
from networks.unet_layers import UnetNames
from networks.weights import describe_file

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from networks.oft_network import OftNetwork

logger = get_logger(__name__)

IS_LORA = False
"""A rotation is no product of two factors: --scale_weight_norms finds no norm, and diffusers cannot load it."""


def check_network_args(
    kwargs: Mapping[str, object],
    depth: int | None = None,
    *,
    model: ModelOutline | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> OftArgs:
    """Check --network_args before weights are read. Needs no torch.

    Args:
        kwargs: {name: value as typed}
        depth: Part of the contract; not used.
        model: The U-Net.
        network_dim: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        OptionError: Unknown names, wrong values, another family of models, groups that do not divide the outputs of the
            layers, or nothing to train.
    """
    args = parse_network_args(kwargs)
    names, outputs = _outline(model)
    refuse_undivided(plan_denoiser(names, args, num_groups(network_dim), DEFAULT_LIMIT), outputs)
    if not trains_denoiser:
        raise OptionError(
            "--network_module networks.oft trains the U-Net only, which --network_train_text_encoder_only leaves out. "
            "Use networks.lora for text encoders."
        )
    if trains_text_encoders:
        logger.warning("networks.oft trains the U-Net only: give --network_train_unet_only to say so.")
    return args


def check_network_file(
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    depth: int | None = None,
    model: ModelOutline | None = None,
    args: OftArgs | None = None,
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
        args: The network that the file must fit; None for a file that brings its own modules and groups.
        network_dim: As for `check_network_args`.
        trains_text_encoders: Part of the contract; files have the U-Net only.
        trains_denoiser: Likewise.

    Raises:
        CheckpointError: It is no OFT network, is for another model, or does not fit the network.
    """
    if model is None or model.family == "sd3":
        raise CheckpointError(f"{what} is {describe_file(shapes)}, which is for a U-Net; the model is SD3. {_NO_PLACE}")
    names, outputs = _outline(model)
    found = groups_by_name(shapes, what, names, outputs)
    if args is None:
        return
    planned = plan_denoiser(names, args, num_groups(network_dim), DEFAULT_LIMIT)
    check_fit(found, {adapter_name(DENOISER.prefix, plan.name): plan.rank for plan in planned}, what, names.title)


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
    **kwargs: Any,
) -> OftNetwork:
    """A new network; nothing is attached yet, and nothing is turned.

    Args:
        multiplier: Strength of the network.
        network_dim: Groups of a layer's outputs; None is 4.
        network_alpha: See above; None is 0.001.
        vae: Part of the contract; not used.
        text_encoder: Likewise.
        unet: The U-Net, under the names of diffusers.
        neuron_dropout: Has to be None or 0.
        generator: Part of the contract; no number is drawn.
        kwargs: The arguments of `OftArgs`, as strings.

    Raises:
        OptionError: A wrong argument, another family of models, or groups that do not divide the outputs of the layers.
    """
    from networks.oft_network import OftNetwork, num_outputs

    args = parse_network_args(kwargs, neuron_dropout)
    names, layers = _layers(unet)
    limit = DEFAULT_LIMIT if network_alpha is None else network_alpha
    planned = plan_denoiser(names, args, num_groups(network_dim), limit)
    refuse_undivided(planned, {name: num_outputs(layer) for name, layer in layers.items()})
    if limit >= 1:
        logger.warning(
            "--network_alpha %g: with networks.oft it limits how far outputs are turned, and from 1 on hardly anything "
            "is limited. Usual is 0.001.",
            limit,
        )
    network = OftNetwork(names, layers, planned, multiplier)
    network.reset()
    _log(network, is_verbose=args.verbose)
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
    **kwargs: Any,
) -> tuple[OftNetwork, Mapping[str, Tensor]]:
    """A network with the modules, groups, limits and values of a file; nothing is attached yet.

    Args:
        multiplier: Strength of the network.
        file: The file; its name is for messages only if `weights_sd` is given.
        vae: Part of the contract; not used.
        text_encoder: Likewise.
        unet: The U-Net, under the names of diffusers.
        weights_sd: Content of the file, if it has been read.
        for_inference: The network gets no gradients and is not in training mode.
        neuron_dropout: Has to be None or 0.
        kwargs: As in `create_network`; those that choose modules have no effect, and the log says so.

    Returns:
        The network and the content of the file, under the names that our files have.

    Raises:
        CheckpointError: The file cannot be read, or is no OFT network for this model.
        OptionError: A wrong argument, or another family of models.
    """
    from networks.oft_file import aliases, rotations
    from networks.oft_network import OftNetwork, num_outputs
    from networks.weights import read_network, with_own_names

    what = f"the network file {file}" if file else "the network"
    args = parse_network_args(kwargs, neuron_dropout)
    if weights_sd is None:
        weights_sd = read_network(str(file), "network file")
    names, layers = _layers(unet)
    shapes = {key: tuple(tensor.shape) for key, tensor in weights_sd.items()}
    groups_by_name(shapes, what, names, {name: num_outputs(layer) for name, layer in layers.items()})
    own = with_own_names(weights_sd, aliases(names), what)
    found, planned = rotations(own), []
    for name in layers:
        if values := found.get(adapter_name(DENOISER.prefix, name)):
            planned.append(PlannedModule(name, values.num_groups, values.alpha))
    network = OftNetwork(names, layers, planned, multiplier)
    network.load_saved_state(own, what)
    if for_inference:
        network.eval().requires_grad_(False)
    if chosen := [name for name in kwargs if name.startswith("enable_")]:
        logger.warning("--network_args %s: no effect, modules are those of the file.", ", ".join(chosen))
    _log(network, is_verbose=args.verbose)
    return network, own


def _outline(model: ModelOutline | None) -> tuple[UnetNames, dict[str, int]]:
    """The names of a U-Net, and {name: outputs} of its layers."""
    if model is None or model.family == "sd3":
        raise OptionError(_OTHER_FAMILY)
    return UnetNames.of_outline(model), {name: shape[0] for name, shape in model.layers.items()}


def _layers(unet: nn.Module) -> tuple[UnetNames, dict[str, nn.Module]]:
    """The names of a U-Net, and {name as files have it: layer}."""
    from networks import building
    from networks.lora_unet import names_of

    if not hasattr(unet, "down_blocks"):
        raise OptionError(_OTHER_FAMILY)
    layers = building.layers_of(unet)
    names = names_of(layers)
    return names, dict(zip(names.published, layers.values(), strict=True))


_NO_PLACE = "Leave it out, or give a file that was trained for this model."
_OTHER_FAMILY = "--network_module networks.oft is for the U-Nets of SD1, SD2 and SDXL. Use networks.lora for others."


def _log(network: OftNetwork, *, is_verbose: bool) -> None:
    logger.info("OFT for %s: %d modules in U-Net", network.family, len(list(network.adapters())))
    if is_verbose:
        for adapter in network.adapters():
            logger.info("  %s: %d groups, alpha %g", adapter.name, adapter.rank, adapter.alpha)
