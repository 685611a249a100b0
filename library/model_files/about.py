"""What the header of a written model says: what its source said, or what is known of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from library.checkpoint.metadata import modelspec
from library.checkpoint.tensor_stream import HASH_KEY
from library.families.unet.marks import ZERO_TERMINAL, header_marks
from library.records import Size

_ARCHITECTURE = "modelspec.architecture"
_VELOCITY, _ZERO = "ss_v_parameterization", "ss_zero_terminal_snr"
_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}  # kinds of which there is one


def about_model(
    source: Mapping[str, str],
    target: Path,
    *,
    architecture: str,
    prediction_type: str | None,
    resolution: Size,
    marks: Collection[str] = (),
) -> dict[str, str]:
    """The metadata of a model that is the same as its source; ModelSpec is added where the source has none.

    What is known of what the model predicts goes before what the source says.

    Args:
        source: Metadata of the source.
        target: The file to write, whose name is the title.
        architecture: As ModelSpec calls it.
        prediction_type: "epsilon", "v" or "flow"; None where it is not known.
        resolution: That the model was trained at.
        marks: What a U-Net model was trained for, see `UnetFiles`.
    """
    own = header_marks(marks if prediction_type is not None else frozenset(marks) & {ZERO_TERMINAL})
    own |= {_VELOCITY: str(prediction_type == "v")} if _VELOCITY in source and prediction_type is not None else {}
    if _ARCHITECTURE in source:
        return {**source, **own, HASH_KEY: ""}
    known = modelspec(
        architecture,
        options={"output_name": target.stem},
        resolution=resolution,
        prediction_type=prediction_type,
        saved_at=time.time(),
    )
    return {**known, **source, **own, HASH_KEY: ""}


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
    named = ("format", _VELOCITY, _ZERO)
    kept = {key: value for key, value in first.items() if key.startswith("modelspec.") or key in named}
    own = {
        "modelspec.title": target.stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.merged_from": ", ".join(source.stem for source in sources),
        HASH_KEY: "",
    }
    return {**known, **kept, **own}
