"""How much room caches take, and how much there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from library.data.cache import MASK, CacheEntry

ENTRY_OVERHEAD = 1024  # bytes of a cache file beside its numbers


def latent_size(entries: Iterable[CacheEntry], *, channels: int, cells: int, element_bytes: int) -> tuple[int, int]:
    """Number of files of a latent cache and their bytes.

    Args:
        entries: Of the cache, as `latent_entries` gives them; those with one id share a file.
        channels: Of the latents.
        cells: Pixels of a latent's side.
        element_bytes: Of one number; masks have two.
    """
    sizes = {}
    for entry in entries:
        assert entry.size is not None
        area = (entry.size.width // cells) * (entry.size.height // cells)
        num_bytes = sum(area * (2 if name == MASK else channels * element_bytes) for name in entry.names)
        sizes[entry.id] = num_bytes + ENTRY_OVERHEAD
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
