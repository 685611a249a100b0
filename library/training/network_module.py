"""The module of `--network_module` and the files it is to read: what can be checked before weights are read.

Besides `create_network` a module may have `check_network_args` and `check_network_file`; ours do.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError, EnvironmentFault, OptionError
from library.log import get_logger
from library.options.groups import NetworkOptions
from library.pickled import PickledHeader, read_any_header, read_any_tensors
from networks.base_networks import module_of_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from library.tensorfile import TensorHeader
    from networks.targets import ModelOutline

logger = get_logger(__name__)

# What users name here, a module that fits one family among them.
KNOWN = ("networks.lora", "networks.lora_sd3", "networks.lora_fa", "networks.dylora", "networks.oft", "lycoris.kohya")
_FORMERLY = {  # modules of older guides: what does the same
    "locon.locon_kohya": "Use --network_module=networks.lora, whose --network_args conv_dim and conv_alpha do the same."
}


def import_network_module(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        OptionError: It cannot be imported, or makes no networks.
        EnvironmentFault: It belongs to a known package that is not installed.
    """
    try:
        module = importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: names such as ".lora"
        if isinstance(error, ModuleNotFoundError) and name in KNOWN:
            raise EnvironmentFault(
                f"--network_module {name} needs a package that is not installed ({error}). "
                "Run `python3 quickstart.py setup --extras lycoris`, or `pip install lycoris-lora`."
            ) from error
        near = get_close_matches(name, KNOWN, n=1, cutoff=0.8)
        otherwise = f"Did you mean {near[0]}?" if near else "Use networks.lora, or install the package it comes from."
        advice = _FORMERLY.get(name, otherwise)
        raise OptionError(f"--network_module {name}: cannot be imported ({error}). {advice}") from error
    if not hasattr(module, "create_network"):
        raise OptionError(f"--network_module {name}: this module makes no networks. Use networks.lora.")
    return module


def check_network(
    module: ModuleType,
    options: NetworkOptions,
    arguments: Mapping[str, str],
    *,
    model: ModelOutline,
    depth: int,
    allow_pickle: bool = False,
) -> None:
    """Refuse arguments, and files of `--network_weights` and `--base_weights`, that do not fit the model.

    Args:
        module: From `import_network_module`.
        options: As given.
        arguments: From --network_args.
        model: Which layers the denoiser has.
        depth: Number of its blocks.
        allow_pickle: Also read .ckpt files that hold more than tensors.

    Raises:
        OptionError: A wrong argument, or nothing to train.
        CheckpointError: A file cannot be read, is for another model or damaged, or does not fit the network.
    """
    shared = {
        "depth": depth,
        "model": model,
        "network_dim": options.network_dim,
        "trains_text_encoders": not options.network_train_unet_only,
        "trains_denoiser": not options.network_train_text_encoder_only,
    }
    check = getattr(module, "check_network_args", None)
    args = check(arguments, **shared) if check is not None else None
    if check is None:
        _warn_of_unknown(module, arguments)
    for path in options.base_weights or ():
        header = read_any_header(path, "--base_weights", allow_pickle=allow_pickle)
        _check_file(module_of_file(header.tensors, module), header, f"--base_weights {path}", shared, args=None)
    if options.network_weights:
        header = read_any_header(options.network_weights, "--network_weights", allow_pickle=allow_pickle)
        fits = None if options.dim_from_weights else args
        _check_file(module, header, f"--network_weights {options.network_weights}", shared, args=fits)


def as_modules_take(encoders: Sequence[nn.Module], encoder_names: Sequence[str]) -> nn.Module | list[nn.Module]:
    """Text encoders as network modules want them: of a family that has one, the encoder itself, for modules number
    those of a list in the names that they write.

    Args:
        encoders: That the network is for.
        encoder_names: All that the family has.
    """
    return encoders[0] if encoders and len(encoder_names) == 1 else list(encoders)


def pickled_network(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a network in a file of torch.save, which modules of other packages would unpickle; None of a
    safetensors file. `check_network` has seen the file, and said what else it holds."""
    header = read_any_header(path, "network file", allow_pickle=True, is_told=True)
    return read_any_tensors(header) if isinstance(header, PickledHeader) else None


def changed_encoders(path: Path, encoder_names: Sequence[str]) -> tuple[str, ...]:
    """The text encoders that a network file has modules for. Files number them: "lora_te2_" begins names of the second,
    "lora_te_" those of an only one."""
    names = read_any_header(path, "--base_weights", allow_pickle=True, is_told=True).tensors
    starts = {name: (f"lora_te{number}_", "lora_te_") for number, name in enumerate(encoder_names, start=1)}
    return tuple(name for name, own in starts.items() if any(key.startswith(own) for key in names))


def _warn_of_unknown(module: ModuleType, arguments: Mapping[str, str]) -> None:
    """Name the arguments that a module of another package does not read, where its source tells what it reads."""
    known = _keys_read(module.create_network)
    for key in sorted(arguments.keys() - known) if known else ():
        near = get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        logger.warning("--network_args %s: %s does not read it, so it has no effect.%s", key, module.__name__, hint)


def _keys_read(function: Any) -> set[str]:
    """Names that a function takes, looks up in its `kwargs` or has in a table; none if that cannot be told."""
    try:
        source = inspect.getsource(function)
        parameters = inspect.signature(function).parameters
    except (OSError, TypeError, ValueError):
        return set()
    looked_up = re.findall(r"""kwargs(?:\.get\(|\.pop\(|\[)\s*["'](\w+)["']""", source)
    is_handed_on = re.search(r"[(,=]\s*(\*\*)?kwargs\s*[,)\n]", source.partition(":\n")[2])
    if is_handed_on or not looked_up:
        return set()
    tables = (function.__globals__.get(name) for name in function.__code__.co_names)
    renamed = {key for table in tables if isinstance(table, dict) for key in table if isinstance(key, str)}
    return {*looked_up, *renamed, *parameters} - {"kwargs"}


def _check_file(
    module: ModuleType, header: TensorHeader, what: str, shared: Mapping[str, Any], *, args: object
) -> None:
    check = getattr(module, "check_network_file", None)
    if check is not None:
        check(header.shapes(), what, args=args, **shared)
    _refuse_non_finite(header, what)


def _refuse_non_finite(header: TensorHeader, what: str) -> None:
    import torch

    for name, tensor in read_any_tensors(header).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{what} is damaged: {name} has numbers that are not finite. Give an earlier file.")
