"""LoRA for Stable Diffusion 3 and 3.5: which layers get an adapter, and of what rank.

By default: every linear layer of every joint block, and the attention and feed-forward layers of CLIP-L and CLIP-G.
The embedders and the final layer come by `emb_dims`, T5 by `train_t5xxl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, OptionError
from library.log import get_logger
from networks.sd3_args import Sd3NetworkArgs, parse_network_args
from networks.sd3_file_check import check_file_of_model, check_file_of_network
from networks.sd3_targets import default_rank, denoiser_rules, encoder_rules, nothing_to_train, trains_blocks
from networks.targets import PlannedModule, adapter_name, plan_modules

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from networks.adapters import Factors
    from networks.network import AdapterNetwork, Part

logger = get_logger(__name__)

FAMILY = "SD3"


@dataclass(frozen=True)
class _Slot:
    """A model that can have adapters, in the order of the text encoder list; the denoiser comes last."""

    part_name: str
    prefix: str
    title: str


_ENCODERS = (
    _Slot("textencoder 1", "lora_te1", "CLIP-L"),
    _Slot("textencoder 2", "lora_te2", "CLIP-G"),
    _Slot("textencoder 3", "lora_te3", "T5"),
)
_DENOISER = _Slot("unet", "lora_unet", "MMDiT")


def check_network_args(
    kwargs: Mapping[str, object],
    depth: int | None = None,
    *,
    network_dim: int | None = None,
    trains_text_encoders: bool = True,
    trains_denoiser: bool = True,
) -> Sd3NetworkArgs:
    """Check --network_args before weights are read. Needs no torch.

    Args:
        kwargs: {name: value as typed}
        depth: Number of joint blocks, if it is known.
        network_dim: --network_dim.
        trains_text_encoders: False with --network_train_unet_only.
        trains_denoiser: False with --network_train_text_encoder_only.

    Raises:
        OptionError: Unknown names, wrong values, or arguments that leave nothing to train.
    """
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
        kwargs: The arguments of `Sd3NetworkArgs`, as strings.

    Raises:
        OptionError: A wrong argument, or nothing to train.
        ValueError: A text encoder is in the place of another.
    """
    from networks.network import AdapterNetwork, LoraPlus, make_part

    layers = _layers(unet)
    args = parse_network_args(kwargs, _depth(layers))
    rank = default_rank(network_dim)
    shared = {"multiplier": multiplier, "dropouts": _dropouts(args, neuron_dropout)}
    parts: list[Part] = []
    for slot, encoder in _trained_encoders(text_encoder, args.train_t5xxl):
        modules = _encoder_layers(encoder)
        planned = plan_modules(modules, encoder_rules(slot.title, rank, network_alpha))
        if not planned:
            raise ValueError(f"the text encoder in the place of {slot.title} is a {type(encoder).__name__}")
        parts.append(make_part(slot.part_name, slot.prefix, modules, planned, is_denoiser=False, **shared))
    planned = plan_modules(layers, denoiser_rules(args, rank, network_alpha))
    parts.append(make_part(_DENOISER.part_name, _DENOISER.prefix, layers, planned, is_denoiser=True, **shared))
    if not any(part.adapters for part in parts):
        raise OptionError(nothing_to_train(_depth(layers)))
    network = AdapterNetwork(parts, family=FAMILY, loraplus=_loraplus(LoraPlus, args))
    network.reset(generator)
    _log(network, args)
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
        kwargs: As in `create_network`; those that choose modules and ranks have no effect, and the log says so.

    Returns:
        The network and the content of the file.

    Raises:
        CheckpointError: The file cannot be read, or is no LoRA for this model and these text encoders.
        OptionError: A wrong argument.
    """
    from networks.network import AdapterNetwork, LoraPlus
    from networks.weights import factors_by_name, read_network

    what = f"the network file {file}" if file else "the network"
    if weights_sd is None:
        weights_sd = read_network(str(file), "network file")
    layers = _layers(unet)
    args = parse_network_args(kwargs, _depth(layers))
    found = factors_by_name(weights_sd, what)
    dropouts = _dropouts(args, neuron_dropout)
    parts = _parts_of_file(found, what, layers, _encoder_list(text_encoder), multiplier, dropouts)
    network = AdapterNetwork(parts, family=FAMILY, loraplus=_loraplus(LoraPlus, args))
    network.load_saved_state(weights_sd, what)
    if for_inference:
        network.eval().requires_grad_(False)
    if chosen := [name for name in kwargs if name.endswith("_dim") or name in _CHOOSE_MODULES]:
        logger.warning("--network_args %s: no effect, modules and ranks are those of the file.", ", ".join(chosen))
    _log(network, args)
    return network, weights_sd


_CHOOSE_MODULES = ("emb_dims", "train_block_indices", "split_qkv", "train_t5xxl", "conv_alpha")


def _parts_of_file(
    found: Mapping[str, Factors],
    what: str,
    layers: Mapping[str, nn.Module],
    encoders: Sequence[nn.Module | None],
    multiplier: float,
    dropouts: Any,
) -> list[Part]:
    """Adapters for every module that the file names; none may be left over."""
    from networks.network import make_part
    from networks.weights import describe_file, how_to_use

    models = [(slot, {} if model is None else _encoder_layers(model)) for slot, model in zip(_ENCODERS, encoders)]  # noqa: B905
    parts, taken = [], set[str]()
    for slot, modules in [*models, (_DENOISER, layers)]:
        names = {name: adapter_name(slot.prefix, name) for name in modules}
        planned = [
            PlannedModule(name, found[key].rank, found[key].alpha) for name, key in names.items() if key in found
        ]
        taken.update(names[plan.name] for plan in planned)
        is_denoiser = slot is _DENOISER
        parts.append(
            make_part(
                slot.part_name,
                slot.prefix,
                modules,
                planned,
                is_denoiser=is_denoiser,
                multiplier=multiplier,
                dropouts=dropouts,
            )
        )
    if unknown := sorted(found.keys() - taken):
        keys = [f"{name}.lora_down.weight" for name in found]
        raise CheckpointError(
            f"{what} is {describe_file(keys)}, the model is {FAMILY}: {len(unknown)} of its {len(found)} modules are "
            f"neither in the model nor in a loaded text encoder ({', '.join(unknown[:3])}). {how_to_use(keys)}"
        )
    return parts


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolution layers of a model by name."""
    from torch import nn

    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def _encoder_layers(encoder: nn.Module) -> dict[str, nn.Module]:
    """Layers of a text encoder under the names that files use, whatever the installed transformers calls them."""
    layers = _layers(encoder)
    return {f"text_model.{name}" if name.startswith("encoder.layers.") else name: layers[name] for name in layers}


def _encoder_list(text_encoder: nn.Module | Sequence[nn.Module | None] | None) -> Sequence[nn.Module | None]:
    if text_encoder is None:
        return []
    return list(text_encoder) if isinstance(text_encoder, (list, tuple)) else [text_encoder]  # type: ignore[list-item]


def _trained_encoders(
    text_encoder: nn.Module | Sequence[nn.Module | None] | None, trains_t5: bool
) -> list[tuple[_Slot, nn.Module]]:
    """The encoders that get adapters. None at all is a run without them, in which train_t5xxl has no effect."""
    slots = zip(_ENCODERS, _encoder_list(text_encoder), strict=False)
    given = {slot: encoder for slot, encoder in slots if encoder is not None}
    if given and trains_t5 and _ENCODERS[2] not in given:
        raise OptionError("--network_args train_t5xxl=True needs T5, which is not loaded. Give --t5xxl, or drop it.")
    return [(slot, encoder) for slot, encoder in given.items() if slot.title != "T5" or trains_t5]


def _depth(layers: Mapping[str, nn.Module]) -> int:
    indices = [int(name.split(".")[1]) for name in layers if name.startswith("joint_blocks.")]
    if not indices:
        raise OptionError(f"networks.lora_sd3 is for {FAMILY}, and this model has no joint blocks. Use networks.lora.")
    return max(indices) + 1


def _dropouts(args: Sd3NetworkArgs, neuron_dropout: float | None) -> Any:
    from networks.adapters import Dropouts

    neuron = neuron_dropout if args.dropout is None else args.dropout
    return Dropouts(neuron=neuron or 0.0, rank=args.rank_dropout, module=args.module_dropout)


def _loraplus(kind: Any, args: Sd3NetworkArgs) -> Any:
    return kind(
        text_encoder=args.loraplus_text_encoder_lr_ratio or args.loraplus_lr_ratio,
        denoiser=args.loraplus_unet_lr_ratio or args.loraplus_lr_ratio,
    )


def _log(network: AdapterNetwork, args: Sd3NetworkArgs) -> None:
    for warning in args.warnings():
        logger.warning(warning)
    titles = {slot.part_name: slot.title for slot in (*_ENCODERS, _DENOISER)}
    counts = [f"{len(part.adapters)} in {titles[part.name]}" for part in network.parts]
    logger.info("LoRA for %s: %s modules", FAMILY, " + ".join(counts))
    if args.verbose:
        for adapter in network.adapters():
            logger.info("  %s: rank %d, alpha %g", adapter.name, adapter.rank, adapter.alpha)
