"""The module of `--network_module` and the files it is to read: what can be checked before weights are read.

Besides `create_network` a module may have `check_network_args` and `check_network_file`; ours do.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from library.errors import OptionError
from library.options.groups import NetworkOptions

KNOWN = ("networks.lora", "networks.lora_sd3", "lycoris.kohya")


def import_network_module(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        OptionError: It cannot be imported, or makes no networks.
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: names such as ".lora"
        near = get_close_matches(name, KNOWN, n=1, cutoff=0.8)
        advice = f"Did you mean {near[0]}?" if near else "Use networks.lora, or install the package it comes from."
        raise OptionError(f"--network_module {name}: cannot be imported ({error}). {advice}") from error
    if not hasattr(module, "create_network"):
        raise OptionError(f"--network_module {name}: this module makes no networks. Use networks.lora.")
    return module


def check_network(module: ModuleType, options: NetworkOptions, arguments: Mapping[str, str], depth: int) -> None:
    """Refuse arguments, and files of `--network_weights` and `--base_weights`, that do not fit the model.

    Args:
        module: From `import_network_module`.
        options: As given.
        arguments: From --network_args.
        depth: Number of blocks of the denoiser.

    Raises:
        OptionError: A wrong argument, or nothing to train.
        CheckpointError: A file cannot be read, is for another model, or does not fit the network.
    """
    shared = {
        "depth": depth,
        "network_dim": options.network_dim,
        "trains_text_encoders": not options.network_train_unet_only,
        "trains_denoiser": not options.network_train_text_encoder_only,
    }
    check = getattr(module, "check_network_args", None)
    args = check(arguments, **shared) if check is not None else None
    for path in options.base_weights or ():
        _check_file(module, "--base_weights", path, shared, args=None)
    if options.network_weights:
        fits = None if options.dim_from_weights else args
        _check_file(module, "--network_weights", options.network_weights, shared, args=fits)


def changes_encoders(path: Path) -> bool:
    """Whether a network file has modules for text encoders."""
    from library.tensorfile import read_header

    return any(name.startswith("lora_te") for name in read_header(path, "--base_weights").tensors)


def _check_file(module: ModuleType, flag: str, path: Path, shared: Mapping[str, Any], *, args: object) -> None:
    from library.tensorfile import read_header

    shapes = read_header(path, flag).shapes()
    check = getattr(module, "check_network_file", None)
    if check is not None:
        check(shapes, f"{flag} {path}", args=args, **shared)
