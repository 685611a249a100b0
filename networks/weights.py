"""What is in a LoRA file, and whether it fits a network.

File layout ("kohya"): `<name>.lora_down.weight`, `<name>.lora_up.weight` and `<name>.alpha` per adapted module.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from library.errors import CheckpointError
from library.log import get_logger

if TYPE_CHECKING:
    from torch import Tensor

    from networks.adapters import Factors, LoraAdapter

logger = get_logger(__name__)

T = TypeVar("T")

_SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".alpha")
_MAX_KINDS = 3  # of differences that are told
_AS_IT_WAS = "Set --network_dim, --network_alpha and --network_args as they were for it, or use --dim_from_weights."

# first hit wins: part of a key, and what such a file is
_KINDS = (
    ("model.diffusion_model.", "a whole checkpoint"),
    (".hada_", "a LoHa (LyCORIS)"),
    (".lokr_", "a LoKr (LyCORIS)"),
    (".oft_blocks", "an OFT network"),
    (".oft_diag", "an OFT network"),
    (".lora_mid.", "a LoCon with a core (LyCORIS)"),
    (".dora_scale", "a DoRA"),
    ("lllite_", "a ControlNet-LLLite"),
    ("transformer.single_transformer_blocks.", "a LoRA for FLUX in the layout of diffusers"),
    ("transformer.transformer_blocks.", "a LoRA for SD3 in the layout of diffusers"),
    ("unet.", "a LoRA in the layout of diffusers for SD1, SD2 or SDXL"),
    ("text_encoder.", "a LoRA in the layout of diffusers"),
    ("text_encoder_2.", "a LoRA in the layout of diffusers"),
    ("joint_blocks", "a LoRA for SD3"),
    ("double_blocks", "a LoRA for FLUX"),
    ("input_blocks", "a LoRA for SDXL"),
    ("lora_te_text_model", "a LoRA for SD1 or SD2"),
    ("lora_unet_down_blocks", "a LoRA for SD1, SD2 or SDXL"),
    ("lora_te3_", "a LoRA for the text encoders of SD3"),
    ("lora_te2_", "a LoRA for the text encoders of SDXL or SD3"),
    ("lora_te1_", "a LoRA for a text encoder of SDXL or SD3"),
)


def describe_file(keys: Iterable[str]) -> str:
    """Say from its keys what a network file is, for instance "a LoRA for SDXL"."""
    keys = list(keys)
    return next((kind for part, kind in _KINDS if any(part in key for key in keys)), "no LoRA that is known here")


def how_to_use(keys: Iterable[str]) -> str:
    """What to do with a file that does not fit, as the end of an error message."""
    keys = list(keys)
    kind = describe_file(keys)
    if "OFT" in kind and any(key.startswith("oft_unet_") for key in keys):
        return "Use --network_module=networks.oft for it."
    if "the layout of diffusers" in kind and "FLUX" not in kind:
        return (
            "Convert it with `python networks/convert_lora.py FILE NEW_FILE --to kohya`; a LoRA that is to be "
            "continued is best saved with --save_model_as=safetensors."
        )
    if "LyCORIS" in kind or "OFT" in kind:
        return "Use --network_module=lycoris.kohya for it."
    if "SD3" in kind:
        return "Give a file that was trained for this model with the same --network_args, or use --dim_from_weights."
    return "Give a LoRA that was trained for this model."


def read_network(path: str | os.PathLike[str], what: str = "--network_weights") -> dict[str, Tensor]:
    """The tensors of a network file: safetensors, or a file of torch.save with nothing in it but tensors.

    Raises:
        CheckpointError: Missing, damaged, or another kind of file.
    """
    from library.pickled import read_any_header, read_any_tensors

    return read_any_tensors(read_any_header(Path(path), what))


def with_own_names(entries: Mapping[str, T], aliases: Mapping[str, str], what: str | None = None) -> dict[str, T]:
    """The content of a file, or its shapes, with the names that a network has for its modules; the log says if they
    are others.

    Args:
        entries: {key in the file: anything}
        aliases: {another name that a file may have for a module: the network's name}
        what: The file, for the log; None says nothing there.

    Raises:
        CheckpointError: The file has a module under both names.
    """
    own: dict[str, T] = {}
    renamed = set()
    for key, value in entries.items():
        name, dot, rest = key.partition(".")
        renamed.update({name} & aliases.keys())
        own_key = aliases.get(name, name) + dot + rest
        if own_key in own:
            raise CheckpointError(
                f"{what or 'the network file'} has {own_key} twice, under the names of two layouts. "
                "Give a file with one of them."
            )
        own[own_key] = value
    if renamed and what:
        logger.info("%s: %d modules are named in another layout and read so (%s).", what, len(renamed), min(renamed))
    return own


def factors_by_name(tensors: Mapping[str, Tensor], what: str) -> dict[str, Factors]:
    """Group the tensors of a file by adapter. A missing alpha is the rank.

    Args:
        tensors: Content of the file.
        what: The file's name, for messages.

    Raises:
        CheckpointError: A tensor that is no part of a LoRA, or a LoRA without one of its factors.
    """
    from networks.adapters import Factors

    found = {}
    for name in ranks_by_name({key: tuple(tensor.shape) for key, tensor in tensors.items()}, what):
        down, up, alpha = (tensors.get(name + suffix) for suffix in _SUFFIXES)
        assert down is not None and up is not None
        found[name] = Factors(down, up, float(down.shape[0] if alpha is None else alpha))
    return found


def ranks_by_name(shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, int]:
    """{name of an adapter: its rank} from the shapes in a file, without torch.

    Raises:
        CheckpointError: As for `factors_by_name`.
    """
    strange = sorted(key for key in shapes if not key.endswith(_SUFFIXES))
    names = sorted({key[: -len(suffix)] for key in shapes for suffix in _SUFFIXES if key.endswith(suffix)})
    halves = [name for name in names if any(len(shapes.get(name + suffix, ())) < 2 for suffix in _SUFFIXES[:2])]
    if strange or halves or not names:
        raise CheckpointError(
            f"{what} is {describe_file(shapes)}: {_first(strange or halves or ['no tensor'])} cannot be used here. "
            f"{how_to_use(shapes)}"
        )
    return {name: shapes[name + _SUFFIXES[0]][0] for name in names}


def check_fit(adapters: Sequence[LoraAdapter], found: Mapping[str, Factors], what: str, family: str) -> None:
    """Every adapter has its values in the file, in its own shapes and strength, and nothing is left over.

    Raises:
        CheckpointError: Otherwise, naming both families and the first differences.
    """
    expected = {adapter.name: adapter for adapter in adapters}
    refuse_other_modules(found, what, family, missing=expected.keys() - found.keys(), unknown=found.keys() - expected)
    lines = [line for name, own in expected.items() if (line := _difference(own, found[name]))]
    refuse_differences(lines, what, len(expected))


def refuse_other_modules(
    found: Iterable[str],
    what: str,
    family: str,
    *,
    missing: Collection[str],
    unknown: Collection[str],
    is_of_model: bool = False,
) -> None:
    """Raise CheckpointError if a file lacks modules of the network, or has modules that are not in it.

    Args:
        found: The modules in the file.
        what: The option and the file, for messages.
        family: Of the model, in words.
        missing: Modules of the network that the file lacks.
        unknown: Modules of the file that the network lacks.
        is_of_model: Whether all that is in the file is known to have a place in the model, so that the model is right.
    """
    if not missing and not unknown:
        return
    keys = [f"{name}.lora_down.weight" for name in found]
    parts = [f"{len(missing)} modules of the network are not in it ({_first(sorted(missing))})"] if missing else []
    parts += [f"{len(unknown)} of its modules are not in the network ({_first(sorted(unknown))})"] if unknown else []
    if is_of_model:
        raise CheckpointError(f"{what} does not fit: {'; '.join(parts)}. {_AS_IT_WAS}")
    raise CheckpointError(
        f"{what} is {describe_file(keys)}, the network is a LoRA for {family}: {'; '.join(parts)}. {how_to_use(keys)}"
    )


def refuse_differences(problems: Sequence[str], what: str, num_modules: int) -> None:
    """Raise CheckpointError if there is any problem; each begins with the name of a module. `num_modules` is how many
    there are in all."""
    if not problems:
        return
    alike: dict[str, list[str]] = {}
    for name, _, difference in (problem.partition(" ") for problem in problems):
        alike.setdefault(difference, []).append(name)
    if len(problems) == num_modules > 1 and len(alike) == 1:
        told = f"does not fit: each of the {num_modules} modules {problems[0].partition(' ')[2]}"
    else:
        kinds = [_with_others(names, difference) for difference, names in list(alike.items())[:_MAX_KINDS]]
        more = f"; there are {len(alike) - _MAX_KINDS} more differences" if len(alike) > _MAX_KINDS else ""
        told = f"does not fit in {len(problems)} of {num_modules} modules: {'; '.join(kinds)}{more}"
    raise CheckpointError(f"{what} {told}. {_AS_IT_WAS}")


def _with_others(names: Sequence[str], difference: str) -> str:
    others = len(names) - 1
    return f"{names[0]} {difference}" + (f", and so {'does' if others == 1 else 'do'} {others} more" if others else "")


def _difference(adapter: LoraAdapter, found: Factors) -> str | None:
    """What keeps a file's factors from being loaded into an adapter."""
    from networks.adapters import is_block_diagonal

    name, own, parts = adapter.name, adapter.factors(), adapter.num_parts
    inner, outer = (_size(found.down), found.up.shape[0]), (_size(own.down), own.up.shape[0])
    if inner != outer:
        sizes = f"{outer[1]} x {outer[0]} in the model and {inner[1]} x {inner[0]} in the file"
        return f"{name} is {sizes}, which is for another size of model"
    if found.rank not in {adapter.rank, adapter.rank * parts}:
        return f"{name} has rank {found.rank} in the file and {adapter.rank} here"
    if parts > 1 and found.rank != adapter.rank and not is_block_diagonal(found.up, parts):
        return f"{name} mixes query, key and value in the file, which split_qkv cannot hold"
    # some trainers write the alpha of one part beside the rank of all: the strength in training is the same
    alphas = {own.alpha, adapter.alpha} if found.rank != adapter.rank else {adapter.alpha}
    if not any(abs(found.alpha - alpha) <= 1e-2 * alpha for alpha in alphas):
        return f"{name} has alpha {found.alpha:g} in the file and {adapter.alpha:g} here"
    return None


def _size(down: Tensor) -> tuple[int, ...]:
    """What `down` [rank, in, ...] expects; a linear layer may be written as a convolution of one pixel."""
    size = tuple(down.shape[1:])
    return size[:1] if size[1:] == (1, 1) else size


def _first(names: Sequence[str], number: int = 3) -> str:
    return ", ".join(names[:number]) + (" ..." if len(names) > number else "")
