"""LoRA files of SD3: the kohya layout (ComfyUI, Forge) and that of diffusers (PEFT), in both directions.

kohya: `lora_unet_<published name with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`; strength alpha / rank.
diffusers: `transformer.<diffusers name>.lora_A.weight`, `.lora_B.weight`; strength 1, since readers differ in where
they look for an alpha.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError
from library.families.sd3.key_map import ModulePair, mmdit_modules

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".alpha")
_ENCODERS = {"lora_te1_": "text_encoder.", "lora_te2_": "text_encoder_2."}
_CLIP_NAME = re.compile(r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_((?:q|k|v|out)_proj|fc[12])")
_CLIP_PATH = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn|mlp)\.((?:q|k|v|out)_proj|fc[12])")
_PEFT_SUFFIX = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight$")
_MAX_BLOCKS = 512


@dataclass(frozen=True)
class _Pair:
    """down [rank, in], up [out, rank] (convolutions have two more axes), and the strength of up @ down."""

    down: Tensor
    up: Tensor
    scale: float


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
    """The kohya layout to that of diffusers; alpha is folded into `lora_B`.

    Query, key and value share copies of one `lora_A`. T5 modules are dropped: diffusers cannot load them.

    Raises:
        CheckpointError: A module that SD3 does not have, or one without a factor.
    """
    modules = _kohya_modules(tensors)
    depth = _num_blocks(r"joint_blocks_(\d+)_", modules)
    pairs = {pair.published.replace(".", "_"): pair for pair in mmdit_modules(depth)}
    converted: dict[str, Tensor] = {}
    for name, module in modules.items():
        if name.startswith("lora_te3_"):
            continue
        if name.startswith("lora_unet_") and (pair := pairs.get(name.removeprefix("lora_unet_"))):
            converted |= _mmdit_to_peft(pair, module)
        elif path := _clip_path(name):
            converted |= _peft(path, module.down, module.up * module.scale)
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
    modules = _peft_modules(tensors, metadata or {})
    transformer = {name.removeprefix("transformer."): modules.pop(name) for name in list(modules) if _is_mmdit(name)}
    converted: dict[str, Tensor] = {}
    for pair in mmdit_modules(_num_blocks(r"transformer_blocks\.(\d+)\.", transformer)):
        parts = [transformer.pop(name, None) for name in pair.diffusers]
        if any(parts):
            converted |= _kohya(f"lora_unet_{pair.published.replace('.', '_')}", _joined(parts, pair))
    for name in list(modules):
        if kohya_name := _clip_name(name):
            converted |= _kohya(kohya_name, modules.pop(name))
    if left := [*transformer, *modules]:
        raise CheckpointError(f"{left[0]} is no module of SD3. Convert LoRA files of SD3 and SD3.5 only.")
    return Conversion(converted)


def fold_alpha(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kohya layout without alpha tensors: `up` is scaled instead. For readers that refuse files with an alpha.

    Raises:
        CheckpointError: A module without a factor.
    """
    folded: dict[str, Tensor] = {}
    for name, module in _kohya_modules(tensors).items():
        folded[f"{name}.lora_down.weight"] = module.down
        folded[f"{name}.lora_up.weight"] = module.up * module.scale
    return folded


def _mmdit_to_peft(pair: ModulePair, module: _Pair) -> dict[str, Tensor]:
    up = module.up * module.scale
    if _is_swapped(pair, module):
        up = up.roll(up.shape[0] // 2, 0)
    converted: dict[str, Tensor] = {}
    for name, rows in zip(pair.diffusers, up.chunk(len(pair.diffusers)), strict=True):
        converted |= _peft(f"transformer.{name}", module.down.clone(), rows.contiguous())
    return converted


def _is_swapped(pair: ModulePair, module: _Pair) -> bool:
    """Whether shift and scale change places: the final layer, and the context of the last block.

    A file need not have the last block, so that block is known by its two modulation vectors (others have six).
    """
    if pair.published.endswith("context_block.adaLN_modulation.1"):
        return module.up.shape[0] == 2 * module.down.shape[1]
    return pair.published == "final_layer.adaLN_modulation.1"


def _joined(parts: Sequence[_Pair | None], pair: ModulePair) -> _Pair:
    """One module of the kohya layout from its parts in diffusers; a part that is not there adds nothing."""
    import torch

    given = [part for part in parts if part is not None]
    first = given[0]
    if len(parts) == 1:
        up = first.up.roll(first.up.shape[0] // 2, 0) if _is_swapped(pair, first) else first.up
        return _Pair(first.down, up, first.scale)
    size, rank = first.up.shape
    if len({part.scale for part in given}) > 1:
        return _joined([part and _Pair(part.down, part.up * part.scale, 1.0) for part in parts], pair)
    if all(part.down.shape == first.down.shape and torch.equal(part.down, first.down) for part in given):
        shared = [first.up.new_zeros(size, rank) if part is None else part.up for part in parts]
        return _Pair(first.down, torch.cat(shared), first.scale)
    own = [first.up.new_zeros(size, 0) if part is None else part.up for part in parts]
    return _Pair(torch.cat([part.down for part in given]), torch.block_diag(*own), first.scale)


def _num_blocks(pattern: str, names: Iterable[str]) -> int:
    """One more than the greatest block index; bounded, as a damaged name could hold any number."""
    return min(_MAX_BLOCKS, 1 + max((int(index) for index in re.findall(pattern, " ".join(names))), default=-1))


def _peft(path: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}


def _kohya(name: str, module: _Pair) -> dict[str, Tensor]:
    import torch

    alpha = torch.tensor(module.scale * module.down.shape[0], dtype=torch.float32)
    return {f"{name}.lora_down.weight": module.down, f"{name}.lora_up.weight": module.up, f"{name}.alpha": alpha}


def _kohya_modules(tensors: Mapping[str, Tensor]) -> dict[str, _Pair]:
    names = list(dict.fromkeys(key[: -len(suffix)] for key in tensors for suffix in _SUFFIXES if key.endswith(suffix)))
    strange = [key for key in tensors if not key.endswith(_SUFFIXES)]
    strange += [name for name in names if any(name + suffix not in tensors for suffix in _SUFFIXES[:2])]
    if strange or not names:
        what = strange[0] if strange else "the file"
        raise CheckpointError(f"{what} is no LoRA of the kohya layout. Only LoRA can be converted.")
    modules = {}
    for name in names:
        down, up, alpha = (tensors.get(name + suffix) for suffix in _SUFFIXES)
        assert down is not None and up is not None
        modules[name] = _Pair(down, up, 1.0 if alpha is None else float(alpha) / down.shape[0])
    return modules


def _peft_modules(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, _Pair]:
    halves: dict[str, dict[bool, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _PEFT_SUFFIX.search(key)
        if match is None:
            raise CheckpointError(f"{key} is no LoRA of the layout of diffusers. Only LoRA can be converted.")
        halves.setdefault(key[: match.start()], {})[match[1] in ("lora_B", "lora_up", "lora.up")] = tensor
    if lonely := [name for name, pair in halves.items() if len(pair) < 2]:
        raise CheckpointError(f"{lonely[0]} has one of its two factors only. The file is incomplete.")
    modules = {name: (pair[False], pair[True]) for name, pair in halves.items()}
    notes = _AlphaNotes(metadata)
    return {name: _Pair(down, up, notes.scale(name, down.shape[0])) for name, (down, up) in modules.items()}


class _AlphaNotes:
    """What diffusers' save_lora_weights notes in the metadata: PEFT's LoraConfig, prefixed by component."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            notes = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            notes = {}
        self.notes: dict[str, Any] = notes if isinstance(notes, dict) else {}

    def scale(self, name: str, rank: int) -> float:
        """Strength of a module, 1 where nothing is noted."""
        component, _, path = name.partition(".")
        alpha = self.notes.get(f"{component}.lora_alpha")
        if not isinstance(alpha, (int, float)):
            return 1.0
        pattern = self.notes.get(f"{component}.alpha_pattern") or {}
        alpha = next((value for key, value in pattern.items() if path == key or path.endswith(f".{key}")), alpha)
        return float(alpha / (rank**0.5 if self.notes.get(f"{component}.use_rslora") else rank))


def _is_mmdit(name: str) -> bool:
    return name.startswith("transformer.")


def _clip_path(name: str) -> str | None:
    for prefix, component in _ENCODERS.items():
        if name.startswith(prefix) and (match := _CLIP_NAME.fullmatch(name.removeprefix(prefix))):
            return f"{component}text_model.encoder.layers.{match[1]}.{match[2]}.{match[3]}"
    return None


def _clip_name(path: str) -> str | None:
    for prefix, component in _ENCODERS.items():
        if path.startswith(component) and (match := _CLIP_PATH.fullmatch(path.removeprefix(component))):
            return f"{prefix}text_model_encoder_layers_{match[1]}_{match[2]}_{match[3]}"
    return None
