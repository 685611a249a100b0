"""`--network_module=networks.dylora`: a LoRA that is trained a few ranks at a time. See `networks/dylora_adapter.py`.

It takes the arguments of networks.lora, but for dropout, and `unit`: how many ranks a pass trains. Its files are files
of networks.lora, and their first ranks can be used alone (networks/extract_lora_from_dylora.py). Convolutions have
--network_alpha where conv_alpha is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from networks import lora
from networks.arg_parsing import WrongValue, default_rank, number, parse_values
from networks.lora_variant import given_ranks, refuse_arguments

if TYPE_CHECKING:
    from torch import Tensor, nn

    from networks.arg_parsing import LoraArgs
    from networks.layer_adapter import LayerAdapter
    from networks.network import AdapterNetwork

_LEAVES_OUT = "as its passes leave ranks out by themselves"
_NOT_HERE = {
    **dict.fromkeys(("dropout", "rank_dropout", "module_dropout"), _LEAVES_OUT),
    "split_qkv": "as its factors are not made of parts",
}
_NAME = "networks.dylora"


def check_network_args(
    kwargs: Mapping[str, object], depth: int | None = None, *, network_dim: int | None = None, **options: Any
) -> LoraArgs:
    """Check --network_args before weights are read; see `networks.lora.check_network_args`.

    Raises:
        OptionError: As there, or `unit` divides not every rank.
    """
    unit, others = _unit_and_others(kwargs)
    args = lora.check_network_args(others, depth, network_dim=network_dim, **options)
    for name, rank in [("--network_dim", default_rank(network_dim)), *given_ranks(args)]:
        _check_unit(unit, rank, name)
    return args


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
    refuse_arguments(kwargs, _NOT_HERE, _NAME, neuron_dropout)
    unit, others = _unit_and_others(kwargs)
    if not {"conv_dim", "conv_block_dims"}.isdisjoint(others):
        others = {"conv_alpha": str(network_alpha or 0), **others}
    return lora.create_network(
        multiplier, network_dim, network_alpha, vae, text_encoder, unet, adapter=_adapter(unit), **others
    )


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
    """A network as a file has it; see `networks.lora.create_network_from_weights`.

    Raises:
        OptionError: There is no LoRA for this family, or an argument is wrong.
        CheckpointError: The file does not fit.
    """
    refuse_arguments(kwargs, _NOT_HERE, _NAME, neuron_dropout)
    unit, others = _unit_and_others(kwargs)
    return lora.create_network_from_weights(
        multiplier, file, vae, text_encoder, unet, weights_sd, for_inference, adapter=_adapter(unit), **others
    )


def _unit_and_others(kwargs: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    refuse_arguments(kwargs, _NOT_HERE, _NAME)
    given = {"unit": kwargs.get("unit")}
    return parse_values(given, {"unit": _unit}).get("unit", 1), {k: v for k, v in kwargs.items() if k != "unit"}


def _unit(text: str) -> int:
    value = number(int, text, "a number of ranks, 1 or more")
    if value < 1:
        raise WrongValue("must be a number of ranks, 1 or more")
    return value


def _check_unit(unit: int, rank: int, name: str) -> None:
    if rank % unit:
        raise OptionError(f"--network_args unit={unit}: must divide every rank, and {name} is {rank}.")


def _adapter(unit: int) -> Callable[..., LayerAdapter]:
    """Makes adapters that train so many ranks at a time."""
    from networks.dylora_adapter import DyLoraAdapter

    def make(name: str, target: nn.Module, rank: int, alpha: float, **options: Any) -> LayerAdapter:
        _check_unit(unit, rank, f"the rank of {name}")
        return DyLoraAdapter(name, target, rank, alpha, unit=unit, **options)

    return make
