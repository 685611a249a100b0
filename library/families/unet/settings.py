"""The settings of a family around a U-Net, from the options that all its scripts have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from library.families.unet.objective import noise_settings

_CHUNK = 75  # tokens of a caption that go into one row of 77


def unet_settings(options: Any) -> dict[str, Any]:
    """Arguments of `UnetFamily`, from the options of a script."""
    model = options.model
    return {
        "pretrained": Path(model.pretrained_model_name_or_path or ""),
        "vae": _path(model.vae),
        "tokenizer_dir": _path(model.tokenizer_dir),
        "tokenizer_cache_dir": _path(model.tokenizer_cache_dir),
        "mmap": not model.disable_mmap_load_safetensors,
        "allow_pickle": model.allow_pickle,
        "weights_format": options.memory.weights_format,
        "num_chunks": (model.max_token_length or _CHUNK) // _CHUNK,
        "is_weighted": options.data.weighted_captions,
        "noise": noise_settings(options),
    }


def _path(value: str | Path | None) -> Path | None:
    return Path(value) if value else None
