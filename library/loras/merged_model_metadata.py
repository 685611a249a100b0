"""What a model says of itself in the header of its file after LoRAs were merged into it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from library.loras.lora_metadata import SD1, SD2, SDXL

if TYPE_CHECKING:
    import torch

    from library.checkpoint.weights import WeightFiles
    from library.families.detect import FileKind
    from library.loras.merging_inputs import MergeInput

_SPEC = "modelspec."
_STALE = ("sshs_", "_quantization_metadata")  # hashes of the old content, and what is in 8 bits
_ARCHITECTURES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}


def model_metadata(
    source: WeightFiles, kind: FileKind, inputs: Sequence[MergeInput], title: str, dtype: torch.dtype | None
) -> dict[str, str]:
    """What the model said, with another title and what it was merged from.

    Args:
        source: The model.
        kind: What it is.
        inputs: What was merged into it.
        title: Of the new file.
        dtype: Of the new file; None is that of the model.
    """
    said = source.headers[0].metadata
    stale = _STALE if dtype is not None else _STALE[:1]
    kept = {key: value for key, value in said.items() if not key.startswith(stale)}
    names = [source.path.stem, *(f"{given.path.stem} ({given.ratio:g})" for given in inputs if given.ratio)]
    spec = {
        "sai_model_spec": said.get(f"{_SPEC}sai_model_spec", "1.0.1"),
        "architecture": said.get(f"{_SPEC}architecture", _architecture(source, kind)),
        "title": title,
        "merged_from": ", ".join(names),
        "date": datetime.fromtimestamp(int(time.time())).isoformat(),
    }
    return kept | {_SPEC + name: value for name, value in spec.items()}


def _architecture(source: WeightFiles, kind: FileKind) -> str:
    if kind.name in _ARCHITECTURES:
        return _ARCHITECTURES[kind.name]
    if any(".attn2." in name for name in source.tensors):
        return "stable-diffusion-3-5-medium"
    has_norms = any(name.endswith((".ln_q.weight", ".norm_q.weight")) for name in source.tensors)
    return "stable-diffusion-3-5-large" if has_norms else "stable-diffusion-3-medium"
