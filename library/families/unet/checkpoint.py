"""The parts of a U-Net model (SD 1.x, SD 2.x, SDXL): where they lie, whether they fit each other, and reading them.

Everything about files is decided from headers, before any weight is read. Parts are bundled in one file
(`model.diffusion_model.`, `first_stage_model.`, `cond_stage_model.` or `conditioner.embedders.`) or lie in a diffusers
folder. A VAE that the user names wins over one that is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.checkpoint.weights import Part, WeightFiles, open_weights, part_identity, read_weights
from library.errors import CheckpointError
from library.families.detect import denoiser_place, file_kind
from library.families.hub_model import hub_folder, hub_vae, is_hub_name
from library.families.unet.building import build_encoder, build_vae, in_library_names
from library.families.unet.kinds import KINDS, LATENT_CHANNELS, KindFacts
from library.families.unet.marks import TENSORS, file_marks, folder_marks, folder_scheduler
from library.families.unet.part_checks import check_owner, check_widths, fault_of
from library.families.unet.parts import (
    DENOISER,
    MODEL_OPTION,
    TITLES,
    diffusers_shapes,
    find_denoiser,
    find_encoder,
    report_ignored,
)
from library.families.vae_part import check_scale, check_vae, find_vae, vae_names
from library.models.unet_key_map import unet_from_diffusers

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import Tensor
    from transformers import CLIPTextModelWithProjection

    from library.models.unet import UNet

__all__ = ["Part", "UnetFiles", "inspect_files", "inspect_weights", "load_unet", "part_identity", "read_part"]


@dataclass(frozen=True)
class UnetFiles:
    """Every part that was found.

    Attributes:
        kind: "sd1", "sd2" or "sdxl".
        unet: Its names are those of diffusers or published ones, as `is_diffusers` tells.
        vae: Likewise.
        encoders: "clip"; of SDXL "clip_l" and "clip_g". `is_diffusers` means names of Hugging Face, else of open_clip.
        config: Arguments of UNet2DConditionModel.
        marks: What the model says of itself: "v_pred" (predicts velocity) or "epsilon" (noise), "ztsnr" (no signal at
            the last timestep).
        path: The file or folder; of a model that was named as the hub names it, its folder in the cache.
        scheduler: Settings of the scheduler of a folder; empty where there are none.
    """

    kind: str
    unet: Part
    vae: Part
    encoders: Mapping[str, Part]
    config: Mapping[str, Any]
    marks: frozenset[str]
    path: Path = Path()
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> KindFacts:
        """What is special about the kind."""
        return KINDS[self.kind]


def inspect_files(
    pretrained: Path,
    *,
    kinds: Collection[str],
    vae: Path | None = None,
    allow_pickle: bool = False,
    variant: str | None = None,
    input_channels: Collection[int] = (LATENT_CHANNELS,),
) -> UnetFiles:
    """Find the parts of a model. Reads headers only.

    Args:
        pretrained: One file in any layout, a diffusers folder, or the name of one on the hub ("owner/name").
        kinds: Of "sd1", "sd2" and "sdxl" those that are wanted.
        vae: A file, a folder, or the name of one on the hub, which wins over what the model has.
        allow_pickle: Also read .ckpt files that hold more than tensors.
        variant: See `open_weights`.
        input_channels: That the U-Net may take; those for drawing over parts of pictures take 9.

    Raises:
        CheckpointError: A file cannot be used, is of another kind, or does not fit the model; all such files are named.
    """
    pretrained = Path(pretrained)
    if is_hub_name(pretrained):
        pretrained = hub_folder(pretrained, MODEL_OPTION)
    wanted = {DENOISER: denoiser_place(pretrained)}
    is_folder = wanted[DENOISER] != pretrained
    if is_folder:
        folders = (facts.folder for kind in KINDS.values() for facts in kind.encoders.values())
        names = dict.fromkeys(("vae", *folders))
        wanted |= {name: pretrained / name for name in names if (pretrained / name).is_dir()}
    if vae is not None:
        vae = hub_vae(vae, "--vae") if is_hub_name(vae) else Path(vae)
        wanted["vae"] = vae / "vae" if (vae / "vae").is_dir() else vae
    problems: list[str] = []
    opened: dict[str, WeightFiles] = {}
    for name, path in wanted.items():
        try:
            option = "--vae" if name == "vae" and vae is not None else MODEL_OPTION
            opened[name] = open_weights(path, option, allow_pickle=allow_pickle, variant=variant)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    scheduler = folder_scheduler(pretrained) if is_folder else {}
    files = inspect_weights(
        opened.pop(DENOISER),
        opened,
        kinds=kinds,
        marks=folder_marks(scheduler) if is_folder else None,
        is_own_vae=vae is not None,
        input_channels=input_channels,
    )
    return replace(files, path=pretrained, scheduler=scheduler)


def inspect_weights(
    model: WeightFiles,
    separate: Mapping[str, WeightFiles],
    *,
    kinds: Collection[str],
    marks: frozenset[str] | None = None,
    is_own_vae: bool = False,
    input_channels: Collection[int] = (LATENT_CHANNELS,),
) -> UnetFiles:
    """`inspect_files` on headers that are already read.

    Args:
        model: Holds the U-Net, and perhaps other parts.
        separate: {"vae", "text_encoder" or "text_encoder_2": file that holds this part}.
        kinds: See `inspect_files`.
        marks: See `UnetFiles`; None where the model's file says it.
        is_own_vae: The VAE is one that the user named.
        input_channels: See `inspect_files`.

    Raises:
        CheckpointError: See `inspect_files`.
    """
    kind, unet, config = find_denoiser(model, kinds, input_channels)
    problems: dict[str, CheckpointError] = {}
    parts: dict[str, Part] = {}
    known = KINDS[kind].encoders
    for name in ("vae", *known):
        own = separate.get(known[name].folder if name in known else name)
        option = "--vae" if name == "vae" and is_own_vae else MODEL_OPTION
        try:
            parts[name] = _find(name, own or model, kind, is_alone=own is not None)
        except CheckpointError as error:
            problems[name] = type(error)(f"{option}: {(own or model).path} {error}")
    if problems:
        raise CheckpointError("\n".join(_told(problems)))
    encoders = {name: parts[name] for name in known}
    check_widths(encoders, config)
    replaced = vae_names(model) if is_own_vae else ()
    report_ignored(model, [unet, *(part for part in parts.values() if part.source is model)], (*TENSORS, *replaced))
    if marks is None:
        metadata = {key: value for header in model.headers for key, value in header.metadata.items()}
        marks = file_marks(model.tensors, metadata)
    return UnetFiles(kind, unet, parts["vae"], encoders, config, marks)


class _Absent(CheckpointError):
    """A file that has to hold the whole model has no such part."""


def _told(problems: Mapping[str, CheckpointError]) -> list[str]:
    """One for each part. The complete model that is asked for where an encoder is not there has a VAE too."""
    absent = {name for name, error in problems.items() if isinstance(error, _Absent)}
    implied = {"vae"} & absent if len(absent) > 1 else set()
    return [str(error) for name, error in problems.items() if name not in implied]


def _find(name: str, source: WeightFiles, kind: str, *, is_alone: bool) -> Part:
    """What is raised continues the path of the file."""
    part = find_vae(source) if name == "vae" else find_encoder(name, source, is_alone=is_alone)
    if part is None:
        advice = "Give one with --vae." if name == "vae" else "Use a complete model file, or a diffusers folder."
        other = f": it is {file_kind(source.shapes()).title}" if is_alone else " inside"
        raise (CheckpointError if is_alone else _Absent)(f"has no {TITLES[name]}{other}. {advice}")
    if name == "vae":
        check_vae(part, LATENT_CHANNELS, "the VAE of this model")
        check_owner(part, kind)
        check_scale(source, KINDS[kind].vae_scale)
    if fault := fault_of(part, kind):
        raise CheckpointError(f"cannot be used: {fault}")
    return part


def network_layers(files: UnetFiles) -> dict[str, tuple[int, ...]]:
    """{name as LoRA files have it, with dots: shape of its weight} of the U-Net's linear and convolution layers.

    The names are the published ones for SDXL, those of diffusers for SD 1.x and 2.x.
    """
    shapes = diffusers_shapes(files.unet)
    if files.facts.has_published_layers:
        shapes = unet_from_diffusers(shapes)
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) > 1}


def read_part(
    part: Part,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    mmap: bool = True,
) -> dict[str, Tensor]:
    """Read a part: U-Net and VAE under diffusers' names, encoders under Hugging Face's. See `read_weights`."""
    return in_library_names(part, read_weights(part, dtype=dtype, device=device, mmap=mmap))


def empty_unet(files: UnetFiles) -> UNet:
    """The U-Net with shapes and without numbers."""
    import torch

    from library.models.unet import UNet

    with torch.device("meta"):
        return UNet(**files.config)


def load_unet(
    files: UnetFiles,
    dtype: torch.dtype | None,
    device: torch.device | str,
    mmap: bool = True,
    *,
    form: str | None = None,
    rounds_on: torch.device | None = None,
) -> UNet:
    """Build the U-Net with its weights, frozen, in evaluation mode.

    Args:
        files: From `inspect_files`.
        dtype: Of the weights; None is what they are stored in.
        device: Where they go.
        mmap: See `read_weights`.
        form: "fp8", "int8" or "nf4" for the layers of the blocks, which then compute in `dtype`.
        rounds_on: Where their weights are rounded; None is `device`.

    Raises:
        CheckpointError: See `read_weights`.
    """
    model = empty_unet(files)
    if form is None or dtype is None:
        tensors = read_part(files.unet, dtype=dtype, device=device, mmap=mmap)
        model.load_state_dict(tensors, assign=True)
    else:
        from library.families.unet.quantized import fill_quantized

        fill_quantized(model, files.unet, form, dtype, device, rounds_on=rounds_on)
    return model.requires_grad_(False).eval()


def load_vae(
    files: UnetFiles, dtype: torch.dtype | None, device: torch.device | str, mmap: bool = True
) -> AutoencoderKL:
    """The autoencoder with its weights, frozen, in evaluation mode.

    Raises:
        CheckpointError: See `read_weights`.
    """
    vae = build_vae(files.kind, read_part(files.vae, dtype=dtype, device=device, mmap=mmap))
    return vae.requires_grad_(False).eval()


def load_encoder(
    files: UnetFiles, name: str, dtype: torch.dtype | None, device: torch.device | str, mmap: bool = True
) -> CLIPTextModelWithProjection:
    """A text encoder with its weights, frozen, in evaluation mode.

    Of SD 2.x it has the layers that are used: all but the last one of open_clip's.

    Args:
        files: From `inspect_files`.
        name: "clip", "clip_l" or "clip_g".
        dtype: Of the weights; None is what they are stored in.
        device: Where they go.
        mmap: See `read_weights`.

    Raises:
        CheckpointError: See `read_weights`.
    """
    part = files.encoders[name]
    encoder = build_encoder(files.kind, part, read_part(part, dtype=dtype, device=device, mmap=mmap))
    return encoder.requires_grad_(False).eval()
