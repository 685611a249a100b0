"""Masks and conditioning pictures in a folder of their own: which one belongs to which picture."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.data.config.specs import SubsetSpec
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.files.listing import walk_folders
from library.data.findings import Fault, Findings
from library.data.problems import first_names


@dataclass(frozen=True)
class MaskPairs:
    """The mask of every picture that has exactly one; pictures without are faults, or a problem says why.

    Attributes:
        masks: By picture.
        findings: What was noticed.
        owners: The picture of every file that belongs to one, also where it has several.
        unowned: The other files of the folder, by name.
    """

    masks: Mapping[Path, Path]
    findings: Findings
    owners: Mapping[Path, Path] = field(default_factory=dict)
    unowned: tuple[Path, ...] = ()


def pair_masks(images: Sequence[Path], subset: SubsetSpec) -> MaskPairs:
    """Find the mask of every picture: the picture of the same stem in `conditioning_data_dir`.

    A picture of a sub-folder of image_dir has its mask in the sub-folder of the same name. For a picture elsewhere,
    which a metadata file names, the longest end of its path that is there counts: `one/a.png`, else `a.png`. Letter
    case decides only between masks that differ in nothing else.

    Args:
        images: The pictures of the subset.
        subset: With a `conditioning_data_dir`.
    """
    folder = subset.conditioning_data_dir
    assert folder is not None
    found, remarks, problem = _list_masks(folder, subset)
    if problem is not None:
        return MaskPairs({}, Findings(problems=(problem,)))
    by_name, by_folded_name = defaultdict(list), defaultdict(list)
    for name, path in found:
        by_name[name].append(path)
        by_folded_name[name.casefold()].append(path)
    masks: dict[Path, Path] = {}
    faults: list[Fault] = []
    owners: dict[Path, Path] = {}
    root = None if subset.image_dir is None else os.path.join(os.path.abspath(subset.image_dir), "")
    for image in images:
        found_as = (by_name.get(name) or by_folded_name.get(name.casefold()) for name in _names_of(image, root))
        candidates = next(filter(None, found_as), [])
        fault = _fault_of(image, candidates, owners, subset)
        owners.update((path, image) for path in candidates if path not in owners)
        if fault is not None:
            faults.append(fault)
        else:
            masks[image] = candidates[0]
    unowned = tuple(path for _, path in found if path not in owners)
    return MaskPairs(masks, Findings(faults=tuple(faults), remarks=remarks), owners, unowned)


def findings_of_folders(paired: Sequence[tuple[SubsetSpec, MaskPairs]]) -> Findings:
    """What only all subsets together tell: files that are of no picture, and those that are of several.

    Args:
        paired: Every subset with a `conditioning_data_dir`, and what `pair_masks` gave for it.
    """
    owners: dict[Path, dict[Path, SubsetSpec]] = defaultdict(dict)
    sources: dict[Path, dict[str, None]] = defaultdict(dict)
    for subset, pairs in paired:
        for path, picture in pairs.owners.items():
            owners[path][Path(os.path.abspath(picture))] = subset
        for path in (*pairs.owners, *pairs.unowned):
            sources[path][str(subset.metadata_file or subset.image_dir)] = None
    unused = {path: subset for subset, pairs in paired for path in pairs.unowned if path not in owners}
    left_out = [
        Fault(path, f"is the {subset.beside} of no picture of {' or '.join(sources[path])}", kind="orphan-mask")
        for path, subset in unused.items()
    ]
    return Findings(left_out=tuple(left_out), notes=tuple(_shared_by(owners)))


def _shared_by(owners: Mapping[Path, Mapping[Path, SubsetSpec]]) -> Iterator[str]:
    """A line for each folder whose files pictures of several subsets share."""
    shared: dict[Path, list[Path]] = defaultdict(list)
    named: dict[Path, SubsetSpec] = {}
    for path, pictures in owners.items():
        if len(pictures) > 1:
            subset = next(iter(pictures.values()))
            assert subset.conditioning_data_dir is not None
            shared[subset.conditioning_data_dir].append(path)
            named[subset.conditioning_data_dir] = subset
    for folder, paths in shared.items():
        first = [picture.as_posix() for picture in owners[paths[0]]]
        yield (
            f"{folder}: {named[folder].beside}s that pictures of several folders share because their names are equal: "
            f"{len(paths)} ({first_names([path.name for path in paths])}, of {' and '.join(first[:2])}); if they are "
            "not meant for all of these, give each folder one of its own"
        )


def _fault_of(image: Path, candidates: Sequence[Path], owners: Mapping[Path, Path], subset: SubsetSpec) -> Fault | None:
    folder, beside = subset.conditioning_data_dir, subset.beside
    owner = owners.get(candidates[0]) if candidates else None
    if not candidates:
        problem = f"has no {beside} in {folder}; add a picture {image.stem}.png there, or remove this one"
    elif len(candidates) > 1:
        problem = f"has several {beside}s in {folder}: {', '.join(path.name for path in candidates)}; keep one"
    elif owner is not None:
        problem = f"and {owner.name} share the {beside} {candidates[0]}; rename one"
    else:
        return None
    return Fault(image, problem, kind="mask")


def _names_of(image: Path, root: str | None) -> list[str]:
    """What the picture's mask may be called below the folder of masks, without extension; the best one first.

    Args:
        image: The picture.
        root: image_dir, absolute, with a separator at its end.
    """
    place = os.path.splitext(os.path.abspath(image))[0]
    if root is not None and place.startswith(root):
        return [place[len(root) :].replace(os.sep, "/")]
    parts = Path(place).parts[1:]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _list_masks(folder: Path, subset: SubsetSpec) -> tuple[list[tuple[str, Path]], tuple[str, ...], str | None]:
    """(place below the folder without extension, path) of every picture in it, by name; remarks; why there are none."""
    place = f"conditioning_data_dir {folder}"
    if subset.image_dir is not None and os.path.realpath(folder) == os.path.realpath(subset.image_dir):
        return [], (), f"{place} is image_dir itself; name the folder with the {subset.beside}s"
    masks: list[tuple[str, Path]] = []
    remarks: list[str] = []
    for found in walk_folders(folder, is_recursive=subset.recursive or subset.metadata_file is not None):
        if isinstance(found, OSError):
            return [], (), _folder_problem(place, folder, found, subset.beside)
        if isinstance(found, str):
            remarks.append(found)
            continue
        below = "" if found.path == folder else found.path.relative_to(folder).as_posix() + "/"
        pictures = [name for name in sorted(found.files) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        masks += [(below + os.path.splitext(name)[0], found.path / name) for name in pictures]
    if not masks:
        return [], (), f"{place} has no pictures; put a {subset.beside} for every picture there"
    return masks, tuple(remarks), None


def _folder_problem(place: str, folder: Path, error: OSError, beside: str) -> str:
    """Why the folder of masks, or one in it, cannot be read. `beside`: what its pictures are called."""
    if Path(error.filename) != folder:
        return f"{place}: the sub-folder {error.filename} cannot be read ({error.strerror or error}); make it readable"
    if isinstance(error, FileNotFoundError):
        return f"{place} does not exist; name the folder with the {beside}s"
    if isinstance(error, NotADirectoryError):
        return f"{place} is a file; name the folder it is in"
    return f"{place} cannot be read ({error.strerror or error}); make it readable"
