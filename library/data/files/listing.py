"""Which files a folder has: pictures in natural order, the rest by name, and what is left out and why.

Reads directory listings only.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from library.data.config.specs import SubsetSpec
from library.data.files.headers import IMAGE_SUFFIXES, why_unreadable
from library.data.files.missing import place_hint
from library.data.files.patience import read_patiently
from library.data.findings import Fault, Findings
from library.data.problems import first_names

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"))
OTHER_PICTURE_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".psd", ".psb", ".xcf", ".kra", ".svg", ".eps", ".ai", ".ico", ".icns", ".dds"),
        *(".exr", ".hdr", ".pcx", ".jxr", ".wdp", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
        *(".pef", ".srw"),
    )
)

_OWN_FOLDERS = frozenset(("text_encoder_cache",))  # made by the trainer beside the pictures
_NOBODYS_FILES = frozenset(("thumbs.db", "desktop.ini"))  # made by file managers
_FOREIGN_INDEX = "metadata_cache.json"


@dataclass(frozen=True)
class FolderWords:
    """How messages call the place where a folder was named.

    Attributes:
        name: The key or argument.
        recursive: What reads sub-folders too.
        each: What can be done about a folder that has only folders.
        remove: What else can be done about a folder without pictures.
    """

    name: str = "image_dir"
    recursive: str = "set recursive = true"
    each: str = "name each in a subset of its own"
    remove: str = ", or remove the subset"


_OF_SUBSET = FolderWords()


@dataclass(frozen=True)
class Listing:
    """What lies in a subset's folder.

    Attributes:
        images: Pictures of types that can be read, in natural order.
        names: Of the pictures: their paths below the folder, with slashes.
        files: Names of all files, by folder; for every folder that was read.
        other_files: Likewise, without pictures.
        links: Those of `images` that are links to another file.
        findings: A folder that cannot be used is a problem; then there are no images.
    """

    images: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    files: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    other_files: Mapping[Path, frozenset[str]] = field(default_factory=dict)
    links: frozenset[Path] = frozenset()
    findings: Findings = Findings()


@dataclass(frozen=True)
class Folder:
    """The direct children of one folder by name, without those that nobody means."""

    path: Path
    files: tuple[str, ...]
    links: frozenset[str]
    folders: tuple[str, ...]


def list_pictures(subset: SubsetSpec, source: str, *, mask_folders: Collection[Path] = ()) -> Listing:
    """List the folder of a subset, with its sub-folders where the subset says `recursive`.

    Args:
        subset: With an `image_dir`.
        source: The dataset file; relative folders may have been meant to start there.
        mask_folders: Of all subsets. They are passed over: masks are no training pictures.
    """
    assert subset.image_dir is not None
    return list_folder(subset.image_dir, source, is_recursive=subset.recursive, mask_folders=mask_folders)


def list_folder(
    root: Path,
    source: str,
    *,
    is_recursive: bool,
    mask_folders: Collection[Path] = (),
    words: FolderWords = _OF_SUBSET,
) -> Listing:
    """List a folder.

    Args:
        root: The folder.
        source: The file that names it; relative folders may have been meant to start there.
        is_recursive: With its sub-folders.
        mask_folders: Folders that are passed over.
        words: For messages.
    """
    found = list(walk_folders(root, is_recursive=is_recursive, passed=mask_folders))
    folders = [one for one in found if isinstance(one, Folder)]
    problems = [_folder_problem(root, one, source, words) for one in found if isinstance(one, OSError)]
    remarks = [one for one in found if isinstance(one, str)]
    if not folders:
        return Listing(findings=Findings(problems=tuple(problems)))
    images, links, left_out = _pictures_of(folders, root)
    images = sorted(images, key=lambda image: natural_order(image[0]))
    if not images and not problems:
        problems.append(f"{words.name} {root} has no images{_content_hint(folders, is_recursive, words)}")
    elif not is_recursive and folders[0].folders:
        names = first_names(folders[0].folders)
        remarks.append(f"{root}: sub-folders are not read ({words.recursive} to read them): {names}")
    remarks += _foreign_files(folders)
    return Listing(
        images=tuple(path for _, path in images),
        names=tuple(name for name, _ in images),
        files={folder.path: folder.files for folder in folders},
        other_files={folder.path: _other_files(folder) for folder in folders},
        links=frozenset(links),
        findings=Findings(problems=tuple(problems), left_out=tuple(left_out), remarks=tuple(remarks)),
    )


def _foreign_files(folders: Sequence[Folder]) -> list[str]:
    return [
        f"{folder.path / _FOREIGN_INDEX} of another program is not used; sizes and captions come from the files"
        for folder in folders
        if _FOREIGN_INDEX in folder.files
    ]


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts "img2" before "img10"."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def walk_folders(root: Path, *, is_recursive: bool, passed: Collection[Path] = ()) -> Iterator[Folder | OSError | str]:
    """A folder and those below it, through links too: what each holds, what kept one from being read, and remarks.

    Args:
        root: Where to begin.
        is_recursive: Go on to the folders below.
        passed: Folders below the root that are not gone into.
    """
    passed_places = {os.path.realpath(folder) for folder in passed}
    seen: dict[str, Path] = {}
    waiting = [root]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in seen:
            yield f"{path} is {seen[real]} again, through a link; it is read once"
            continue
        seen[real] = path
        try:
            folder = read_patiently(partial(_read_folder, path), path)
        except OSError as error:
            yield error
            continue
        inner = [name for name in folder.folders if os.path.realpath(path / name) not in passed_places]
        yield Folder(path, folder.files, folder.links, tuple(inner))
        if is_recursive:
            waiting += [path / name for name in reversed(inner)]


def _read_folder(path: Path) -> Folder:
    """The direct children, without what starts with a dot.

    Raises:
        OSError: The folder is missing or unreadable.
    """
    files, links, folders = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                if name not in _OWN_FOLDERS:
                    folders.append(name)
            elif name.lower() not in _NOBODYS_FILES:
                files.append(name)
                if entry.is_symlink():
                    links.append(name)
    return Folder(path, tuple(files), frozenset(links), tuple(sorted(folders, key=natural_order)))


def _pictures_of(folders: list[Folder], root: Path) -> tuple[list[tuple[str, Path]], list[Path], list[Fault]]:
    """Pictures that can be read, with their names below `root`; those that are links; and those that cannot be read."""
    images, links, left_out = [], [], []
    for folder in folders:
        prefix = "" if folder.path == root else f"{folder.path.relative_to(root).as_posix()}/"
        for name in folder.files:
            reason = _why_left_out(os.path.splitext(name)[1].lower())
            if reason == "":
                continue
            path = folder.path / name
            if reason is not None:
                left_out.append(Fault(path, reason, kind="type"))
                continue
            images.append((prefix + name, path))
            if name in folder.links:
                links.append(path)
    return images, links, sorted(left_out)


def _why_left_out(suffix: str) -> str | None:
    """Why a picture of a type cannot be read; "" for files that are no pictures, None for pictures that can be."""
    if suffix in VIDEO_SUFFIXES:
        return f"is not used: {suffix} is a video; take single pictures out of it"
    if suffix in OTHER_PICTURE_SUFFIXES:
        return f"is not used: files of type {suffix} cannot be read; convert it to PNG or JPEG"
    return why_unreadable(suffix) if suffix in IMAGE_SUFFIXES else ""


def _other_files(folder: Folder) -> frozenset[str]:
    return frozenset(name for name in folder.files if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES)


def _folder_problem(root: Path, error: OSError, source: str, words: FolderWords) -> str:
    """Why a folder cannot be read."""
    folder = Path(error.filename)
    place = f"{words.name} {root}" if folder == root else f"{words.name} {root}: the sub-folder {folder}"
    if isinstance(error, FileNotFoundError):
        return f"{place} does not exist{place_hint(folder, source)}"
    if isinstance(error, NotADirectoryError):
        return f"{place} is a file; name the folder it is in"
    return f"{place} cannot be read ({error.strerror or error})"


def _content_hint(folders: list[Folder], is_recursive: bool, words: FolderWords) -> str:
    """What a folder without images holds instead."""
    files = [name for folder in folders for name in folder.files]
    inner = folders[0].folders
    if files:
        suffixes = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in files)
        listed = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4))
        unreadable = [why_unreadable(suffix) for suffix in suffixes if suffix in IMAGE_SUFFIXES]
        reasons = "".join(f", which {reason}" for reason in unreadable if reason)
        foreign = [suffix for suffix in suffixes if suffix in OTHER_PICTURE_SUFFIXES]
        advice = "Name a folder with pictures"
        if foreign:
            advice = f"Files of type {', '.join(foreign)} cannot be read: convert them to PNG or JPEG"
        if inner and not is_recursive:
            advice += f", or {words.recursive} to read its sub-folders ({first_names(inner)})"
        return f"; its files are {listed}{reasons}. {advice}"
    if inner and not is_recursive:
        return f", only folders ({first_names(inner)}): {words.each}, or {words.recursive}"
    if inner:
        return f" in it or its sub-folders; put pictures into them{words.remove}"
    return f", it is empty; put pictures into it{words.remove}"
