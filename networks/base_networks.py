"""Networks of `--base_weights`: which module makes each of them, and how one is merged into the models.

Files of ours are merged by our modules, whatever `--network_module` is.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.memory_use import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PACKAGE_FAULTS = (AttributeError, KeyError, TypeError, ValueError, AssertionError, RuntimeError)
"""What modules of other packages raise of arguments and files that they cannot use."""

_OF_LORA = (".lora_down.weight", ".lora_up.weight", ".alpha")
# of LoHa and LoKr: what has as many rows as the rank, and the factors of which one is scaled
_DECOMPOSED = {
    ".hada_w1_b": (".hada_w1_a",),
    ".lokr_w1_b": (".lokr_w1", ".lokr_w1_a"),
    ".lokr_w2_b": (".lokr_w1", ".lokr_w1_a"),
}


def module_of_file(keys: Collection[str], module: ModuleType) -> ModuleType:
    """What makes the network of a file with these keys: `module`, that of the training, where it is none of ours."""
    if keys and all(key.endswith(_OF_LORA) for key in keys):
        return importlib.import_module("networks.lora")
    if keys and all(key.startswith("oft_unet_") for key in keys):
        return importlib.import_module("networks.oft")
    return module


def merge_base_network(
    module: ModuleType,
    what: str,
    tensors: Mapping[str, Tensor],
    multiplier: float,
    encoders: nn.Module | list[nn.Module],
    denoiser: nn.Module,
    *,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Add a network to the weights of the models.

    Args:
        module: From `module_of_file`.
        what: The option and the file, for messages.
        tensors: Content of the file.
        multiplier: Strength of the network.
        encoders: The text encoders that are there, as network modules take them.
        denoiser: The model that is trained.
        dtype: Of the training.
        device: Where changes are computed.

    Raises:
        CheckpointError: The module cannot make a network of it, or leaves a part of it out.
    """
    is_ours = module.__name__.startswith("networks.")
    tensors = tensors if is_ours else with_alpha_of_rank(tensors)
    try:
        made = module.create_network_from_weights(
            multiplier, what, None, encoders, denoiser, weights_sd=tensors, for_inference=True
        )
    except PACKAGE_FAULTS as error:
        if is_ours or is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{what}: {module.__name__} cannot make a network of it ({type(error).__name__}: {error}). "
            "Leave it out, or merge it into the model with another tool."
        ) from error
    network, weights = made if isinstance(made, tuple) else (made, None)
    if not hasattr(network, "unet_loras"):
        network.merge_to(encoders, denoiser, weights, dtype, device)
        return
    # lycoris-lora 4.1 merges at strength 1, whatever the network's strength is, and passes over what it does not find
    parts = [*network.text_encoder_loras, *network.unet_loras]
    _refuse_left_over(tensors, [part.lora_name for part in parts], what, module.__name__)
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
