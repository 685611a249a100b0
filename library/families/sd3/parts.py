"""Finding one network of an SD3 / SD3.5 model in a weights file, from the header alone.

Prefixes are found by a tensor that the network always has, and stripped as a whole, so that every layout in use is
read: bundled, alone, and as other tools write them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from library.checkpoint.weights import Part, WeightFiles, select_part
from library.errors import CheckpointError
from library.families.detect import OPEN_CLIP, SD3, SD3_DIFFUSERS, file_kind, refuse_other_kind
from library.families.prefixes import first_of, names_under, prefix_of
from library.families.sd3.key_map import mmdit_from_diffusers
from library.families.tensor_faults import check_tensors
from library.families.vae_part import PREFIXES as VAE_PREFIXES
from library.families.vae_part import check_vae, find_vae
from library.log import get_logger

if TYPE_CHECKING:
    from library.models.mmdit import MMDiTConfig

DENOISER = "denoiser"
TITLES = {"vae": "VAE", "clip_l": "CLIP-L text encoder", "clip_g": "CLIP-G text encoder", "t5xxl": "T5 text encoder"}

_MODEL_OPTION = "--pretrained_model_name_or_path"
_MMDIT_PREFIX = "model.diffusion_model."
_MMDIT = "joint_blocks.0.context_block.attn.qkv.weight"
_MMDIT_DIFFUSERS = "transformer_blocks.0.attn.add_q_proj.weight"
_MMDIT_MODULES = (
    *("pos_embed", "x_embedder", "t_embedder", "y_embedder"),
    *("context_embedder", "joint_blocks", "final_layer"),
)
_CLIP = "embeddings.token_embedding.weight"
_CLIP_MODULES = ("embeddings.", "encoder.", "final_layer_norm.")
_CLIP_WIDTHS = {768: "CLIP-L", 1024: "the OpenCLIP-H of SD2", 1280: "CLIP-G"}
_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_MODULES = ("shared.", "encoder.")
_T5_OTHER = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
_BUNDLED = (*VAE_PREFIXES[:2], "text_encoders.")

_logger = get_logger(__name__)


def find_denoiser(source: WeightFiles) -> tuple[Part, MMDiTConfig]:
    """The MMDiT and its sizes.

    Raises:
        CheckpointError: The file is another model, or the MMDiT is incomplete or has tensors too many.
    """
    kind = file_kind(source.shapes())
    refuse_other_kind(source.path, kind, (SD3, SD3_DIFFUSERS))
    from library.models.mmdit import config_from_shapes  # after the refusal, which then needs no torch

    part = _select_denoiser(source, is_diffusers=kind == SD3_DIFFUSERS)
    try:
        shapes = _published_shapes(part)
        config = config_from_shapes(shapes)
        _check_complete(shapes, config)
    except CheckpointError as error:
        raise CheckpointError(f"{_MODEL_OPTION}: {source.path}: {error}") from None
    return part, config


def _select_denoiser(source: WeightFiles, *, is_diffusers: bool) -> Part:
    prefix = prefix_of(source, _MMDIT_DIFFUSERS if is_diffusers else _MMDIT, (_MMDIT_PREFIX, "")) or ""
    names = {name: name.removeprefix(prefix) for name in source.tensors if name.startswith(prefix)}
    if not prefix:  # what else lies in the file is told apart by its own names
        names = {name: own for name, own in names.items() if not own.startswith(_BUNDLED)}
        if not is_diffusers:
            names = {name: own for name, own in names.items() if own.split(".")[0] in _MMDIT_MODULES}
    return select_part(DENOISER, source, names, is_diffusers=is_diffusers)


def _published_shapes(part: Part) -> dict[str, tuple[int, ...]]:
    if not part.is_diffusers:
        return part.shapes()
    import torch

    outlines = {name: torch.empty(shape, device="meta") for name, shape in part.shapes().items()}
    return {name: tuple(tensor.shape) for name, tensor in mmdit_from_diffusers(outlines).items()}


def _check_complete(shapes: dict[str, tuple[int, ...]], config: MMDiTConfig) -> None:
    import torch

    from library.models.mmdit import MMDiT

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in MMDiT(config).state_dict().items()}
    check_tensors(shapes, expected, "the MMDiT")


def find_part(kind: str, source: WeightFiles, config: MMDiTConfig, *, is_bundled: bool) -> Part | None:
    """The VAE or a text encoder.

    Args:
        kind: "vae", "clip_l", "clip_g" or "t5xxl".
        source: Where to look.
        config: Of the denoiser, whose sizes the part must fit.
        is_bundled: `source` is the model's own file, which need not have the part.

    Returns:
        None if a bundled part is not there.

    Raises:
        CheckpointError: Not there, of another kind, or of sizes that do not fit.
    """
    part = _FINDERS[kind](kind, source, is_bundled)
    if part is None:
        if is_bundled:
            return None
        other = file_kind(source.shapes())
        advice = f" {other.advice}" if other == OPEN_CLIP else f" Give a {TITLES[kind]} with Hugging Face names."
        raise CheckpointError(f"--{kind}: {source.path} has no {TITLES[kind]}: it is {other.title}.{advice}")
    try:
        _CHECKS[kind](part, config)
    except CheckpointError as error:
        raise CheckpointError(f"{'' if is_bundled else f'--{kind}: '}{source.path} {error}") from None
    return part


def _find_vae(kind: str, source: WeightFiles, is_bundled: bool) -> Part | None:
    return find_vae(source)


def _check_vae(part: Part, config: MMDiTConfig) -> None:
    check_vae(part, config.in_channels, "an SD3 VAE")


def _find_clip(kind: str, source: WeightFiles, is_bundled: bool) -> Part | None:
    prefix = _encoder_prefix(kind, source, _CLIP, is_bundled)
    if prefix is None:
        return None
    root = prefix.removesuffix("text_model.")  # some writers leave this level out
    names = {name: f"text_model.{own}" for name, own in names_under(source, prefix, _CLIP_MODULES).items()}
    if kind == "clip_g":  # SD3 uses the pooled vector of CLIP-L without a projection, whatever a file may have
        names |= names_under(source, root, ("text_projection.",))
    return select_part(kind, source, {name: own for name, own in names.items() if not own.endswith("position_ids")})


def _check_clip(part: Part, config: MMDiTConfig) -> None:
    width, half = clip_width(part), config.pooled_dim / 2
    is_large = part.kind == "clip_g"
    if (width > half) != is_large or width == half:
        name = f" ({_CLIP_WIDTHS[width]})" if width in _CLIP_WIDTHS else ""
        bound = "above" if is_large else "below"
        raise CheckpointError(
            f"has a CLIP of width {width}{name}, but the {TITLES[part.kind]} of this model is {bound} {half:g}. "
            f"Give the right file as --{part.kind}."
        )
    if is_large and "text_projection.weight" not in part.shapes():
        raise CheckpointError("has a CLIP-G without text_projection.weight. Use a complete file.")


def clip_width(part: Part) -> int:
    """Width of a CLIP's states, and of its pooled vector."""
    return part.shapes()[f"text_model.{_CLIP}"][1]


def _find_t5(kind: str, source: WeightFiles, is_bundled: bool) -> Part | None:
    prefix = _encoder_prefix(kind, source, _T5, is_bundled)
    return None if prefix is None else select_part(kind, source, names_under(source, prefix, _T5_MODULES))


def _check_t5(part: Part, config: MMDiTConfig) -> None:
    shapes = part.shapes()
    width = shapes[_T5][1]
    if _T5_OTHER in shapes:
        raise CheckpointError("is a UMT5 encoder. Give the T5 v1.1 encoder, for instance t5xxl_fp16.safetensors.")
    if width != config.context_dim:
        raise CheckpointError(
            f"has a T5 of width {width}, but this model needs {config.context_dim}. Give the encoder of T5-XXL v1.1."
        )


_FINDERS = {"vae": _find_vae, "clip_l": _find_clip, "clip_g": _find_clip, "t5xxl": _find_t5}
_CHECKS = {"vae": _check_vae, "clip_l": _check_clip, "clip_g": _check_clip, "t5xxl": _check_t5}


def report_ignored(model: WeightFiles, parts: Iterable[Part]) -> None:
    """Log how many tensors of the model's file belong to no part that is known."""
    known = {name for part in parts for name in (*part.names, *part.scales.values())}
    ignored = [name for name in model.tensors if name not in known and not name.startswith((_MMDIT_PREFIX, *_BUNDLED))]
    if ignored:
        _logger.info("%s: %d tensors are not used (%s)", model.path, len(ignored), first_of(sorted(ignored)))


def _encoder_prefix(kind: str, source: WeightFiles, mark: str, is_bundled: bool) -> str | None:
    """What stands before `mark`; in a file of several encoders, of the one that is named `kind`."""
    prefixes = sorted(name.removesuffix(mark) for name in source.tensors if name.endswith(mark))
    named = [prefix for prefix in prefixes if f"{kind}." in prefix]
    if is_bundled:
        return next((prefix for prefix in named if prefix.startswith("text_encoders.")), None)
    return next(iter(named or prefixes), None)
