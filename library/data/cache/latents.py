"""Cache entries of pictures: one for each picture, crop and setting, beside the picture or below --cache_dir."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.data.cache.entry import FLIPPED, FORMAT, MASK, CacheEntry
from library.data.cache.places import latent_file, settings_mark
from library.data.problems import dataset_error
from library.records import CropPlan, ImageRecord

if TYPE_CHECKING:
    from library.data.config.specs import DatasetSpec, SubsetSpec

ALPHA = "alpha"  # what the header says of a mask that is the picture's transparency
NO_MASK = "none"


def latent_entries(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    specs: Sequence[DatasetSpec],
    *,
    family: str,
    identity: str,
    settings: str = "",
    to_disk: bool,
    cache_dir: Path | None = None,
) -> list[CacheEntry]:
    """One entry for each record, with "latents", "latents_flipped" where the subset flips pictures, and "mask" where
    it has masks: [1, h, w] at the size of the latents, float16, not flipped.

    Records that differ in nothing share an entry.

    Args:
        records: The pictures.
        crops: One for each record.
        specs: The datasets that the records' `dataset` counts.
        family: Name of the model family.
        identity: Hash of the VAE's weights, with its precision and the settings that change its output.
        settings: Of `identity`, what is no hash of weights. Files of other settings have other names.
        to_disk: False keeps the latents in memory.
        cache_dir: Where the files lie instead of beside the images.

    Raises:
        DatasetError: Lists images and masks that have vanished since they were scanned.
    """
    places = _Places()
    states = _file_states({path for record in records for path in (record.path, record.mask) if path is not None})
    entries = []
    for record, crop in zip(records, crops, strict=True):
        spec = specs[record.dataset]
        subset = spec.subsets[record.subset]
        header = {
            "format": FORMAT,
            "kind": "latents",
            "family": family,
            "encoder": identity,
            "source": states[record.path],
            "resized": str(crop.resized),
            "crop": f"{crop.left},{crop.top}",
            "bucket": str(crop.bucket),
            "interpolation": spec.interpolation_of(record.subset) or "default",
            "background": ",".join(map(str, subset.background)),
            "flip": str(subset.flip_aug),
            "mask": _mask_state(record, subset, states),
        }
        ending = f"_{crop.bucket.width:04d}x{crop.bucket.height:04d}{settings_mark(settings)}_{family}"
        path = places.claim(latent_file(record.path, ending, cache_dir), header)
        entries.append(
            CacheEntry(
                id=str(path),
                path=path if to_disk else None,
                header=header,
                about=str(record.path),
                content=str(path),
                names=_names(subset),
                size=crop.bucket,
            )
        )
    return entries


class _Places:
    """Gives every different entry a file of its own: those after the first of a name get -2, -3, ..."""

    def __init__(self) -> None:
        self._headers: dict[str, list[Mapping[str, str]]] = {}

    def claim(self, path: Path, header: Mapping[str, str]) -> Path:
        headers = self._headers.setdefault(os.path.normcase(os.path.abspath(path)), [])
        if header not in headers:
            headers.append(header)
        number = headers.index(header) + 1
        return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _names(subset: SubsetSpec) -> tuple[str, ...]:
    flipped = (FLIPPED,) if subset.flip_aug else ()
    return ("latents", *flipped, *((MASK,) if subset.has_masks else ()))


def _mask_state(record: ImageRecord, subset: SubsetSpec, states: Mapping[Path, str]) -> str:
    if record.mask is not None:
        return states[record.mask]
    return ALPHA if subset.alpha_mask else NO_MASK


def _file_states(paths: Iterable[Path]) -> dict[Path, str]:
    """Size and modification time of every file."""
    states, problems = {}, []
    for path in sorted(paths):
        try:
            stat = path.stat()
            states[path] = f"{stat.st_size}:{stat.st_mtime_ns}"
        except OSError as error:
            problems.append(f"{path} cannot be read any more ({error.strerror or error})")
    if problems:
        raise dataset_error("latent cache", problems, "images have vanished")
    return states
