"""A LoRA file of any layout and family, read as modules under the names of kohya files.

What is done with finished LoRAs (merged, resized, converted, extracted, checked) starts here and ends here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import CheckpointError, OptionError
from library.families.lora_layout import LoraPair, fold, kohya_modules
from library.loras.lora_family import DIFFUSERS, FAMILY_TITLES, KOHYA, families_of, layout_of, other_adapter, title_of
from library.loras.lora_spellings import plain_keys, with_alpha_folded, with_cores_folded

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PICKLES = (".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds.

    Attributes:
        path: The file.
        family: "sd" (SD1 and SD2), "sdxl" or "sd3".
        layout: "kohya" or "diffusers", that of the file.
        modules: {name as kohya files of this family have it: factors}
        metadata: Of its header.
        families: Those that it may be for: several where it has modules of text encoders only. Empty is `family`.
    """

    path: Path
    family: str
    layout: str
    modules: Mapping[str, LoraPair]
    metadata: Mapping[str, str] = field(default_factory=dict)
    families: tuple[str, ...] = ()


def read_lora(path: Path, option: str, family: str | None = None) -> LoraFile:
    """Read a file of any layout.

    Args:
        path: A safetensors file, or one of torch.save with nothing in it but tensors.
        option: Names the file in messages, for instance "--models".
        family: As which a file is read that has modules of text encoders only; None is the likeliest.

    Raises:
        CheckpointError: Missing, damaged, of no known family, or something else than LoRA.
    """
    from library.pickled import read_any_header, read_any_tensors

    header = read_any_header(path, option)
    shapes = header.shapes()
    families = families_of(shapes)
    if not families or other_adapter(shapes):
        raise CheckpointError(f"{option}: {path} is {title_of(shapes)}. Give a LoRA of SD1, SD2, SDXL or SD3.")
    chosen, layout = family if family in families else families[0], layout_of(shapes)
    try:
        modules = to_kohya_modules(read_any_tensors(header), chosen, layout, header.metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{option} {path}: {error}") from error
    return LoraFile(path, chosen, layout, modules, dict(header.metadata), families)


def to_kohya_modules(
    tensors: Mapping[str, Tensor], family: str, layout: str, metadata: Mapping[str, str]
) -> dict[str, LoraPair]:
    """{name as kohya files of the family have it: factors} of the content of a file, whichever names it has.

    Raises:
        CheckpointError: Something else than LoRA, a module that the family does not have, or factors that do not fit
            each other.
    """
    names = plain_keys(tensors)
    plain = {names[key]: _computable(tensor) for key, tensor in tensors.items()}
    if layout == DIFFUSERS:
        modules = _from_diffusers(with_alpha_folded(plain), family, metadata)
    else:
        modules = kohya_modules(with_cores_folded(plain))
        if family != "sd3":
            modules = _with_own_names(modules, family)
    for name, pair in modules.items():
        if not (pair.down.is_floating_point() and pair.up.is_floating_point()):
            raise CheckpointError(f"{name} is stored as integers. Give a LoRA in fp32, fp16, bf16 or fp8.")
        if min(pair.down.dim(), pair.up.dim()) < 2 or pair.up.flatten(1).shape[1] != pair.down.shape[0]:
            shapes = f"{list(pair.down.shape)} and {list(pair.up.shape)}"
            raise CheckpointError(f"{name} has factors of shapes {shapes}, which do not fit. The file is damaged.")
    return modules


def _computable(tensor: Tensor) -> Tensor:
    """fp8, which has no arithmetic, as fp16, which holds all its numbers."""
    import torch

    return tensor.to(torch.float16) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _from_diffusers(tensors: Mapping[str, Tensor], family: str, metadata: Mapping[str, str]) -> dict[str, LoraPair]:
    if family == "sd3":
        from library.families.sd3 import lora_format as sd3_format

        return kohya_modules(sd3_format.diffusers_to_kohya(tensors, metadata).tensors)
    from library.families.unet import lora_format as unet_format

    return kohya_modules(unet_format.diffusers_to_kohya(tensors, family, metadata))


def _with_own_names(modules: Mapping[str, LoraPair], family: str) -> dict[str, LoraPair]:
    """Layers of a U-Net have published names or those of diffusers in such files."""
    from library.families.unet.lora_format import own_names

    names = own_names(modules, family)
    if len(set(names.values())) < len(names):
        twice = next(name for name, own in names.items() if own != name and own in modules)
        raise CheckpointError(f"{twice} is there twice, under the names of two layouts. Give a file with one of them.")
    return {names[name]: pair for name, pair in modules.items()}


def refuse_non_finite(lora: LoraFile, option: str) -> None:
    """Refuse a file with numbers that are none.

    Raises:
        CheckpointError: It has NaN or infinite values.
    """
    for name, pair in lora.modules.items():
        if not pair.is_finite:
            raise CheckpointError(f"{option}: {lora.path} has NaN or infinite values in {name}. Use an intact file.")


def check_family(lora: LoraFile, families: Collection[str], option: str, advice: str) -> None:
    """Refuse a file of another family.

    Args:
        lora: The file.
        families: Those that will do.
        option: Names the file.
        advice: What to do, as a sentence.

    Raises:
        CheckpointError: It is of another one.
    """
    found = lora.families or (lora.family,)
    if not set(families) & set(found):
        title, wanted = (" or ".join(FAMILY_TITLES[name] for name in names) for names in (found, families))
        raise CheckpointError(f"{option}: {lora.path} is a LoRA for {title}, not for {wanted}. {advice}")


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
    if layout == DIFFUSERS:
        modules = {name: fold(module, dtype).pair for name, module in modules.items()}
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

    if is_pickle(path):
        write_atomically(path, lambda place: save_with_torch(dict(tensors), place))
    else:
        write_tensors(path, tensors, metadata)


def is_pickle(path: Path) -> bool:
    """Whether the ending of a file to write stands for a pickle."""
    return path.suffix.lower() in _PICKLES


def check_target(target: Path, sources: Mapping[str, Path], option: str = "--save_to") -> None:
    """Refuse a place where a weights file cannot be written, before anything is computed.

    Args:
        target: The file to write.
        sources: {option: file that is read}
        option: That names the target.

    Raises:
        OptionError: It is a folder, has another ending than such files have, or is one of those that are read.
        OutputError: Its folder takes no files.
    """
    from library.writable_folders import check_folders

    if target.is_dir():
        raise OptionError(f"{option} {target} is a folder. Give the name of a file in it.")
    if target.suffix.lower() != ".safetensors" and not is_pickle(target):
        raise OptionError(f"{option} {target}: the name must end in .safetensors, .ckpt, .pt or .pth.")
    for name, source in sources.items():
        if target.exists() and source.exists() and target.samefile(source):
            raise OptionError(f"{option} {target} is also read ({name}). Give another name for the file to write.")
    check_folders([target])
