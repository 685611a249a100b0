"""The parts of an SD3 / SD3.5 model: where they lie, whether they fit each other, and reading them.

Everything about files is decided from headers, before any weight is read. Parts may be bundled in one file
(`model.diffusion_model.`, `first_stage_model.`, `text_encoders.clip_l.transformer.` and so on), lie in files of
their own, or in a diffusers folder. A part that the user names wins over one that is bundled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, WeightFiles, open_weights, part_identity, read_weights, select_part
from library.errors import CheckpointError
from library.families.detect import SD3, SD3_DIFFUSERS, file_kind
from library.families.sd3.encoder_files import find_clip, find_t5, find_vae
from library.families.sd3.key_map import mmdit_from_diffusers
from library.log import get_logger
from library.models.vae_key_map import vae_from_diffusers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.models.mmdit import MMDiT, MMDiTConfig

__all__ = ["Part", "Sd3Files", "inspect_files", "inspect_weights", "load_mmdit", "part_identity", "read_part"]

_PREFIX = "model.diffusion_model."
_MODULES = ("pos_embed", "x_embedder", "t_embedder", "y_embedder", "context_embedder", "joint_blocks", "final_layer")
_MARK = "joint_blocks.0.context_block.attn.qkv.weight"
_DIFFUSERS_MARK = "transformer_blocks.0.attn.add_q_proj.weight"
_POSITION_TABLES = ("pos_embed", "pos_embed.pos_embed")
_OTHER_PREFIXES = ("first_stage_model.", "vae.", "text_encoders.")
_FOLDERS = {"vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
_TITLES = {"vae": "VAE", "clip_l": "CLIP-L text encoder", "clip_g": "CLIP-G text encoder", "t5xxl": "T5 text encoder"}

_logger = get_logger(__name__)


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

    def require(self, kind: str) -> Part:
        """The part "vae", "clip_l", "clip_g" or "t5xxl".

        Raises:
            CheckpointError: Neither the model has it nor was a file given.
        """
        part: Part | None = getattr(self, kind)
        if part is None:
            raise CheckpointError(f"{self.denoiser.path} has no {_TITLES[kind]}. Give one with --{kind}.")
        return part


def inspect_files(
    pretrained: Path,
    *,
    clip_l: Path | None = None,
    clip_g: Path | None = None,
    t5xxl: Path | None = None,
    vae: Path | None = None,
) -> Sd3Files:
    """Find the parts of a model. Reads headers only.

    Args:
        pretrained: One file in any layout, or a diffusers folder.
        clip_l: A file of its own, which wins over a bundled one. So do `clip_g`, `t5xxl` and `vae`.

    Raises:
        CheckpointError: A file cannot be used, is of another kind, or does not fit the model; all such files are named.
    """
    paths = {"vae": vae, "clip_l": clip_l, "clip_g": clip_g, "t5xxl": t5xxl}
    problems: list[str] = []
    model = _collect(problems, lambda: _open_model(Path(pretrained), "--pretrained_model_name_or_path"))
    given = {
        kind: opened
        for kind, path in paths.items()
        if path is not None and (opened := _collect(problems, lambda k=kind, p=path: open_weights(Path(p), f"--{k}")))  # type: ignore[misc]
    }
    if problems or model is None:
        raise CheckpointError("\n".join(problems))
    return inspect_weights(model[0], given, model[1])


def inspect_weights(
    model: WeightFiles, given: Mapping[str, WeightFiles], beside: Mapping[str, WeightFiles] | None = None
) -> Sd3Files:
    """`inspect_files` on headers that are already read.

    Args:
        model: Holds the denoiser, and perhaps other parts.
        given: {"vae", "clip_l", "clip_g" or "t5xxl": file that the user named}.
        beside: The same from the model's own folder.

    Raises:
        CheckpointError: See `inspect_files`.
    """
    denoiser, config = _find_denoiser(model)
    problems: list[str] = []
    found: dict[str, Part | None] = {}
    for kind in _FOLDERS:
        source, is_own = (given[kind], True) if kind in given else ((beside or {}).get(kind, model), False)
        found[kind] = _collect(
            problems, lambda k=kind, s=source, own=is_own: _find(k, s, config, own, s is model)  # type: ignore[misc]
        )
    if not problems:
        _collect(problems, lambda: _check_widths(found["clip_l"], found["clip_g"], config))
    if problems:
        raise CheckpointError("\n".join(problems))
    _report_ignored(model, [denoiser, *(part for part in found.values() if part and part.source is model)])
    variant = ("5-medium" if config.dual_attention else "5-large") if config.qk_norm else "medium"
    return Sd3Files(denoiser=denoiser, config=config, variant=variant, **found)
