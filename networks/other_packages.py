"""Network modules of other packages: how they are told from ours, what they raise, and the ways of LyCORIS."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE_FAULTS = (AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError)
"""What modules of other packages raise of arguments and files that they cannot use."""

# of LoHa and LoKr: what has as many rows as the rank, and the factors of which one is scaled
_DECOMPOSED = {
    ".hada_w1_b": (".hada_w1_a",),
    ".lokr_w1_b": (".lokr_w1", ".lokr_w1_a"),
    ".lokr_w2_b": (".lokr_w1", ".lokr_w1_a"),
}


def is_ours(module: str) -> bool:
    """Whether a `--network_module` of that name keeps to what all of ours do."""
    return module.startswith("networks.")


def is_lycoris(module: str) -> bool:
    """Whether it is of the package lycoris-lora."""
    return module.partition(".")[0] == "lycoris"


def is_on(args: Mapping[str, str], name: str) -> bool:
    """Whether a switch among --network_args is on, as LyCORIS reads it."""
    return args.get(name, "False").lower() != "false"


def change_at_strength_0(args: Mapping[str, str]) -> str | None:
    """The name among --network_args that lets a network change the model at strength 0 too."""
    return "dora_wd" if is_on(args, "dora_wd") else None


def merge_lycoris(network: Any, what: str, module: str, tensors: Mapping[str, Tensor], multiplier: float) -> None:
    """Add a network of LyCORIS to the weights of the models that it was made for.

    lycoris-lora 4.1 merges at strength 1, whatever the network's strength is, and passes over what it does not find.

    Args:
        network: Made of `with_alpha_of_rank(tensors)`.
        what: The option and the file, for messages.
        module: Name of the module that made it.
        tensors: Content of the file.
        multiplier: Strength.

    Raises:
        CheckpointError: Parts of the file have no layer.
    """
    parts = [*network.text_encoder_loras, *network.unet_loras]
    _refuse_left_over(tensors, [part.lora_name for part in parts], what, module)
    for part in parts:
        part.merge_to(multiplier)


def with_alpha_of_rank(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoHa and LoKr that say the same with an alpha that is the rank; the rest as it is.

    lycoris-lora 4.1 merges them at (alpha / rank) squared, where training has alpha / rank.
    """
    import torch

    same = dict(tensors)
    for end, scaled in _DECOMPOSED.items():
        for name in [key.removesuffix(end) for key in tensors if key.endswith(end)]:
            alpha, rank = float(same.get(f"{name}.alpha", 0.0)), tensors[name + end].shape[0]
            factor = next((name + other for other in scaled if name + other in same), None)
            if alpha and factor is not None and f"{name}.lokr_t2" not in same:
                same[factor] = same[factor].float() * (alpha / rank)
                same[f"{name}.alpha"] = torch.tensor(float(rank))
    return same


def _refuse_left_over(tensors: Mapping[str, Any], made: Collection[str], what: str, module: str) -> None:
    names = {key.partition(".")[0] for key in tensors}
    if left := sorted(names - set(made)):
        raise CheckpointError(
            f"{what}: {module} finds no layer for {len(left)} of its {len(names)} modules ({', '.join(left[:3])}). "
            "Give a file that was trained for this model and under the names of its layers."
        )
