"""Cache files of sd-scripts: NumPy archives that say nothing of the picture, caption or encoder they were made from.

They lie beside the images and are found by name alone. What an archive holds is looked at without unpickling
anything: names, shapes, types, and whether every number is finite. What its arrays mean is the family's affair.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from library.data.cache.entry import MASK, CacheEntry, fits
from library.data.cache.entry_file import DamagedFile
from library.data.cache.latents import ALPHA
from library.data.cache.tensors import TensorCache
from library.records import ImageRecord, Size

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_FAULTS = (  # of numpy and zipfile on broken archives
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
    *(ValueError, TypeError, KeyError, EOFError, NotImplementedError, MemoryError),
)
WORTH_A_BAR = 200  # files


class NpzReader(Protocol):
    """What a family knows about these archives. Raises DamagedFile where one does not fit."""

    @property
    def text_ending(self) -> str | None:
        """Of the files with text states, after the image's stem; None where there are no such files."""

    def latent_endings(self, image: Size) -> Sequence[str]:
        """Of the files with latents of a picture of this size, after its stem. The first that is there counts."""

    def latents(self, path: Path, names: Sequence[str], *, bucket: Size, image: Size) -> dict[str, Tensor]:
        """Tensors of a latent entry, scaled, by name."""

    def texts(self, path: Path) -> dict[str, Tensor]:
        """Text states of one caption, by name."""


@dataclass(frozen=True)
class NpzLatents:
    """An archive that stands for a latent entry."""

    path: Path
    reader: NpzReader
    names: tuple[str, ...]
    bucket: Size
    image: Size

    def read(self) -> dict[str, Tensor]:
        """Its tensors as ours would be."""
        return self.reader.latents(self.path, self.names, bucket=self.bucket, image=self.image)


@dataclass(frozen=True)
class NpzTexts:
    """An archive that stands for a text entry."""

    path: Path
    reader: NpzReader

    def read(self) -> dict[str, Tensor]:
        """Its tensors as ours would be."""
        return self.reader.texts(self.path)


def find_latents(
    entries: Sequence[CacheEntry], records: Sequence[ImageRecord], missing: Collection[str], *, reader: NpzReader
) -> dict[str, NpzLatents]:
    """The archives that may stand for missing entries, by entry id.

    Args:
        entries: One for each record.
        records: The pictures.
        missing: Ids of the entries that have no file.
        reader: Of the family.
    """
    names = _Archives(records)
    found = {}
    for entry, record in zip(entries, records, strict=True):
        has_other_mask = MASK in entry.names and entry.header["mask"] != ALPHA  # archives hold transparency only
        if entry.id not in missing or entry.path is None or entry.size is None or has_other_mask:
            continue
        paths = (names.beside(record.path, ending) for ending in reader.latent_endings(record.size))
        if (path := next(filter(None, paths), None)) is not None:
            found[entry.id] = NpzLatents(path, reader, entry.names, entry.size, record.size)
    return found


def find_texts(
    ids: Sequence[Mapping[str, str]], records: Sequence[ImageRecord], missing: Collection[str], *, reader: NpzReader
) -> dict[str, NpzTexts]:
    """The archives that may stand for missing entries, by entry id. They hold one text for an image, which they do
    not say; so only images that have one caption in all datasets, beside the empty one, are looked at.

    Args:
        ids: For each record, {caption: entry id}.
        records: The pictures.
        missing: Ids of the entries that have no file.
        reader: Of the family.
    """
    if reader.text_ending is None:
        return {}
    names = _Archives(records)
    captions: defaultdict[Path, set[str]] = defaultdict(set)
    for own, record in zip(ids, records, strict=True):
        captions[record.path] |= set(own) - {""} or set(own)
    found: dict[str, NpzTexts] = {}
    for own, record in zip(ids, records, strict=True):
        if len(captions[record.path]) != 1:
            continue
        (caption,) = captions[record.path]
        path = names.beside(record.path, reader.text_ending)
        if path is not None and own[caption] in missing:
            found.setdefault(own[caption], NpzTexts(path, reader))
    return found


def unusable(
    cache: TensorCache, found: Mapping[str, NpzLatents | NpzTexts], *, is_shown: bool = True
) -> dict[str, str]:
    """{entry id: why} of the archives that cannot stand for their entry. Reads all of them, in threads."""
    from tqdm import tqdm

    def fault(entry_id: str) -> str | None:
        return _fault(cache[entry_id], found[entry_id])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        is_hidden = not is_shown or len(found) < WORTH_A_BAR
        reasons = list(tqdm(threads.map(fault, found), "checking .npz caches", len(found), disable=is_hidden))
    return {entry_id: reason for entry_id, reason in zip(found, reasons, strict=True) if reason is not None}


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, np.ndarray]:
    """Arrays of an archive.

    Args:
        path: The archive.
        shapes: What each wanted array must have; None takes any.

    Raises:
        DamagedFile: It is no archive, an array is missing, has another shape, no numbers, or NaN or infinite ones.
        OSError: It cannot be read.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DamagedFile("it is not an .npz archive")
            names = set(archive.files)
            arrays = {name: archive[name] for name in shapes if name in names}
    except DamagedFile:
        raise
    except _FAULTS:
        raise DamagedFile("it is damaged, or not an .npz archive") from None
    for name, shape in shapes.items():
        _check_array(name, arrays.get(name), shape)
    return arrays


def _check_array(name: str, array: np.ndarray | None, shape: tuple[int, ...] | None) -> None:
    import numpy as np

    if array is None:
        raise DamagedFile(f"it has no {name}")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":  # numpy hands other members over as bytes
        raise DamagedFile(f"{name} is not made of numbers")
    if shape is not None and array.shape != shape:
        raise DamagedFile(f"{name} has the shape {_words(array.shape)}, not {_words(shape)}")
    if not np.isfinite(array).all():
        raise DamagedFile(f"{name} has NaN or infinite values")


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "of one number"


def _fault(entry: CacheEntry, archive: NpzLatents | NpzTexts) -> str | None:
    try:
        tensors = archive.read()
    except OSError as error:
        return error.strerror or str(error)
    except DamagedFile as error:
        return str(error)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return None if fits(entry, shapes) else "its arrays do not fit the picture"


class _Archives:
    """Which files lie beside images. Archives are named by an image's stem, so two images of one stem share theirs:
    such are not used."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        images = {record.path for record in records}
        self._num_images = Counter((path.parent, path.stem) for path in images)
        self._names = {folder: _names_in(folder) for folder in {path.parent for path in images}}

    def beside(self, image: Path, ending: str) -> Path | None:
        name = f"{image.stem}{ending}"
        is_one = self._num_images[image.parent, image.stem] == 1 and name in self._names[image.parent]
        return image.with_name(name) if is_one else None


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(folder) if name.endswith(".npz"))
    except OSError:
        return frozenset()
