"""The weights files of one network in a folder, as diffusers and transformers write it: one, or shards with an index.

There may be several forms of the same weights: safetensors or what torch.save wrote (.bin), each plain or in variants
such as .fp16. Safetensors go before .bin, and what has no variant before one that has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from library.errors import CheckpointError

_STEMS = {".safetensors": ("diffusion_pytorch_model", "model"), ".bin": ("diffusion_pytorch_model", "pytorch_model")}
_SHARD = re.compile(r"-\d+-of-\d+\b")


def weight_files(folder: Path, what: str, variant: str | None) -> list[Path]:
    """Files that make one network; several are shards.

    Args:
        folder: Where they lie.
        what: How it is called in an error, for instance "--vae".
        variant: "fp16" wants NAME.fp16.safetensors; None what has no variant, or else the first one there is.

    Raises:
        CheckpointError: There are none, or an index of shards is damaged.
    """
    for ending, stems in _STEMS.items():
        found = _in_form(folder, what, ending, stems, variant)
        if found:
            return found
    form = f".{variant}" if variant else ""
    names = " or ".join(f"{stem}{form}.safetensors" for stem in _STEMS[".safetensors"])
    raise CheckpointError(f"{what}: {folder} is a folder without {names}. Give the .safetensors file itself.")


def _in_form(folder: Path, what: str, ending: str, stems: tuple[str, ...], variant: str | None) -> list[Path]:
    """The files with this ending; none where there are none."""
    for form in [f".{variant}"] if variant else ["", ".*"]:
        if index := next(iter(sorted(folder.glob(f"*{ending}.index{form}.json"))), None):
            return _shards(index, what)
        whole = (file for stem in stems for file in sorted(folder.glob(f"{stem}{form}{ending}")))
        if file := next((file for file in whole if _SHARD.search(file.name) is None), None):
            return [file]
    return []


def _shards(index: Path, what: str) -> list[Path]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / shard for shard in sorted(shards)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{what}: {index} is damaged. Download or copy it again.") from None
