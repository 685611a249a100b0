"""`--network_module=networks.lora_fa`: a LoRA of which only the second factor is trained.

It takes the arguments of networks.lora, and its files are files of networks.lora. See `networks/lora_fa_adapter.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from networks import lora
from networks.lora_variant import refuse_arguments

if TYPE_CHECKING:
    from torch import Tensor, nn

    from networks.arg_parsing import LoraArgs
    from networks.network import AdapterNetwork

_ONE_FACTOR = "as it trains one of the two factors only: set the learning rate itself"
_LORA_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_NOT_HERE = dict.fromkeys(_LORA_PLUS, _ONE_FACTOR)
_NAME = "networks.lora_fa"


def check_network_args(kwargs: Mapping[str, object], depth: int | None = None, **options: Any) -> LoraArgs:
    """Check --network_args before weights are read; see `networks.lora.check_network_args`."""
    refuse_arguments(kwargs, _NOT_HERE, _NAME)
    return lora.check_network_args(kwargs, depth, **options)


def check_network_file(shapes: Mapping[str, tuple[int, ...]], what: str, **options: Any) -> None:
    """Check a network file before weights are read; see `networks.lora.check_network_file`."""
    lora.check_network_file(shapes, what, **options)


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
    """A new network; see `networks.lora.create_network`.

    Raises:
        OptionError: There is no LoRA for this family, or an argument is wrong.
    """
    from networks.lora_fa_adapter import LoraFaAdapter

    refuse_arguments(kwargs, _NOT_HERE, _NAME)
    return lora.create_network(
        multiplier,
        network_dim,
        network_alpha,
        vae,
        text_encoder,
        unet,
        neuron_dropout,
        adapter=LoraFaAdapter,
        **kwargs,
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
    """A network as a file has it; see `networks.lora.create_network_from_weights`.

    Raises:
        OptionError: There is no LoRA for this family, or an argument is wrong.
        CheckpointError: The file does not fit.
    """
    from networks.lora_fa_adapter import LoraFaAdapter

    refuse_arguments(kwargs, _NOT_HERE, _NAME)
    return lora.create_network_from_weights(
        multiplier, file, vae, text_encoder, unet, weights_sd, for_inference, adapter=LoraFaAdapter, **kwargs
    )
