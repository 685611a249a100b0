"""A LoRA file of any layout and family, read as modules under the names of kohya files.

What is done with finished LoRAs (merged, resized, converted, extracted, checked) starts here and ends here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import CheckpointError, OptionError
from library.families.lora_layout import LoraPair, kohya_modules
from library.loras.lora_family import DIFFUSERS, KOHYA, family_of, layout_of, title_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds.

    Attributes:
        path: The file.
        family: "sd" (SD1 and SD2), "sdxl" or "sd3".
        layout: "kohya" or "diffusers", that of the file.
        modules: {name as kohya files of this family have it: factors}
        metadata: Of its header.
    """

    path: Path
    family: str
    layout: str
    modules: Mapping[str, LoraPair]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_lora(path: Path, option: str) -> LoraFile:
    """Read a file of any layout.

    Args:
        path: A safetensors file, or one of torch.save with nothing in it but tensors.
        option: Names the file in messages, for instance "--models".

    Raises:
        CheckpointError: Missing, damaged, of no known family, or something else than LoRA.
    """
    from library.pickled import read_any_header, read_any_tensors

    header = read_any_header(path, option)
    family = family_of(header.shapes())
    if family is None:
        raise CheckpointError(f"{option}: {path} is {title_of(header.shapes())}. Give a LoRA of SD1, SD2, SDXL or SD3.")
    layout = layout_of(header.shapes())
    try:
        modules = to_kohya_modules(read_any_tensors(header), family, layout, header.metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{option} {path}: {error}") from error
    return LoraFile(path, family, layout, modules, dict(header.metadata))


def to_kohya_modules(
    tensors: Mapping[str, Tensor], family: str, layout: str, metadata: Mapping[str, str]
) -> dict[str, LoraPair]:
    """{name as kohya files of the family have it: factors} of the content of a file.

    Raises:
        CheckpointError: Something else than LoRA, or a module that the family does not have.
    """
    if layout == DIFFUSERS and family == "sd3":
        from library.families.sd3 import lora_format as sd3_format

        return kohya_modules(sd3_format.diffusers_to_kohya(tensors, metadata).tensors)
    if layout == DIFFUSERS:
        from library.families.unet import lora_format as unet_format

        return kohya_modules(unet_format.diffusers_to_kohya(tensors, family, metadata))
    return kohya_modules(tensors)


def lora_tensors(
    modules: Mapping[str, LoraPair], family: str, *, layout: str = KOHYA, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors of a file. An alpha is always float32.

    Args:
        modules: {name as kohya files have it: factors}
        family: See `LoraFile`.
        layout: "kohya" or "diffusers".
        dtype: Of the factors; None keeps each as it is.

    Raises:
        CheckpointError: A module that the other layout has no place for.
    """
    tensors = {key: tensor for name, module in modules.items() for key, tensor in module.to_kohya(name).items()}
    if layout == DIFFUSERS and family == "sd3":
        from library.families.sd3 import lora_format as sd3_format

        tensors = sd3_format.kohya_to_diffusers(tensors).tensors
    elif layout == DIFFUSERS:
        from library.families.unet import lora_format as unet_format

        tensors = unet_format.kohya_to_diffusers(tensors, family)
    return {
        key: (tensor.to(dtype) if dtype is not None and tensor.dim() else tensor).contiguous()
        for key, tensor in tensors.items()
    }


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Write a file atomically: safetensors, or a pickle where the name ends in .ckpt, .pt or .pth.

    Raises:
        OutputError: It cannot be written.
    """
    from library.tensorfile import save_with_torch, write_atomically, write_tensors

    if path.suffix in (".ckpt", ".pt", ".pth"):
        write_atomically(path, lambda place: save_with_torch(dict(tensors), place))
    else:
        write_tensors(path, tensors, metadata)


def check_target(target: Path, sources: Mapping[str, Path], option: str = "--save_to") -> None:
    """Refuse a file to write that is one of those that are read, or has another ending than weights files have.

    Args:
        target: The file to write.
        sources: {option: file that is read}
        option: That names the target.

    Raises:
        OptionError: It is.
    """
    if target.suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise OptionError(f"{option} {target}: the name must end in .safetensors, .ckpt, .pt or .pth.")
    for name, source in sources.items():
        if target.exists() and source.exists() and target.samefile(source):
            raise OptionError(f"{option} {target} is also read ({name}). Give another name for the file to write.")
