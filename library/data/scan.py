"""From folders to `ImageRecord`s: which pictures there are, how large, with which caption.

Reads directory listings, image headers and caption files, never pixels. Everything that is wrong in any folder is
reported at once.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.captions import CaptionRules
from library.data.headers import IMAGE_SUFFIXES, PictureHeader, read_header
from library.data.problems import dataset_error, first_names
from library.data.specs import DatasetSpec, SubsetSpec
from library.errors import DatasetError
from library.log import get_logger
from library.records import ImageRecord

logger = get_logger(__name__)

CAPTION_SUFFIXES = (".txt", ".caption", ".cap", ".captions", ".tags", ".tag", ".text", ".prompt")
UNREADABLE_SUFFIXES = frozenset((".heic", ".heif", ".psd", ".svg", ".tga", ".jp2", ".dng", ".cr2", ".nef", ".arw"))


def scan_datasets(specs: Sequence[DatasetSpec], source: str) -> tuple[ImageRecord, ...]:
    """Find all pictures of all datasets, in the order of the file, then by name.

    Args:
        specs: From the dataset file.
        source: The dataset file, for messages.

    Raises:
        DatasetError: Lists missing and empty folders, broken images, unusable captions.
    """
    scan = _Scan(source)
    records = []
    for dataset, spec in enumerate(specs):
        for number, subset in enumerate(spec.subsets):
            prefix = scan.key_prefix(subset.image_dir, dataset, number)
            for path, header, caption in scan.read_subset(subset):
                records.append(
                    ImageRecord(
                        path=path,
                        key=prefix + path.name,
                        caption=caption,
                        size=header.size,
                        repeats=subset.num_repeats,
                        dataset=dataset,
                        subset=number,
                    )
                )
    if scan.problems:
        raise dataset_error(source, tuple(scan.problems))
    scan.log_warnings()
    return tuple(records)


def read_caption(path: Path, rules: CaptionRules) -> tuple[str, int]:
    """Read a caption file.

    Returns:
        The first line that is not blank, or with wildcards all of them joined by newlines; and how many there are.

    Raises:
        DatasetError: It has no text or is not UTF-8. The message starts with the path and has no full stop.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "UTF-16" if is_utf16 else f"byte {data[error.start]:#04x} at {error.start}"
        raise DatasetError(f"{path} is not UTF-8 ({found}); save it again as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error})") from None
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not lines:
        raise DatasetError(f"{path} has no text; write a caption into it or delete it")
    return ("\n".join(lines) if rules.enable_wildcard else lines[0]), len(lines)


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


@dataclass(frozen=True)
class _Listing:
    """The direct children of a folder."""

    images: tuple[Path, ...]
    other_files: frozenset[str]


class _Scan:
    """State of one scan: faults and warnings so far, and headers already read (a folder may be in two datasets)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: dict[str, None] = {}  # in order, each once
        self.headers: dict[Path, PictureHeader | None] = {}
        self.folder_names: set[str] = set()
        self.without_caption: dict[Path, None] = {}
        self.with_more_lines: dict[Path, None] = {}

    def key_prefix(self, folder: Path, dataset: int, subset: int) -> str:
        """The folder's own name; for a second folder of this name preceded by its place in the file."""
        name = Path(os.path.abspath(folder)).name
        if name not in self.folder_names:
            self.folder_names.add(name)
            return f"{name}/"
        return f"{dataset}.{subset}/{name}/"

    def read_subset(self, subset: SubsetSpec) -> list[tuple[Path, PictureHeader, str]]:
        try:
            listing = _list_folder(subset.image_dir, self.source)
        except DatasetError as error:
            self._add(error)
            return []
        captions = self._read_captions(subset, listing)
        found = []
        for path in listing.images:
            header = self._header(path)
            if header is not None and path in captions:
                found.append((path, header, captions[path]))
        return found

    def log_warnings(self) -> None:
        turned = sum(header is not None and header.orientation > 1 for header in self.headers.values())
        if turned:
            logger.info("pictures turned or mirrored as their EXIF orientation says: %d", turned)
        if self.without_caption:
            logger.warning(
                "pictures without caption file and class_tokens, trained with an empty caption: %d (%s)",
                len(self.without_caption),
                first_names([path.name for path in self.without_caption]),
            )
        if self.with_more_lines:
            logger.warning(
                "caption files with several lines, of which only the first is used (enable_wildcard uses all): %d (%s)",
                len(self.with_more_lines),
                first_names([path.name for path in self.with_more_lines]),
            )

    def _add(self, problem: DatasetError | str) -> None:
        self.problems[str(problem)] = None

    def _header(self, path: Path) -> PictureHeader | None:
        if path not in self.headers:
            try:
                self.headers[path] = read_header(path)
            except DatasetError as error:
                self.headers[path] = None
                self._add(error)
        return self.headers[path]

    def _has_captions_elsewhere(self, subset: SubsetSpec, listing: _Listing) -> bool:
        """Captions under another extension than the one asked for are a mistake, unless class_tokens are given."""
        stems = {path.stem for path in listing.images}
        if any(stem + subset.caption_extension in listing.other_files for stem in stems):
            return False
        suffixes = Counter(
            Path(name).suffix
            for name in listing.other_files
            if Path(name).stem in stems and Path(name).suffix.lower() in CAPTION_SUFFIXES
        )
        if not suffixes:
            return False
        suffix, count = suffixes.most_common(1)[0]
        wanted = subset.caption_extension
        hint = f"{subset.image_dir} has no {wanted} files but {suffix} files beside its pictures ({count})"
        if subset.class_tokens is None:
            self._add(f'{hint}; set caption_extension = "{suffix}"')
            return True
        logger.warning('%s; class_tokens are used instead, unless caption_extension = "%s" is set', hint, suffix)
        return False

    def _read_captions(self, subset: SubsetSpec, listing: _Listing) -> dict[Path, str]:
        """Captions by image; images whose caption is unusable are left out and reported."""
        if self._has_captions_elsewhere(subset, listing):
            return {}
        captions: dict[Path, str] = {}
        owners: dict[str, Path] = {}
        for path in listing.images:
            name = path.stem + subset.caption_extension
            if name not in listing.other_files:
                if subset.class_tokens is None:
                    self.without_caption[path] = None
                captions[path] = subset.class_tokens or ""
                continue
            if name in owners:
                self._add(f"{path} and {owners[name].name} share the caption file {name}; rename one")
                continue
            owners[name] = path
            try:
                captions[path], num_lines = read_caption(path.with_name(name), subset.captions)
            except DatasetError as error:
                self._add(error)
                continue
            if num_lines > 1 and not subset.captions.enable_wildcard:
                self.with_more_lines[path.with_name(name)] = None
        return captions


def _list_folder(folder: Path, source: str) -> _Listing:
    """The direct children of `folder` without those whose name starts with a dot.

    Raises:
        DatasetError: The folder is missing, unreadable, or has no images.
    """
    try:
        with os.scandir(folder) as entries:
            children = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        raise DatasetError(f"image_dir {folder} does not exist{_place_hint(folder, source)}") from None
    except NotADirectoryError:
        raise DatasetError(f"image_dir {folder} is a file; name the folder it is in") from None
    except OSError as error:
        raise DatasetError(f"image_dir {folder} cannot be read ({error.strerror or error})") from None
    files = {name for name, is_folder in children if not is_folder}
    images = {name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    folders = tuple(sorted(name for name, is_folder in children if is_folder))
    unreadable = sorted(name for name in files if Path(name).suffix.lower() in UNREADABLE_SUFFIXES)
    if not images:
        raise DatasetError(f"image_dir {folder} has no images{_content_hint(files, folders)}")
    if unreadable:
        logger.warning(
            "%s: files of types that cannot be read are skipped: %d (%s)",
            folder,
            len(unreadable),
            first_names(unreadable),
        )
    ordered = tuple(folder / name for name in sorted(images, key=natural_order))
    return _Listing(images=ordered, other_files=frozenset(files - images))


def _place_hint(folder: Path, source: str) -> str:
    """Where a missing folder may be instead."""
    if not folder.is_absolute():
        beside = Path(source).parent / folder
        if beside.is_dir():
            return f" in the current folder {Path.cwd()}, where paths start; it is at {beside}"
    for parent in Path(os.path.abspath(folder)).parents:
        if parent.is_dir():
            return f"; the nearest folder that does is {parent}"
    return ""


def _content_hint(files: set[str], folders: tuple[str, ...]) -> str:
    """What a folder without images holds instead."""
    if folders:
        return f", only folders ({first_names(folders)}): name each in a subset of its own"
    if files:
        suffixes = Counter(Path(name).suffix.lower() or "no extension" for name in files)
        listed = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4))
        return f"; its files are {listed}. Name a folder with pictures"
    return ", it is empty; put pictures into it, or remove the subset"
