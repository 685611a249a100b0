"""From folders and metadata files to `ImageRecord`s: which pictures there are, how large, with which caption and mask.

Reads directory listings, image headers and caption files, never pixels. Everything that is wrong is noticed and
nothing is raised for it: the findings go to the one who decides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.caption_files import read_captions
from library.data.files.header_reading import HeaderReader
from library.data.files.headers import IMAGE_SUFFIXES, why_unreadable
from library.data.files.index import PictureIndex
from library.data.files.listing import Listing, list_pictures
from library.data.files.mask_files import MaskPairs, findings_of_folders, pair_masks
from library.data.files.metadata_file import read_metadata
from library.data.files.picture_notes import SeenPicture, mask_fault, picture_findings, too_large
from library.data.findings import Fault, FaultKind, Findings, joined
from library.data.problems import first_names
from library.records import ImageRecord, Size


@dataclass(frozen=True)
class Scan:
    """What the data holds.

    Attributes:
        records: Pictures that can be used, in the order of the dataset file, then by name.
        findings: All that was noticed on the way.
        files: What each subset is about, by dataset and subset: its pictures, usable or not, and files it left out.
        stated_buckets: The sizes in pixels that metadata files were prepared for, by picture.
    """

    records: tuple[ImageRecord, ...]
    findings: Findings = Findings()
    files: Mapping[tuple[int, int], frozenset[Path]] = field(default_factory=dict)
    stated_buckets: Mapping[Path, Size] = field(default_factory=dict)


def scan_datasets(
    specs: Sequence[DatasetSpec], source: str, *, index: PictureIndex | None = None, num_threads: int | None = None
) -> Scan:
    """Find all pictures of all datasets. Raises nothing for what is wrong with them.

    Args:
        specs: The datasets.
        source: The dataset file, for messages.
        index: Knows the headers of files that have not changed, and learns the others.
        num_threads: Threads that read headers; None chooses.
    """
    scanner = _Scanner(source, index, HeaderReader(index, num_threads), _mask_folders(specs))
    records = [
        record
        for dataset, spec in enumerate(specs)
        for number, subset in enumerate(spec.subsets)
        for record in scanner.read_subset(subset, dataset, number)
    ]
    if index is not None:
        index.save()
    shared, beside = _shared_files(specs, scanner.pictures), findings_of_folders(list(scanner.paired.values()))
    seen = [
        SeenPicture(record.path, scanner.headers.headers[record.path], specs[record.dataset].subsets[record.subset])
        for record in records
    ]
    findings = joined((*scanner.findings, beside, Findings(problems=shared), picture_findings(seen)))
    orphans = {fault.path for fault in beside.left_out}
    for place, (_, pairs) in scanner.paired.items():  # each is counted for the first subset that names its folder
        own = orphans.intersection(pairs.unowned)
        scanner.files[place] |= own
        orphans -= own
    return Scan(tuple(records), findings, scanner.files, scanner.stated_buckets)


@dataclass(frozen=True)
class _Pictures:
    """The pictures of one subset before they are opened.

    Attributes:
        images: In order.
        names: Of `images`, below `root`; they become keys.
        captions: By picture; pictures that are not in it cannot be used.
        root: The folder that gives the keys their first part.
        links: Those that are links, or may be.
        stated_sizes: What a metadata file says of them, in pixels.
    """

    images: Sequence[Path]
    names: Sequence[str]
    captions: Mapping[Path, str]
    root: Path
    links: frozenset[Path]
    stated_sizes: Mapping[Path, Size]


class _Scanner:
    """State of one scan.

    Attributes:
        headers: Of all files, each read once.
        mask_folders: Of all subsets.
        findings: So far.
        pictures: Of every subset so far, by dataset and subset.
        paired: Likewise, of those with masks or conditioning pictures.
        files: Likewise, see `Scan`.
        stated_buckets: Likewise.
    """

    def __init__(
        self, source: str, index: PictureIndex | None, headers: HeaderReader, mask_folders: Collection[Path]
    ) -> None:
        self.source = source
        self.index = index
        self.headers = headers
        self.mask_folders = mask_folders
        self.findings: list[Findings] = []
        self.pictures: dict[tuple[int, int], _Pictures] = {}
        self.paired: dict[tuple[int, int], tuple[SubsetSpec, MaskPairs]] = {}
        self.files: dict[tuple[int, int], frozenset[Path]] = {}
        self.stated_buckets: dict[Path, Size] = {}
        self.key_prefixes: set[str] = set()

    def read_subset(self, subset: SubsetSpec, dataset: int, number: int) -> list[ImageRecord]:
        """The usable pictures of one subset, in order."""
        num_before = len(self.findings)
        pictures = self._from_metadata(subset) if subset.metadata_file is not None else self._from_folder(subset)
        self.pictures[dataset, number] = pictures
        sizes = self._sizes(pictures, subset)
        masks = None
        if subset.conditioning_data_dir is not None:
            pairs = pair_masks(pictures.images, subset)
            self.paired[dataset, number] = (subset, pairs)
            masks = self._masks(pairs, sizes, subset)
        found = [fault.picture for own in self.findings[num_before:] for fault in (*own.faults, *own.left_out)]
        self.files[dataset, number] = frozenset((*pictures.images, *found))
        prefix = self._key_prefix(pictures.root, dataset, number)
        return [
            ImageRecord(
                path=path,
                key=prefix + name,
                caption=pictures.captions[path],
                size=sizes[path],
                repeats=subset.num_repeats,
                dataset=dataset,
                subset=number,
                mask=masks[path] if masks is not None and not subset.is_conditioned else None,
                is_reg=subset.is_reg,
                conditioning=masks[path] if masks is not None and subset.is_conditioned else None,
            )
            for path, name in zip(pictures.images, pictures.names, strict=True)
            if path in sizes and path in pictures.captions and (masks is None or path in masks)
        ]

    def _from_folder(self, subset: SubsetSpec) -> _Pictures:
        assert subset.image_dir is not None
        listing = list_pictures(subset, self.source, mask_folders=self.mask_folders)
        self.findings += [listing.findings, Findings(notes=_linked_twice(listing, subset))]
        if self.index is not None:
            for folder, names in listing.files.items():
                self.index.keep_only(folder, names)
        captions: Mapping[Path, str] = {}
        if listing.images:
            reading = read_captions(subset, listing.images, listing.other_files)
            self.findings.append(reading.findings)
            captions = reading.captions
        return _Pictures(listing.images, listing.names, captions, subset.image_dir, listing.links, {})

    def _from_metadata(self, subset: SubsetSpec) -> _Pictures:
        assert subset.metadata_file is not None
        reading = read_metadata(subset)
        self.findings.append(reading.findings)
        captions = {entry.path: entry.caption for entry in reading.entries}
        stated = {entry.path: entry.size for entry in reading.entries if entry.size is not None}
        self.stated_buckets |= {entry.path: entry.bucket for entry in reading.entries if entry.bucket is not None}
        images = tuple(captions)
        root = _common_root(images, subset.image_dir)
        names = [_name_below(path, root) for path in images]
        return _Pictures(images, names, captions, root, frozenset(images), stated)

    def _sizes(self, pictures: _Pictures, subset: SubsetSpec) -> dict[Path, Size]:
        """Sizes of the pictures that can be used."""
        self._read_headers(pictures.images)
        problems = self.headers.problems
        faults = [Fault(path, problems[path], kind=_kind(path)) for path in pictures.images if path in problems]
        sizes = {}
        for path in pictures.images:
            header = self.headers.headers.get(path)
            fault = header and too_large(path, header, subset)
            if fault is not None:
                faults.append(fault)
            elif header is not None:
                sizes[path] = header.size
        stated = pictures.stated_sizes
        wrong = [path.name for path, size in stated.items() if path in sizes and sizes[path] != size]
        line = f"{subset.metadata_file}: image_size is not the picture's, whose own is used: {len(wrong)}"
        remarks = (f"{line} ({first_names(wrong)})",) if wrong else ()
        self.findings.append(Findings(faults=tuple(faults), remarks=remarks))
        return sizes

    def _masks(self, pairs: MaskPairs, sizes: Mapping[Path, Size], subset: SubsetSpec) -> dict[Path, Path]:
        """The masks (or conditioning pictures) that can be used, by picture; of those pictures whose size is known."""
        self._read_headers(tuple(pairs.masks.values()))
        usable, faults, resized = {}, [], []
        for picture, mask in pairs.masks.items():
            header = self.headers.headers.get(mask)
            if mask in self.headers.problems:
                faults.append(Fault(mask, self.headers.problems[mask], picture, "mask"))
            if header is None or picture not in sizes:
                continue
            fault = mask_fault(mask, header.size, picture, sizes[picture]) or too_large(mask, header, subset)
            if fault is not None:
                faults.append(fault._replace(image=picture, kind="mask"))
                continue
            usable[picture] = mask
            if header.size != sizes[picture]:
                resized.append(mask.name)
        what = f"{subset.beside}s of another size than their picture, brought to it"
        line = f"{what}: {len(resized)} ({first_names(resized)})"
        self.findings += [pairs.findings, Findings(faults=tuple(faults), notes=(line,) if resized else ())]
        return usable

    def _read_headers(self, paths: Sequence[Path]) -> None:
        """Read headers; what the drive or its rights keep from being read is no fault of a picture."""
        self.headers.read(paths)
        unread = self.headers.unread
        self.findings.append(Findings(problems=tuple(f"{path} {unread[path]}" for path in paths if path in unread)))

    def _key_prefix(self, root: Path, dataset: int, number: int) -> str:
        """The folder's own name; for a second folder of this name preceded by its place in the file."""
        name = os.path.basename(os.path.abspath(root))
        if name not in self.key_prefixes and not re.fullmatch(r"\d+\.\d+", name):
            self.key_prefixes.add(name)
            return f"{name}/"
        return f"{dataset}.{number}/{name}/"


def _kind(path: Path) -> FaultKind:
    """Of what a header says: a file of a type that cannot be read at all is not broken for it."""
    suffix = path.suffix.lower()
    return "broken" if suffix in IMAGE_SUFFIXES and why_unreadable(suffix) is None else "unusable"


def _mask_folders(specs: Sequence[DatasetSpec]) -> set[Path]:
    folders = {subset.conditioning_data_dir for spec in specs for subset in spec.subsets}
    return {folder for folder in folders if folder is not None}


def _linked_twice(listing: Listing, subset: SubsetSpec) -> tuple[str, ...]:
    """A line where a folder holds pictures and links to them."""
    if not listing.links:
        return ()
    folders = {folder: os.path.realpath(folder) for folder in listing.files}
    places = {os.path.join(folders[path.parent], path.name) for path in listing.images if path not in listing.links}
    twice = []
    for path in listing.images:
        if path not in listing.links:
            continue
        place = os.path.realpath(path)
        if place in places:
            twice.append(path.name)
        places.add(place)
    line = f"{subset.image_dir}: links to a picture that is used already, trained once more: {len(twice)}"
    return (f"{line} ({first_names(twice)})",) if twice else ()


def _common_root(images: Sequence[Path], image_dir: Path | None) -> Path:
    """`image_dir` where all pictures are below it, else the innermost folder that holds them all."""
    folders = {os.path.abspath(folder) for folder in {path.parent for path in images}}
    if not folders:
        return image_dir or Path(".")
    own = [] if image_dir is None else [os.path.abspath(image_dir)]
    try:
        common = os.path.commonpath([*own, *folders])
    except ValueError:  # on several drives
        return Path(".")
    if image_dir is not None and common == own[0]:
        return image_dir
    return Path(os.path.commonpath(folders))


def _name_below(path: Path, root: Path) -> str:
    """The path from a folder on, with slashes on every system; the whole path where it lies on another drive."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:
        return path.as_posix()


def _shared_files(specs: Sequence[DatasetSpec], pictures: Mapping[tuple[int, int], _Pictures]) -> tuple[str, ...]:
    """A line for each two subsets of one dataset that reach the same files."""
    lines = []
    for dataset, spec in enumerate(specs):
        subsets = range(len(spec.subsets)) if len(spec.subsets) > 1 else ()
        places = [_real_places(pictures[dataset, number]) for number in subsets]
        for first, second in combinations(subsets, 2):
            shared = sorted(places[first][place].name for place in places[first].keys() & places[second].keys())
            if shared:
                both = " and ".join(f"{number + 1} ({_name_of(spec.subsets[number])})" for number in (first, second))
                names = f"{len(shared)} files in common ({first_names(shared)})"
                lines.append(f"dataset {dataset + 1}: subsets {both} have {names}; remove them from one of the two")
    return tuple(lines)


def _real_places(pictures: _Pictures) -> dict[str, Path]:
    """The pictures by where they really are, so that they are recognised under another name."""
    folders: dict[str, str] = {}
    places = {}
    for path in pictures.images:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        place = os.path.realpath(path) if path in pictures.links else os.path.join(folders[folder], name)
        places[place] = path
    return places


def _name_of(subset: SubsetSpec) -> str:
    return str(subset.metadata_file or subset.image_dir)
