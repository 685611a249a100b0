"""Where cache files lie: beside the images, or in one folder for each image folder below --cache_dir."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from library.data.cache.entry import CacheEntry
from library.errors import CheckpointError
from library.records import ImageRecord
from library.tensorfile import read_header

TEXT_FOLDER = "text_encoder_cache"

_MAX_NAME = 200  # bytes; file systems allow 255, a temporary name needs some
_MAX_FOLDER = 80
_LATENT_NAME = re.compile(r"(.+)_\d{4,}x\d{4,}_\w+(-\d+)?\.safetensors")
_TEXT_NAME = re.compile(r"[0-9a-f]{24}_\w+_te\.safetensors")
_OLD_TEXT_NAME = re.compile(r".+_te(-\d+)?\.safetensors")  # format 1: one file for each image
_PROMPT_NAME = re.compile(r"prompt_[0-9a-f]{16}_\w+_te\.safetensors")
_FOLDER_NAME = re.compile(r".+-[0-9a-f]{12}")
_OUR_KEYS = {"format", "kind", "family", "encoder"}


def cache_folder(image_folder: Path, cache_dir: Path | None) -> Path:
    """Where the latents of a folder's images lie: there, or below `cache_dir` in a folder of their own.

    It is called like the image folder, with a hash of its absolute path, so that folders of the same name do not share.
    """
    if cache_dir is None:
        return image_folder
    return cache_dir / _folder_name(os.path.abspath(image_folder))


def text_folder(image_folder: Path, cache_dir: Path | None) -> Path:
    """Where the text states of a folder's captions lie."""
    return cache_folder(image_folder, cache_dir) / TEXT_FOLDER


def settings_mark(settings: str) -> str:
    """What the name of a file says of the settings it was made with: runs with different ones, on the same pictures at
    the same time, do not replace each other's files. Nothing where there are none."""
    return f"_{hashlib.sha256(settings.encode()).hexdigest()[:8]}" if settings else ""


def latent_file(image: Path, ending: str, cache_dir: Path | None) -> Path:
    """The cache file of an image: its whole name, extension included, and the ending."""
    name = image.name
    if len(os.fsencode(name)) > _MAX_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{_shortened(name, _MAX_NAME - 20)}~{digest}"
    return cache_folder(image.parent, cache_dir) / f"{name}{ending}.safetensors"


def cache_folders(records: Iterable[ImageRecord], cache_dir: Path | None) -> tuple[Path, ...]:
    """Every folder in which cache files of these pictures may lie, latents and texts, in a stable order."""
    images = sorted({record.path.parent for record in records})
    return tuple(dict.fromkeys(place(folder, cache_dir) for folder in images for place in (cache_folder, text_folder)))


def orphans(entries: Iterable[CacheEntry], folders: Iterable[Path]) -> list[Path]:
    """Cache files that belong to none of the entries, for instance of captions that were edited.

    Only files whose name and whose header both say that they are cache files of this toolkit, and no files of sample
    prompts. A cache of the same pictures for another dataset file (another resolution, say) is among them.

    Args:
        entries: All that are wanted.
        folders: Where to look, sub-folders not included; those that do not exist are passed over.
    """
    wanted = {os.path.abspath(entry.path) for entry in entries if entry.path is not None}
    found = [path for folder in dict.fromkeys(folders) for path in _ours_by_name(folder)]
    unclaimed = [path for path in found if os.path.abspath(path) not in wanted]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        is_ours = list(threads.map(_is_ours, unclaimed))
    return sorted({path for path, ours in zip(unclaimed, is_ours, strict=True) if ours})


def files_of(pictures: Iterable[Path], files: Iterable[Path], cache_dir: Path | None) -> list[Path]:
    """Which of these cache files may belong to these pictures.

    A text file does not say whose caption it holds, so all that lie beside one of the pictures may.
    """
    images = set(pictures)
    latents = {latent_file(image, "", cache_dir).with_suffix("") for image in images}
    texts = {text_folder(folder, cache_dir) for folder in {image.parent for image in images}}

    def may_belong(path: Path) -> bool:
        name = _LATENT_NAME.fullmatch(path.name)
        is_text = path.parent in texts and path.suffix == ".safetensors"
        return is_text or (name is not None and path.with_name(name[1]) in latents)

    return [path for path in files if may_belong(path)]


def other_folders(cache_dir: Path, image_folders: Iterable[Path]) -> list[Path]:
    """Folders below `cache_dir` that belong to none of the image folders, but to those of other datasets, to sample
    prompts, or to folders that are gone or have moved."""
    own = {cache_folder(folder, cache_dir).name for folder in image_folders}
    try:
        found = sorted(path for path in cache_dir.iterdir() if path.is_dir())
    except OSError:
        return []
    return [path for path in found if _FOLDER_NAME.fullmatch(path.name) and path.name not in own]


def _ours_by_name(folder: Path) -> Collection[Path]:
    try:
        names = os.listdir(folder)
    except OSError:
        return ()
    patterns = (_LATENT_NAME, _TEXT_NAME, _OLD_TEXT_NAME)
    return [
        folder / name
        for name in names
        if any(pattern.fullmatch(name) for pattern in patterns) and not _PROMPT_NAME.fullmatch(name)
    ]


def _is_ours(path: Path) -> bool:
    try:
        metadata = read_header(path).metadata
    except CheckpointError:
        return False
    return metadata.keys() >= _OUR_KEYS and metadata["kind"] in ("latents", "text")


@lru_cache(maxsize=4096)
def _folder_name(absolute: str) -> str:
    digest = hashlib.sha256(os.fsencode(os.path.normcase(absolute))).hexdigest()[:12]
    return f"{_shortened(os.path.basename(absolute) or 'root', _MAX_FOLDER)}-{digest}"


def _shortened(name: str, num_bytes: int) -> str:
    return os.fsencode(name)[:num_bytes].decode("utf-8", "ignore")
