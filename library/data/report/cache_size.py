"""How much room caches take, and how much there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from library.data.config.specs import DatasetSpec
from library.records import CropPlan, ImageRecord

ENTRY_OVERHEAD = 1024  # bytes of a cache file beside its numbers


def latent_size(
    records: Sequence[ImageRecord],
    crops: Sequence[CropPlan],
    specs: Sequence[DatasetSpec],
    *,
    channels: int,
    cells: int,
    element_bytes: int,
) -> tuple[int, int]:
    """Number of latent cache entries and their bytes.

    Args:
        records: The pictures.
        crops: One for each record.
        specs: The datasets.
        channels: Of the latents.
        cells: Pixels of a latent's side.
        element_bytes: Of one number.
    """
    sizes = {}
    for record, crop in zip(records, crops, strict=True):
        subset = specs[record.dataset].subsets[record.subset]
        area = (crop.bucket.width // cells) * (crop.bucket.height // cells)
        num_bytes = area * channels * element_bytes * (2 if subset.flip_aug else 1)
        num_bytes += area * 2 if subset.has_masks else 0
        sizes[record.path, crop, subset.flip_aug, subset.has_masks] = num_bytes + ENTRY_OVERHEAD
    return len(sizes), sum(sizes.values())


def free_space(folder: Path) -> int | None:
    """Free bytes of the disk that a folder is on, or will be; None where that cannot be told."""
    for place in (folder, *Path(os.path.abspath(folder)).parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def free_spaces(folders: Iterable[Path]) -> dict[Path, int]:
    """Free bytes where files will be written: {the first folder of each disk: bytes}."""
    spaces: dict[int, tuple[Path, int]] = {}
    for folder in dict.fromkeys(folders):
        device, space = _device(folder), free_space(folder)
        if device is not None and space is not None:
            spaces.setdefault(device, (folder, space))
    return dict(spaces.values())


def _device(folder: Path) -> int | None:
    for place in (folder, *Path(os.path.abspath(folder)).parents):
        try:
            return place.stat().st_dev
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
