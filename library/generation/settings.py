"""Options that change pictures and that no prompt knows: they travel in records, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from library.generation.options.scripts import GenerationOptions

MERGING = ("network_merge", "network_merge_n_models", "network_pre_calc")
"""How networks enter the weights: each way rounds differently."""
_OF_ALL = ("tokenizer_dir", "tokenizer_cache_dir", "no_half_vae", "vae_slices", "opt_channels_last")
_OF_SD3 = (
    *("clip_l", "clip_g", "t5xxl", "t5xxl_max_token_length", "apply_lg_attn_mask", "apply_t5_attn_mask"),
    "t5xxl_dtype",
)
_OF_HUB = ("v1", "v2", "sdxl")  # the name of a model on the hub does not tell its family
SETTINGS = (*_OF_ALL, *MERGING, *_OF_SD3, *_OF_HUB)
"""Names of the options. What a picture says of any other is not taken over."""
FILES = (
    *("ckpt", "vae", "tokenizer_dir", "tokenizer_cache_dir", "textual_inversion_embeddings", "network_weights"),
    *("image_path", "mask_path", "clip_l", "clip_g", "t5xxl", "guide_image_path", "control_net_models"),
    *("control_net_lllite_models", "clip_vision_model"),
)
"""Options that name what pictures are drawn from."""
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PICTURES = ("image_path", "mask_path", "guide_image_path")


def settings_of(options: GenerationOptions, family: str) -> dict[str, Any]:
    """{option: value} of those that act."""
    names = (
        *_OF_ALL,
        *(MERGING if options.network.num_files else ()),
        *(_OF_SD3 if family == "sd3" else ()),
        *(_OF_HUB if is_of_hub(Path(str(options.model.ckpt))) else ()),
    )
    values = options.values()
    acting = {name: values[name] for name in names if values[name] not in (None, False)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in acting.items()}


def is_of_hub(path: Path) -> bool:
    """Whether a path that a model was drawn by is the name of one on the hub: owner/name, and not on this machine."""
    return len(path.parts) == 2 and not path.exists() and not path.parent.exists() and path.suffix not in _WEIGHTS


def files_of(options: GenerationOptions) -> list[tuple[str, Path]]:
    """(option, path) of what pictures are drawn from."""
    values = options.values()
    found = []
    for name in FILES:
        value = values[name]
        found += [(name, Path(one)) for one in (value if isinstance(value, tuple) else (value,)) if one is not None]
    return found


def files_beside(options: GenerationOptions, family: str) -> list[Path]:
    """What all pictures of a run are drawn from, beside the model."""
    left_out = {"ckpt", *_PICTURES, *(() if family == "sd3" else _OF_SD3)}
    return [path for name, path in files_of(options) if name not in left_out]
