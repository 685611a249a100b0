"""Masks in a folder of their own: which one belongs to which picture."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.config.specs import SubsetSpec
from library.data.files.headers import IMAGE_SUFFIXES
from library.data.findings import Fault, Findings


@dataclass(frozen=True)
class MaskPairs:
    """The mask of every picture that has exactly one; pictures without are faults, or a problem says why."""

    masks: Mapping[Path, Path]
    findings: Findings


def pair_masks(images: Sequence[Path], subset: SubsetSpec) -> MaskPairs:
    """Find the mask of every picture: the picture of the same stem in `conditioning_data_dir`.

    A picture of a sub-folder of image_dir (`recursive`) has its mask in the sub-folder of the same name. Letter case
    decides only between masks that differ in nothing else.

    Args:
        images: The pictures of the subset.
        subset: With a `conditioning_data_dir`.
    """
    folder = subset.conditioning_data_dir
    assert folder is not None
    found, problem = _list_masks(folder, subset)
    if problem is not None:
        return MaskPairs({}, Findings(problems=(problem,)))
    by_name, by_folded_name = defaultdict(list), defaultdict(list)
    for name, path in found:
        by_name[name].append(path)
        by_folded_name[name.casefold()].append(path)
    masks: dict[Path, Path] = {}
    faults: list[Fault] = []
    owners: dict[Path, Path] = {}
    for image in images:
        name = _name_of(image, subset)
        candidates = by_name.get(name) or by_folded_name.get(name.casefold(), [])
        fault = _fault_of(image, candidates, owners, folder)
        owners.update((path, image) for path in candidates if path not in owners)
        if fault is not None:
            faults.append(fault)
        else:
            masks[image] = candidates[0]
    unused = [Fault(path, _of_no_picture(subset)) for _, path in found if path not in owners]
    return MaskPairs(masks, Findings(faults=tuple(faults), left_out=tuple(unused)))


def _fault_of(image: Path, candidates: Sequence[Path], owners: Mapping[Path, Path], folder: Path) -> Fault | None:
    if not candidates:
        return Fault(image, f"has no mask in {folder}; add a picture {image.stem}.png there, or remove this one")
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        return Fault(image, f"has several masks in {folder}: {names}; keep one")
    owner = owners.get(candidates[0])
    if owner is not None:
        return Fault(image, f"and {owner.name} share the mask {candidates[0]}; rename one")
    return None


def _of_no_picture(subset: SubsetSpec) -> str:
    return f"is the mask of no picture of {subset.metadata_file or subset.image_dir}"


def _name_of(image: Path, subset: SubsetSpec) -> str:
    """The picture's place below image_dir, without extension; only its stem where it lies elsewhere."""
    place = os.path.splitext(image)[0]
    if subset.image_dir == Path(".") and not image.is_absolute():
        return place.replace(os.sep, "/")
    root = "" if subset.image_dir is None else os.path.join(subset.image_dir, "")
    is_below = root and place.startswith(root)
    return place[len(root) :].replace(os.sep, "/") if is_below else os.path.basename(place)


def _list_masks(folder: Path, subset: SubsetSpec) -> tuple[list[tuple[str, Path]], str | None]:
    """(place below the folder without extension, path) of every picture in it, by name; or why there are none."""
    place = f"conditioning_data_dir {folder}"
    if subset.image_dir is not None and os.path.realpath(folder) == os.path.realpath(subset.image_dir):
        return [], f"{place} is image_dir itself; name the folder with the masks"
    masks: list[tuple[str, Path]] = []
    try:
        for parent in _folders(folder, subset):
            below = "" if parent == folder else parent.relative_to(folder).as_posix() + "/"
            pictures = [name for name in sorted(os.listdir(parent)) if _is_picture(name)]
            masks += [(below + os.path.splitext(name)[0], parent / name) for name in pictures]
    except FileNotFoundError:
        return [], f"{place} does not exist; name the folder with the masks"
    except NotADirectoryError:
        return [], f"{place} is a file; name the folder it is in"
    except OSError as error:
        return [], f"{place} cannot be read ({error.strerror or error}); make it readable"
    if not masks:
        return [], f"{place} has no pictures; put a mask for every picture there"
    return masks, None


def _folders(folder: Path, subset: SubsetSpec) -> list[Path]:
    """The folder, and the sub-folders that its pictures may be in."""
    if not subset.recursive and subset.metadata_file is None:
        return [folder]
    folders = []
    for parent, children, _ in os.walk(folder):
        children[:] = sorted(name for name in children if not name.startswith("."))
        folders.append(Path(parent))
    return folders or [folder]


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
