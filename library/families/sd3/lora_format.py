"""LoRA files of SD3: the kohya layout (ComfyUI, Forge) and that of diffusers (PEFT), in both directions.

kohya: `lora_unet_<published name with _>...`; diffusers: `transformer.<its own name>...`, where query, key and value
are apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.errors import CheckpointError
from library.families.lora_layout import LoraPair, clip_name, clip_path, diffusers_modules, fold, kohya_modules, times
from library.families.sd3.key_map import ModulePair, mmdit_modules

if TYPE_CHECKING:
    from torch import Tensor

_ENCODERS = {"lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."}
_MAX_BLOCKS = 512


@dataclass(frozen=True)
class Conversion:
    """A converted file.

    Attributes:
        tensors: Its content.
        dropped: Modules of the source that the new layout has no place for.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...] = ()


def is_kohya(names: Sequence[str] | Mapping[str, object]) -> bool:
    """Whether tensor names are of the kohya layout."""
    return any(name.startswith(("lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_")) for name in names)


def kohya_to_diffusers(tensors: Mapping[str, Tensor]) -> Conversion:
    """The kohya layout to that of diffusers; alpha is folded into the factors.

    Query, key and value share copies of one `lora_A`; where each has ranks of its own it gets these alone. T5 modules
    are dropped: diffusers cannot load them.

    Raises:
        CheckpointError: A module that SD3 does not have, or one without a factor.
    """
    modules = kohya_modules(tensors)
    depth = _num_blocks(r"joint_blocks_(\d+)_", modules)
    pairs = {pair.published.replace(".", "_"): pair for pair in mmdit_modules(depth)}
    converted: dict[str, Tensor] = {}
    for name, module in modules.items():
        if name.startswith("lora_te3_"):
            continue
        if name.startswith("lora_unet_") and (pair := pairs.get(name.removeprefix("lora_unet_"))):
            converted |= _mmdit_to_peft(pair, module)
        elif path := clip_path(name, _ENCODERS):
            converted |= module.to_diffusers(path)
        else:
            raise CheckpointError(f"{name} is no module of SD3. Convert LoRA files of SD3 and SD3.5 only.")
    return Conversion(converted, tuple(name for name in modules if name.startswith("lora_te3_")))


def diffusers_to_kohya(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Conversion:
    """The layout of diffusers to the kohya layout.

    Query, key and value with one common `lora_A` become one module of that rank; otherwise their factors are stacked
    and block-diagonal, with an alpha that keeps the strength.

    Args:
        tensors: Content of the file.
        metadata: Of the file; an alpha that diffusers wrote there ("lora_adapter_metadata") is heeded.

    Raises:
        CheckpointError: A module that SD3 does not have, or one without a factor.
    """
    modules = diffusers_modules(tensors, metadata or {})
    transformer = {name.removeprefix("transformer."): modules.pop(name) for name in list(modules) if _is_mmdit(name)}
    converted: dict[str, Tensor] = {}
    for pair in mmdit_modules(_num_blocks(r"transformer_blocks\.(\d+)\.", transformer)):
        parts = [transformer.pop(name, None) for name in pair.diffusers]
        if any(parts):
            converted |= _joined(parts, pair).to_kohya(f"lora_unet_{pair.published.replace('.', '_')}")
    for name in list(modules):
        if kohya_name := clip_name(name, _ENCODERS):
            converted |= modules.pop(name).to_kohya(kohya_name)
    if left := [*transformer, *modules]:
        raise CheckpointError(f"{left[0]} is no module of SD3. Convert LoRA files of SD3 and SD3.5 only.")
    return Conversion(converted)


def published_layers(names: Sequence[str]) -> dict[str, str]:
    """{name of a module of the MMDiT in a kohya file: its published name, with points}

    Raises:
        CheckpointError: A module that SD3 does not have.
    """
    pairs = mmdit_modules(_num_blocks(r"joint_blocks_(\d+)_", names))
    known = {f"lora_unet_{pair.published.replace('.', '_')}": pair.published for pair in pairs}
    if missing := [name for name in names if name not in known]:
        raise CheckpointError(f"{missing[0]} is no module of SD3. Convert LoRA files of SD3 and SD3.5 only.")
    return {name: known[name] for name in names}


def _mmdit_to_peft(pair: ModulePair, module: LoraPair) -> dict[str, Tensor]:
    from networks.adapters import is_block_diagonal

    module = fold(module).pair  # before it is cut: the parts share `lora_A`
    up, number = module.up, len(pair.diffusers)
    if _is_swapped(pair, module):
        up = up.roll(up.shape[0] // 2, 0)
    if up.shape[0] % number:
        raise CheckpointError(f"{pair.published}: {up.shape[0]} rows are no query, key and value. The file is damaged.")
    downs, ups = [module.down.clone() for _ in range(number)], up.chunk(number)
    if number > 1 and is_block_diagonal(up, number):
        downs = list(module.down.chunk(number))
        ups = tuple(rows.chunk(number, 1)[index] for index, rows in enumerate(ups))
    converted: dict[str, Tensor] = {}
    for name, down, rows in zip(pair.diffusers, downs, ups, strict=True):
        part = LoraPair(down.contiguous(), rows.contiguous(), 1.0)
        converted |= part.to_diffusers(f"transformer.{name}")
    return converted


def _is_swapped(pair: ModulePair, module: LoraPair) -> bool:
    """Whether shift and scale change places: the final layer, and the context of the last block.

    A file need not have the last block, so that block is known by its two modulation vectors (others have six).
    """
    if pair.published.endswith("context_block.adaLN_modulation.1"):
        return module.up.shape[0] == 2 * module.down.shape[1]
    return pair.published == "final_layer.adaLN_modulation.1"


def _joined(parts: Sequence[LoraPair | None], pair: ModulePair) -> LoraPair:
    """One module of the kohya layout from its parts in diffusers; a part that is not there adds nothing."""
    import torch

    given = [part for part in parts if part is not None]
    first = given[0]
    if len(parts) == 1:
        up = first.up.roll(first.up.shape[0] // 2, 0) if _is_swapped(pair, first) else first.up
        return LoraPair(first.down, up, first.scale)
    size, rank = first.up.shape
    if len({part.scale for part in given}) > 1:
        return _joined([part and LoraPair(part.down, times(part.up, part.scale), 1.0) for part in parts], pair)
    if all(part.down.shape == first.down.shape and torch.equal(part.down, first.down) for part in given):
        shared = [first.up.new_zeros(size, rank) if part is None else part.up for part in parts]
        return LoraPair(first.down, torch.cat(shared), first.scale)
    own = [first.up.new_zeros(size, 0) if part is None else part.up for part in parts]
    return LoraPair(torch.cat([part.down for part in given]), torch.block_diag(*own), first.scale)


def _num_blocks(pattern: str, names: Iterable[str]) -> int:
    """One more than the greatest block index; bounded, as a damaged name could hold any number."""
    return min(_MAX_BLOCKS, 1 + max((int(index) for index in re.findall(pattern, " ".join(names))), default=-1))


def _is_mmdit(name: str) -> bool:
    return name.startswith("transformer.")
