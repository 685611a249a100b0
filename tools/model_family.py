"""The model family that a caching tool works for: what the options say, or what the model file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from library.errors import CheckpointError
from library.families.detect import SD3, SD3_DIFFUSERS, file_kind

if TYPE_CHECKING:
    from library.families.base import ModelFamily
    from library.families.sd3.cache_options import Sd3CachingOptions


def choose_family(options: Sd3CachingOptions) -> ModelFamily:
    """SD3, told by `--sd3` or from the headers of the base model.

    Raises:
        CheckpointError: The base model is of another family, or cannot be read.
    """
    from library.checkpoint.weights import open_weights
    from library.families.sd3.family import Sd3Family

    if not options.caching.sd3:
        path = Path(options.model.pretrained_model_name_or_path or "")
        folder = path / "transformer"
        weights = open_weights(folder if folder.is_dir() else path, "--pretrained_model_name_or_path")
        kind = file_kind(weights.shapes())
        if kind not in (SD3, SD3_DIFFUSERS):
            raise CheckpointError(
                f"--pretrained_model_name_or_path: {path} is {kind.title}. Caches are made for SD3 and SD3.5 so far."
            )
    return cast("ModelFamily", Sd3Family.from_options(options))
