"""What the header of a written model says: what its source said, or what is known of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from library.checkpoint.metadata import modelspec
from library.checkpoint.tensor_stream import HASH_KEY
from library.records import Size

_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}  # kinds of which there is one


def about_model(
    source: Mapping[str, str], target: Path, *, architecture: str, prediction_type: str, resolution: Size
) -> dict[str, str]:
    """The metadata of a model that is the same as its source; ModelSpec is added where the source has none.

    Args:
        source: Metadata of the source.
        target: The file to write, whose name is the title.
        architecture: As ModelSpec calls it.
        prediction_type: "epsilon", "v" or "flow".
        resolution: That the model was trained at.
    """
    if _ARCHITECTURE in source:
        return {**source, HASH_KEY: ""}
    known = modelspec(
        architecture,
        options={"output_name": target.stem},
        resolution=resolution,
        prediction_type=prediction_type,
        saved_at=time.time(),
    )
    return {**known, **source, HASH_KEY: ""}


def about_merged(first: Mapping[str, str], kind: str, sources: Sequence[Path], target: Path) -> dict[str, str]:
    """The metadata of a merged model: ModelSpec of the first one, under a title of its own, and what was merged.

    Args:
        first: Metadata of the first model.
        kind: Of all of them, as `file_kind` names it.
        sources: Their files.
        target: The file to write, whose name is the title.
    """
    known = {"modelspec.sai_model_spec": "1.0.1"}
    known |= {_ARCHITECTURE: _ARCHITECTURES[kind]} if kind in _ARCHITECTURES else {}
    kept = {key: value for key, value in first.items() if key.startswith("modelspec.") or key == "format"}
    own = {
        "modelspec.title": target.stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.merged_from": ", ".join(source.stem for source in sources),
        HASH_KEY: "",
    }
    return {**known, **kept, **own}
