"""`--network_module=networks.lora`: the LoRA that fits the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from networks import lora_sd3, lora_unet

if TYPE_CHECKING:
    from torch import Tensor, nn

    from networks.arg_parsing import LoraArgs
    from networks.network import AdapterNetwork
    from networks.targets import ModelOutline


def check_network_args(
    kwargs: Mapping[str, object], depth: int | None = None, *, model: ModelOutline | None = None, **options: Any
) -> LoraArgs:
    """Check --network_args before weights are read; see `check_network_args` of `networks.lora_sd3` and
    `networks.lora_unet`. Without `model` it is SD3."""
    checked: LoraArgs = _checks_for(model).check_network_args(kwargs, depth, model=model, **options)
    return checked


def check_network_file(
    shapes: Mapping[str, tuple[int, ...]], what: str, *, model: ModelOutline | None = None, **options: Any
) -> None:
    """Check a network file before weights are read; see `check_network_file` of `networks.lora_sd3` and
    `networks.lora_unet`. Without `model` it is SD3."""
    _checks_for(model).check_network_file(shapes, what, model=model, **options)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module | None] | None,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> AdapterNetwork:
    """A new network for the family of `unet`; see `create_network` of `networks.lora_sd3` and `networks.lora_unet`.

    Raises:
        OptionError: There is no LoRA for this family, or an argument is wrong.
    """
    return _module_for(unet).create_network(
        multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout, **kwargs
    )


def create_network_from_weights(
    multiplier: float,
    file: str | None,
    vae: object,
    text_encoder: nn.Module | Sequence[nn.Module | None] | None,
    unet: nn.Module,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[AdapterNetwork, Mapping[str, Tensor]]:
    """A network as a file has it; see that of `networks.lora_sd3` and `networks.lora_unet`.

    Raises:
        OptionError: There is no LoRA for this family, or an argument is wrong.
        CheckpointError: The file does not fit.
    """
    return _module_for(unet).create_network_from_weights(
        multiplier, file, vae, text_encoder, unet, weights_sd, for_inference, **kwargs
    )


def _checks_for(model: ModelOutline | None) -> Any:
    return lora_sd3 if model is None or model.family == "sd3" else lora_unet


def _module_for(unet: nn.Module) -> Any:
    if hasattr(unet, "joint_blocks"):
        return lora_sd3
    if hasattr(unet, "down_blocks"):
        return lora_unet
    raise OptionError(
        f"--network_module networks.lora: there is no LoRA for a {type(unet).__name__}. "
        "Models of SD1, SD2, SDXL and SD3 can be trained."
    )
