"""Writing a LoRA in another layout, with what its metadata says of it.

kohya: names with `_`, an alpha beside the factors (ComfyUI, Forge, A1111); for U-Nets with published names of layers or
those of diffusers. diffusers: PEFT, alpha in the factors. native: `diffusion_model.` and the published name with
points, alpha in the factors (ComfyUI, Forge); text encoders as in kohya files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from library.checkpoint.metadata import tensor_hashes
from library.errors import CheckpointError
from library.families.lora_layout import ADAPTER_NOTE, LoraPair, fold, fold_alpha
from library.loras import alpha_notes
from library.loras.lora_family import FAMILY_TITLES
from library.loras.lora_file import LoraFile, lora_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KOHYA, DIFFUSERS, NATIVE = "kohya", "diffusers", "native"
PUBLISHED = "published"
USUAL_NAMING = {"sd": DIFFUSERS, "sdxl": PUBLISHED, "sd3": PUBLISHED}
"""{family: whose names of layers kohya files usually have}"""
_T5 = "lora_te3_"
_UNET = "lora_unet_"
_STALE = ("sshs_", ADAPTER_NOTE, "modelspec.hash_sha256", alpha_notes.KEY)


@dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
        layout: "kohya", "diffusers" or "native".
        naming: Names of layers in a kohya file of a U-Net: "published" or "diffusers"; None is the usual one.
        folds_alpha: No alpha tensors in a kohya file.
        dtype: Of the factors; None keeps that of each.
    """

    layout: str
    naming: str | None = None
    folds_alpha: bool = False
    dtype: torch.dtype | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether the file has alpha tensors."""
        return self.layout == KOHYA and not self.folds_alpha


@dataclass(frozen=True)
class Converted:
    """A file to write.

    Attributes:
        tensors: Its content.
        metadata: Of its header.
        modules: What went into it, as kohya files name it.
        dropped: Names of modules that the layout has no place for.
        rounded: {module: what is lost of it, relative}, where the number format of the source is too narrow for the
            factors with their strength.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    modules: Mapping[str, LoraPair]
    dropped: tuple[str, ...] = ()
    rounded: Mapping[str, float] = field(default_factory=dict)


def converted(lora: LoraFile, form: Form) -> Converted:
    """The content of a file in another form.

    Raises:
        CheckpointError: The form has no place for what is in it.
    """
    modules = alpha_notes.restored(lora.modules, lora.metadata)
    dropped = tuple(name for name in modules if form.layout == DIFFUSERS and name.startswith(_T5))
    kept = {name: pair for name, pair in modules.items() if name not in dropped}
    if not kept:
        raise CheckpointError(f"{lora.path} has modules of T5 only, which diffusers cannot load. Use --to kohya.")
    folded = {} if form.has_alpha else {name: fold(pair, form.dtype) for name, pair in kept.items()}
    tensors = _tensors({name: found.pair for name, found in folded.items()} or kept, lora.family, form)
    metadata = _metadata(lora)
    if folded:
        metadata[alpha_notes.KEY] = alpha_notes.noted(kept, {name: found.share for name, found in folded.items()})
    is_told = form.dtype is None  # who gives a format knows that it rounds
    rounded = {name: found.lost for name, found in folded.items() if is_told and found.lost}
    return Converted(tensors, _with_hashes(metadata, tensors), kept, dropped, rounded)


def _tensors(modules: Mapping[str, LoraPair], family: str, form: Form) -> dict[str, Tensor]:
    if form.layout == DIFFUSERS:
        return lora_tensors(modules, family, layout=DIFFUSERS, dtype=form.dtype)
    if form.layout == KOHYA and form.naming not in (None, USUAL_NAMING[family]):
        modules = _with_other_names(modules, family)
    tensors = lora_tensors(modules, family)
    if not form.has_alpha:
        tensors = fold_alpha(tensors)
    if form.layout == NATIVE:
        tensors = _with_native_names(tensors, modules, family)
    return {
        key: (tensor.to(form.dtype) if form.dtype is not None and tensor.dim() else tensor).contiguous()
        for key, tensor in tensors.items()
    }


def _with_other_names(modules: Mapping[str, LoraPair], family: str) -> dict[str, LoraPair]:
    from library.families.unet.lora_format import other_names

    if family == "sd3":
        raise CheckpointError(f"a LoRA for {FAMILY_TITLES[family]} has published names only. Leave --naming out.")
    names = other_names(modules, family)
    return {names[name]: pair for name, pair in modules.items()}


def _with_native_names(tensors: Mapping[str, Tensor], names: Iterable[str], family: str) -> dict[str, Tensor]:
    paths = _published_paths([name for name in names if name.startswith(_UNET)], family)
    native = {}
    for key, tensor in tensors.items():
        name, _, end = key.partition(".")
        if name in paths:
            end = end.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
            native[f"diffusion_model.{paths[name]}.{end}"] = tensor
        else:
            native[key] = tensor
    return native


def _published_paths(names: list[str], family: str) -> dict[str, str]:
    """{name of a module: its published name, with points}"""
    if family != "sd3":
        from library.families.unet.lora_format import published_layers

        return published_layers(names, family)
    from library.families.sd3.lora_format import published_layers as mmdit_layers

    return mmdit_layers(names)


def _metadata(lora: LoraFile) -> dict[str, str]:
    """That of the source, but for what is untrue of the new content."""
    return {key: value for key, value in lora.metadata.items() if not key.startswith(_STALE)}


def _with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    model_hash, legacy_hash = tensor_hashes(tensors, dict(metadata))
    return {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
