"""`--network_module=networks.lora`: the LoRA that fits the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from networks import lora_sd3
from networks.sd3_args import Sd3NetworkArgs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from networks.network import AdapterNetwork


def check_network_args(kwargs: Mapping[str, object], depth: int | None = None, **options: Any) -> Sd3NetworkArgs:
    """Check --network_args before weights are read; see `networks.lora_sd3.check_network_args`."""
    return lora_sd3.check_network_args(kwargs, depth, **options)


def check_network_file(shapes: Mapping[str, tuple[int, ...]], what: str, **options: Any) -> None:
    """Check a network file before weights are read; see `networks.lora_sd3.check_network_file`."""
    lora_sd3.check_network_file(shapes, what, **options)


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
    """A new network for the family of `unet`; see `networks.lora_sd3.create_network`.

    Raises:
        OptionError: There is no LoRA for this family yet, or an argument is wrong.
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
    """A network as a file has it; see `networks.lora_sd3.create_network_from_weights`.

    Raises:
        OptionError: There is no LoRA for this family yet, or an argument is wrong.
        CheckpointError: The file does not fit.
    """
    return _module_for(unet).create_network_from_weights(
        multiplier, file, vae, text_encoder, unet, weights_sd, for_inference, **kwargs
    )


def _module_for(unet: nn.Module) -> Any:
    if hasattr(unet, "joint_blocks"):
        return lora_sd3
    raise OptionError(
        f"--network_module networks.lora: LoRA for a {type(unet).__name__} is not available yet. "
        "Models of the SD3 family can be trained."
    )
