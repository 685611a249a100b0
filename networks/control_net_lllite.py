"""ControlNet-LLLite for SDXL: what sdxl_train_control_net_lllite.py trains, and how its files are used.

network = create_network_from_weights(1.0, "lines.safetensors", unet)
network.apply_to()
network.set_condition(images)  # [B, 3, H, W] in -1..1; stays until another is set
network.detach_all()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.log import get_logger
from networks.arg_parsing import Parser, chance, number, parse_values
from networks.control_net_lllite_targets import (
    DEFAULT_COND_EMB_DIM,
    DEFAULT_MLP_DIM,
    Widths,
    check_widths,
    modules_of_file,
    sdxl_layers,
    target_levels,
)
from networks.targets import ModelOutline

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor, nn

    from networks.control_net_lllite_network import LLLiteNetwork

logger = get_logger(__name__)

_PARSERS: dict[str, Parser] = {
    "cond_emb_dim": lambda text: number(int, text, "a whole number"),
    "dropout": chance,
}

IS_LORA = False
IS_CONDITIONED = True
"""It learns from a conditioning picture beside each picture, which only a script for it has."""
SCRIPT = "sdxl_train_control_net_lllite.py"
"""That script."""


def check_network_args(
    kwargs: Mapping[str, object],
    depth: int | None = None,
    *,
    model: ModelOutline | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = False,
    trains_denoiser: bool = True,
) -> Widths:
    """Check the widths before weights are read. The arguments are those of every network module.

    Raises:
        OptionError: There can be no such modules, or the model is none of SDXL.
    """
    sdxl_layers(model)
    return _widths(network_dim, kwargs)


def check_network_file(
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    depth: int | None = None,
    model: ModelOutline | None = None,
    args: Widths | None = None,
    network_dim: int | None = None,
    trains_text_encoders: bool = False,
    trains_denoiser: bool = True,
) -> None:
    """Check the header of a file before weights are read.

    Args:
        shapes: {key in the file: shape}
        what: The option and the file, for messages.
        depth: Part of the contract, like the last three.
        model: The U-Net.
        args: Widths that the file must have; None for any.
        network_dim: See `depth`.
        trains_text_encoders: See `depth`.
        trains_denoiser: See `depth`.

    Raises:
        CheckpointError: It is no LLLite for this model, or does not fit.
    """
    layers = sdxl_layers(model)
    found = modules_of_file(shapes, what, {name: shape[1] for name, shape in layers.items()})
    if args is not None:
        from networks.control_net_lllite_network import check_fit

        check_fit(found, (args, layers), what)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: object,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    *,
    generator: Generator | None = None,
    **kwargs: Any,
) -> LLLiteNetwork:
    """A new network; nothing is attached yet, and nothing is added.

    Args:
        multiplier: Strength.
        network_dim: Width of the layers between; None is 64.
        network_alpha: Part of the contract, like the next two.
        vae: See there.
        text_encoder: See there.
        unet: Of SDXL, under the names of diffusers.
        neuron_dropout: Chance of dropping a value inside a module while training.
        generator: Of the start values; None is torch's global one.
        kwargs: `cond_emb_dim`, width of the picture's embedding, left out it is 32; `dropout`, which wins over
            `neuron_dropout`.

    Raises:
        OptionError: A wrong argument, or another model.
    """
    from networks.control_net_lllite_network import LLLiteNetwork

    widths = _widths(network_dim, kwargs)
    dropout = float(kwargs.get("dropout") or neuron_dropout or 0.0)
    network = LLLiteNetwork(_layers(unet), widths, multiplier, dropout=dropout)
    network.reset(generator)
    logger.info("ControlNet-LLLite: %d modules in U-Net", len(network.inputs))
    return network


def create_network_from_weights(
    multiplier: float, file: str | Path | None, unet: nn.Module, weights_sd: Mapping[str, Tensor] | None = None
) -> LLLiteNetwork:
    """A network with the modules, widths and values of a file, without gradients; nothing is attached yet.

    Args:
        multiplier: Strength.
        file: The file; its name is for messages only if `weights_sd` is given.
        unet: Of SDXL, under the names of diffusers.
        weights_sd: Content of the file, if it has been read.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or is no LLLite for this model.
        OptionError: The model is none of SDXL.
    """
    import torch

    from networks.control_net_lllite_network import LLLiteNetwork
    from networks.weights import read_network

    what = f"the ControlNet-LLLite {file}" if file else "the ControlNet-LLLite"
    tensors = read_network(str(file), "ControlNet-LLLite") if weights_sd is None else weights_sd
    layers = _layers(unet)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    inputs = {name: int(layer.in_features) for name, layer in layers.items()}  # type: ignore[arg-type]
    widths, names = modules_of_file(shapes, what, inputs)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{what} is damaged: {name} has numbers that are not finite. Give an earlier file.")
    network = LLLiteNetwork({name: layers[name] for name in names}, widths, multiplier)
    network.load_saved_state(tensors, what)
    return network.eval().requires_grad_(False)


def _widths(network_dim: int | None, arguments: Mapping[str, Any]) -> Widths:
    """Those of --network_dim and the arguments; what else is among these is checked."""
    values = parse_values(arguments, _PARSERS)
    condition = values.get("cond_emb_dim", DEFAULT_COND_EMB_DIM)
    return check_widths(Widths(condition, DEFAULT_MLP_DIM if network_dim is None else network_dim))


def _layers(unet: nn.Module) -> dict[str, nn.Module]:
    """{published name: layer} of the layers that get a module."""
    from networks import building
    from networks.lora_unet import names_of

    layers = building.layers_of(unet) if hasattr(unet, "down_blocks") else {}
    names = names_of(layers) if layers else None
    if names is None or names.family != "sdxl":
        raise OptionError("ControlNet-LLLite is for SDXL. Give a model of SDXL.")
    by_name = dict(zip(names.published, layers.values(), strict=True))
    return {name: by_name[name] for name in target_levels(by_name)}
