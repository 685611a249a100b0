"""The parts of an SD3 / SD3.5 model: where they lie, whether they fit each other, and reading them.

Everything about files is decided from headers, before any weight is read. Parts may be bundled in one file
(`model.diffusion_model.`, `first_stage_model.`, `text_encoders.clip_l.transformer.` and so on), lie in files of
their own, or in a diffusers folder. A part that the user names wins over one that is bundled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, WeightFiles, open_weights, part_identity, read_weights
from library.errors import CheckpointError
from library.families.detect import denoiser_place
from library.families.hub_model import hub_vae, is_hub_name
from library.families.sd3.key_map import mmdit_from_diffusers
from library.families.sd3.parts import DENOISER, TITLES, clip_width, find_denoiser, find_part, report_ignored
from library.models.completeness import missing_of_clip, missing_of_t5, missing_of_vae
from library.models.vae_key_map import vae_from_diffusers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["Part", "Sd3Files", "inspect_files", "inspect_weights", "load_mmdit", "part_identity", "read_part"]

_FOLDERS = {"vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
POSITION_TABLES = ("pos_embed", "pos_embed.pos_embed")


@dataclass(frozen=True)
class Sd3Files:
    """Every part that was found.

    Attributes:
        variant: "medium" (SD3-medium), "5-medium" or "5-large" (SD3.5).
    """

    denoiser: Part
    vae: Part | None
    clip_l: Part | None
    clip_g: Part | None
    t5xxl: Part | None
    config: MMDiTConfig
    variant: str

    def check_complete(self) -> None:
        """Refuse a VAE or text encoders without some of their tensors; the denoiser is checked when it is found.

        Raises:
            CheckpointError: Names all incomplete parts.
        """
        parts = [part for part in (self.vae, self.clip_l, self.clip_g, self.t5xxl) if part is not None]
        if faults := [
            f"{'' if part.source is self.denoiser.source else f'--{part.kind}: '}{part.path}: {fault}"
            for part in parts
            if (fault := _fault(part))
        ]:
            raise CheckpointError("\n".join(faults))


def inspect_files(
    pretrained: Path,
    *,
    clip_l: Path | None = None,
    clip_g: Path | None = None,
    t5xxl: Path | None = None,
    vae: Path | None = None,
    allow_pickle: bool = False,
    variant: str | None = None,
) -> Sd3Files:
    """Find the parts of a model. Reads headers only.

    Args:
        pretrained: One file in any layout, or a diffusers folder.
        clip_l: A file of its own, which wins over a bundled one. So do `clip_g`, `t5xxl` and `vae`.
        allow_pickle: Also read .ckpt files that hold more than tensors.
        variant: See `open_weights`.

    Raises:
        CheckpointError: A file cannot be used, is of another kind, or does not fit the model; all such files are named.
    """
    problems: list[str] = []
    opened: dict[str, WeightFiles] = {}
    pretrained = Path(pretrained)
    wanted = {DENOISER: denoiser_place(pretrained)}
    wanted |= {kind: pretrained / name for kind, name in _FOLDERS.items() if (pretrained / name).is_dir()}
    if vae is not None and is_hub_name(vae):
        vae = hub_vae(vae, "--vae")
    given = {"vae": vae, "clip_l": clip_l, "clip_g": clip_g, "t5xxl": t5xxl}
    wanted |= {kind: Path(path) for kind, path in given.items() if path is not None}
    for kind, path in wanted.items():
        try:
            option = "--pretrained_model_name_or_path" if kind == DENOISER else f"--{kind}"
            opened[kind] = open_weights(path, option, allow_pickle=allow_pickle, variant=variant)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return inspect_weights(opened.pop(DENOISER), opened)


def inspect_weights(model: WeightFiles, separate: Mapping[str, WeightFiles]) -> Sd3Files:
    """`inspect_files` on headers that are already read.

    Args:
        model: Holds the denoiser, and perhaps other parts.
        separate: {"vae", "clip_l", "clip_g" or "t5xxl": file that holds this part}.

    Raises:
        CheckpointError: See `inspect_files`.
    """
    denoiser, config = find_denoiser(model)
    problems: list[str] = []
    parts: dict[str, Part | None] = {}
    for kind in _FOLDERS:
        try:
            parts[kind] = find_part(kind, separate.get(kind, model), config, is_bundled=kind not in separate)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    _check_pooled(parts["clip_l"], parts["clip_g"], config)
    report_ignored(model, [denoiser, *(part for part in parts.values() if part and part.source is model)])
    variant = ("5-medium" if config.dual_attention else "5-large") if config.qk_norm else "medium"
    return Sd3Files(denoiser=denoiser, config=config, variant=variant, **parts)


def _check_pooled(clip_l: Part | None, clip_g: Part | None, config: MMDiTConfig) -> None:
    if clip_l is None or clip_g is None:
        return
    small, large = clip_width(clip_l), clip_width(clip_g)
    if small + large != config.pooled_dim:
        raise CheckpointError(
            f"the CLIPs in {clip_l.path} and {clip_g.path} have widths {small} and {large}, "
            f"which must add up to {config.pooled_dim}. Give the files that belong to the model."
        )


def _fault(part: Part) -> str | None:
    """What is wrong with the names of a part; None where all are there."""
    try:
        names = _missing(part)
    except CheckpointError as error:
        return str(error)
    if not names:
        return None
    listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    title = f"the {TITLES[part.kind]} is incomplete: {len(names)} tensors are missing"
    return f"{title} ({listed}). Download the file again, or use another."


def _missing(part: Part) -> list[str]:
    if part.kind == "vae":
        return missing_of_vae(_published_vae(part))
    return missing_of_t5(part.shapes()) if part.kind == "t5xxl" else missing_of_clip(part.shapes())


def _published_vae(part: Part) -> Mapping[str, tuple[int, ...]]:
    if not part.is_diffusers:
        return part.shapes()
    import torch

    outlines = {name: torch.empty(shape, device="meta") for name, shape in part.shapes().items()}
    return {name: tuple(tensor.shape) for name, tensor in vae_from_diffusers(outlines).items()}


def read_part(
    part: Part,
    *,
    dtype: torch.dtype | None = None,
    as_stored: Collection[str] = (),
    device: torch.device | str = "cpu",
    mmap: bool = True,
) -> dict[str, Tensor]:
    """Read a part under its published names, whatever the layout of the file. See `read_weights`."""
    tensors = read_weights(part, dtype=dtype, as_stored=as_stored, device=device, mmap=mmap)
    if not part.is_diffusers:
        return tensors
    return vae_from_diffusers(tensors) if part.kind == "vae" else mmdit_from_diffusers(tensors)


def empty_mmdit(files: Sd3Files) -> MMDiT:
    """The denoiser with shapes and without numbers."""
    import torch

    from library.models.mmdit import MMDiT

    with torch.device("meta"):
        return MMDiT(files.config)


def load_mmdit(
    files: Sd3Files,
    dtype: torch.dtype | None,
    device: torch.device | str,
    mmap: bool = True,
    *,
    form: str | None = None,
    rounds_on: torch.device | None = None,
) -> MMDiT:
    """Build the denoiser with its weights, frozen.

    Args:
        files: From `inspect_files`.
        dtype: Of the weights; None is what they are stored in. The table of positions keeps its stored precision, so
            that it can be saved unchanged.
        device: Where they go, but for the table of positions, of which a device needs windows only.
        mmap: See `read_weights`.
        form: "fp8", "int8" or "nf4" for the linear layers of the blocks, which then compute in `dtype`.
        rounds_on: Where their weights are rounded; None is `device`.

    Raises:
        CheckpointError: See `read_weights`.
    """
    model = empty_mmdit(files)
    if form is None or dtype is None:
        tensors = read_part(files.denoiser, dtype=dtype, as_stored=POSITION_TABLES, device=device, mmap=mmap)
        model.load_state_dict(tensors, assign=True)
    else:
        from library.families.sd3.quantized_mmdit import fill_quantized

        fill_quantized(model, files.denoiser, form, dtype, device, rounds_on=rounds_on)
    return model.requires_grad_(False).eval()
