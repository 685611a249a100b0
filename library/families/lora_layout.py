"""The two layouts of LoRA files, kohya's and that of diffusers (PEFT), as far as all families have them in common.

kohya: `<prefix>_<name with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`; strength alpha / rank.
diffusers: `<component>.<name>.lora_A.weight`, `.lora_B.weight`; strength 1, since readers differ in where they look for
an alpha.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER_NOTE = "lora_adapter_metadata"
"""Key of the metadata under which diffusers notes PEFT's LoraConfig, and with it an alpha"""
_SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".alpha")
_CLIP_NAME = re.compile(r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_((?:q|k|v|out)_proj|fc[12])")
_CLIP_PATH = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn|mlp)\.((?:q|k|v|out)_proj|fc[12])")
_PROJECTION, _WITH_PROJECTION = "text_projection", "lora_te2_"  # CLIP-G has it, in models with two encoders and more
_PEFT_SUFFIX = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight$")


@dataclass(frozen=True)
class LoraPair:
    """down [rank, in], up [out, rank] (convolutions have two more axes), and the strength of up @ down."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def is_finite(self) -> bool:
        """Whether it has no NaN and no infinite numbers."""
        return math.isfinite(self.scale) and bool(self.down.isfinite().all() and self.up.isfinite().all())

    def to_kohya(self, name: str) -> dict[str, Tensor]:
        """The tensors of a kohya file."""
        import torch

        alpha = torch.tensor(self.scale * self.down.shape[0], dtype=torch.float32)
        return {f"{name}.lora_down.weight": self.down, f"{name}.lora_up.weight": self.up, f"{name}.alpha": alpha}

    def to_diffusers(self, path: str) -> dict[str, Tensor]:
        """The tensors of a file for diffusers; the strength goes into the factors."""
        folded = fold(self).pair
        return {f"{path}.lora_A.weight": folded.down, f"{path}.lora_B.weight": folded.up}


@dataclass(frozen=True)
class Folded:
    """A module whose strength is in its factors.

    Attributes:
        pair: Of scale 1.
        share: `down` has 2**share of the strength; 0 where `up` has all of it.
        lost: What was too small for the number format, relative to a factor (root of mean squares).
    """

    pair: LoraPair
    share: int
    lost: float


def fold(pair: LoraPair, dtype: torch.dtype | None = None) -> Folded:
    """Put the strength of a module into `up`, or into both factors where `up` becomes too small or too large for it.

    fp16 has no full precision below 6e-5. A power of two of the strength then goes to `down`, which rounds nothing.

    Args:
        pair: The module.
        dtype: Of both factors afterwards; None keeps that of each.
    """
    if pair.scale == 1 and dtype in (None, pair.up.dtype):
        return Folded(pair if dtype is None else replace(pair, down=pair.down.to(dtype)), 0, 0.0)
    first = _folded(pair, dtype, 0)
    if not first.lost:
        return first
    return min([first, *(_folded(pair, dtype, share) for share in _shares(pair))], key=lambda found: found.lost)


def _folded(pair: LoraPair, dtype: torch.dtype | None, share: int) -> Folded:
    down, up = _wide(pair.down) * 2.0**share, _wide(pair.up) * (pair.scale / 2.0**share)
    own = LoraPair(down.to(dtype or pair.down.dtype), up.to(dtype or pair.up.dtype), 1.0)
    return Folded(own, share, _lost(down, own.down) + _lost(up, own.up))


def _shares(pair: LoraPair) -> set[int]:
    """That after which both factors are of a size, and that which leaves `up` as it is."""
    down, up = (float(factor.abs().max()) for factor in (pair.down, pair.up))
    if not (0 < down < math.inf and 0 < up < math.inf and 0 < abs(pair.scale) < math.inf):
        return set()
    strength = math.log2(abs(pair.scale))
    return {round((math.log2(up) + strength - math.log2(down)) / 2), round(strength)}


def _lost(wide: Tensor, rounded: Tensor) -> float:
    """What a format is too narrow for, relative to the whole; rounding to its precision does not count."""
    import torch

    if wide.is_meta:
        return 0.0
    difference = rounded.to(wide.dtype) - wide
    is_beyond = (wide.abs() < torch.finfo(rounded.dtype).tiny) | ~rounded.isfinite()
    missing, whole = (float(part.norm()) for part in (difference[is_beyond], wide))
    return missing / whole if missing else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.element_size() > 4 else tensor.float()


def times(tensor: Tensor, factor: float) -> Tensor:
    """The product in the tensor's own dtype, rounded once."""
    return (_wide(tensor) * factor).to(tensor.dtype)


def kohya_modules(tensors: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """{name of a module: its factors} of a kohya file.

    Raises:
        CheckpointError: It has something else than LoRA, or a module without a factor.
    """
    names = list(dict.fromkeys(key[: -len(suffix)] for key in tensors for suffix in _SUFFIXES if key.endswith(suffix)))
    strange = [key for key in tensors if not key.endswith(_SUFFIXES)]
    if strange or not names:
        what = strange[0] if strange else "the file"
        raise CheckpointError(f"{what} is no LoRA of the kohya layout. Only LoRA will do here.")
    if lonely := [name for name in names if any(name + suffix not in tensors for suffix in _SUFFIXES[:2])]:
        raise CheckpointError(f"{lonely[0]} has one of its two factors only, or none. The file is incomplete.")
    modules = {}
    for name in names:
        down, up, alpha = (tensors.get(name + suffix) for suffix in _SUFFIXES)
        assert down is not None and up is not None
        modules[name] = LoraPair(down, up, 1.0 if alpha is None else strength_of(name, alpha, down))
    return modules


def strength_of(name: str, alpha: Tensor, down: Tensor) -> float:
    """alpha / rank of a module.

    Raises:
        CheckpointError: The alpha is not one number, or there are no ranks.
    """
    if alpha.numel() != 1:
        raise CheckpointError(f"{name}.alpha has {alpha.numel()} numbers instead of one. The file is damaged.")
    if not down.dim() or not len(down):
        raise CheckpointError(f"{name} has a factor without ranks. The file is damaged.")
    return float(alpha) / len(down)


def diffusers_modules(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, LoraPair]:
    """{component and name of a module: its factors} of a file for diffusers.

    Args:
        tensors: Content of the file.
        metadata: Of the file; an alpha that diffusers wrote there ("lora_adapter_metadata") is heeded, where the file
            has no tensor for it.

    Raises:
        CheckpointError: It has something else than LoRA, or a module without a factor.
    """
    halves: dict[str, dict[bool, Tensor]] = {}
    alphas = {key.removesuffix(".alpha"): value for key, value in tensors.items() if key.endswith(".alpha")}
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            continue
        match = _PEFT_SUFFIX.search(key)
        if match is None:
            raise CheckpointError(f"{key} is no LoRA of the layout of diffusers. Only LoRA will do here.")
        halves.setdefault(key[: match.start()], {})[match[1] in ("lora_B", "lora_up", "lora.up")] = tensor
    if lonely := [name for name, pair in halves.items() if len(pair) < 2]:
        raise CheckpointError(f"{lonely[0]} has one of its two factors only. The file is incomplete.")
    modules = {name: (pair[False], pair[True]) for name, pair in halves.items()}
    if stray := alphas.keys() - modules.keys():
        raise CheckpointError(f"{min(stray)}.alpha has no factors beside it. The file is incomplete.")
    notes = _AlphaNotes(metadata)
    return {
        name: LoraPair(
            down,
            up,
            strength_of(name, alphas[name], down) if name in alphas else notes.scale(name, down.shape[0]),
        )
        for name, (down, up) in modules.items()
    }


def fold_alpha(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kohya layout without alpha tensors: the factors are scaled instead. For readers that refuse an alpha.

    Raises:
        CheckpointError: A module without a factor.
    """
    folded: dict[str, Tensor] = {}
    for name, module in kohya_modules(tensors).items():
        scaled = fold(module).pair
        folded[f"{name}.lora_down.weight"] = scaled.down
        folded[f"{name}.lora_up.weight"] = scaled.up
    return folded


def clip_path(name: str, components: Mapping[str, str]) -> str | None:
    """The path in diffusers of a module of a CLIP text encoder; None for other names.

    Args:
        name: In a kohya file.
        components: {prefix there: component, both with what separates them from the name}
    """
    for prefix, component in components.items():
        if name == f"{prefix}{_PROJECTION}" and prefix == _WITH_PROJECTION:
            return f"{component}{_PROJECTION}"
        if name.startswith(prefix) and (match := _CLIP_NAME.fullmatch(name.removeprefix(prefix))):
            return f"{component}text_model.encoder.layers.{match[1]}.{match[2]}.{match[3]}"
    return None


def clip_name(path: str, components: Mapping[str, str]) -> str | None:
    """The inverse of `clip_path`."""
    for prefix, component in components.items():
        if path == f"{component}{_PROJECTION}" and prefix == _WITH_PROJECTION:
            return f"{prefix}{_PROJECTION}"
        if path.startswith(component) and (match := _CLIP_PATH.fullmatch(path.removeprefix(component))):
            return f"{prefix}text_model_encoder_layers_{match[1]}_{match[2]}_{match[3]}"
    return None


class _AlphaNotes:
    """What diffusers' save_lora_weights notes in the metadata: PEFT's LoraConfig, prefixed by component."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            notes = json.loads(metadata.get(ADAPTER_NOTE, "{}"))
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
