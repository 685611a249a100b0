"""Networks of `--base_weights`: which module makes each of them, and how one is merged into the models.

Files of ours are merged by our modules, whatever `--network_module` is.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.memory_use import is_out_of_memory
from networks.other_packages import PACKAGE_FAULTS, is_lycoris, is_ours, merge_lycoris, with_alpha_of_rank

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_OF_LORA = (".lora_down.weight", ".lora_up.weight", ".alpha")


def module_of_file(keys: Collection[str], module: ModuleType) -> ModuleType:
    """What makes the network of a file with these keys: `module`, that of the training, where it is none of ours."""
    if keys and all(key.endswith(_OF_LORA) for key in keys):
        return importlib.import_module("networks.lora")
    if keys and all(key.startswith("oft_unet_") for key in keys):
        return importlib.import_module("networks.oft")
    return module


def merge_base_network(
    module: ModuleType,
    path: Path,
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
        path: The file, for messages.
        tensors: Its content.
        multiplier: Strength of the network.
        encoders: The text encoders that are there, as network modules take them.
        denoiser: The model that is trained.
        dtype: Of the training.
        device: Where changes are computed.

    Raises:
        CheckpointError: The module cannot merge it, or would leave a part of it out.
    """
    name, what = module.__name__, f"--base_weights {path}"
    try:
        tensors = with_alpha_of_rank(tensors) if is_lycoris(name) else tensors
        made = module.create_network_from_weights(
            multiplier, str(path), None, encoders, denoiser, weights_sd=tensors, for_inference=True
        )
        network, weights = made if isinstance(made, tuple) else (made, tensors)
        if is_lycoris(name):
            merge_lycoris(network, what, name, tensors, multiplier)
        else:
            network.merge_to(encoders, denoiser, weights, dtype, device)
    except PACKAGE_FAULTS as error:
        if is_ours(name) or is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{what}: {name} cannot merge it ({type(error).__name__}: {error}). "
            "Leave it out, or merge it into the model with another tool."
        ) from error
