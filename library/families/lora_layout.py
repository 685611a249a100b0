"""The two layouts of LoRA files, kohya's and that of diffusers (PEFT), as far as all families have them in common.

kohya: `<prefix>_<name with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`; strength alpha / rank.
diffusers: `<component>.<name>.lora_A.weight`, `.lora_B.weight`; strength 1, since readers differ in where they look for
an alpha.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from library.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".alpha")
_CLIP_NAME = re.compile(r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_((?:q|k|v|out)_proj|fc[12])")
_CLIP_PATH = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn|mlp)\.((?:q|k|v|out)_proj|fc[12])")
_PEFT_SUFFIX = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight$")


@dataclass(frozen=True)
class LoraPair:
    """down [rank, in], up [out, rank] (convolutions have two more axes), and the strength of up @ down."""

    down: Tensor
    up: Tensor
    scale: float

    def to_kohya(self, name: str) -> dict[str, Tensor]:
        """The tensors of a kohya file."""
        import torch

        alpha = torch.tensor(self.scale * self.down.shape[0], dtype=torch.float32)
        return {f"{name}.lora_down.weight": self.down, f"{name}.lora_up.weight": self.up, f"{name}.alpha": alpha}

    def to_diffusers(self, path: str) -> dict[str, Tensor]:
        """The tensors of a file for diffusers; the strength goes into `lora_B`."""
        return {f"{path}.lora_A.weight": self.down, f"{path}.lora_B.weight": times(self.up, self.scale)}


def times(tensor: Tensor, factor: float) -> Tensor:
    """The product in the tensor's own dtype, rounded once."""
    wide = tensor if tensor.element_size() > 4 else tensor.float()
    return (wide * factor).to(tensor.dtype)


def kohya_modules(tensors: Mapping[str, Tensor]) -> dict[str, LoraPair]:
    """{name of a module: its factors} of a kohya file.

    Raises:
        CheckpointError: It has something else than LoRA, or a module without a factor.
    """
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
        modules[name] = LoraPair(down, up, 1.0 if alpha is None else float(alpha) / down.shape[0])
    return modules


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
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            continue
        match = _PEFT_SUFFIX.search(key)
        if match is None:
            raise CheckpointError(f"{key} is no LoRA of the layout of diffusers. Only LoRA can be converted.")
        halves.setdefault(key[: match.start()], {})[match[1] in ("lora_B", "lora_up", "lora.up")] = tensor
    if lonely := [name for name, pair in halves.items() if len(pair) < 2]:
        raise CheckpointError(f"{lonely[0]} has one of its two factors only. The file is incomplete.")
    modules = {name: (pair[False], pair[True]) for name, pair in halves.items()}
    if stray := alphas.keys() - modules.keys():
        raise CheckpointError(f"{min(stray)}.alpha has no factors beside it. The file is incomplete.")
    notes = _AlphaNotes(metadata)
    return {
        name: LoraPair(down, up, alphas[name] / down.shape[0] if name in alphas else notes.scale(name, down.shape[0]))
        for name, (down, up) in modules.items()
    }


def fold_alpha(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kohya layout without alpha tensors: `up` is scaled instead. For readers that refuse files with an alpha.

    Raises:
        CheckpointError: A module without a factor.
    """
    folded: dict[str, Tensor] = {}
    for name, module in kohya_modules(tensors).items():
        folded[f"{name}.lora_down.weight"] = module.down
        folded[f"{name}.lora_up.weight"] = times(module.up, module.scale)
    return folded


def clip_path(name: str, components: Mapping[str, str]) -> str | None:
    """The path in diffusers of a module of a CLIP text encoder; None for other names.

    Args:
        name: In a kohya file.
        components: {prefix there: component, both with what separates them from the name}
    """
    for prefix, component in components.items():
        if name.startswith(prefix) and (match := _CLIP_NAME.fullmatch(name.removeprefix(prefix))):
            return f"{component}text_model.encoder.layers.{match[1]}.{match[2]}.{match[3]}"
    return None


def clip_name(path: str, components: Mapping[str, str]) -> str | None:
    """The inverse of `clip_path`."""
    for prefix, component in components.items():
        if path.startswith(component) and (match := _CLIP_PATH.fullmatch(path.removeprefix(component))):
            return f"{prefix}text_model_encoder_layers_{match[1]}_{match[2]}_{match[3]}"
    return None


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
