"""Caption files: which text each picture of a folder has, and what becomes of pictures without one.

Files are UTF-8, UTF-16 that says so by its first bytes, or what `caption_encoding` declares. Nothing is guessed: what
cannot be read as one of these is a fault.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from library.data.config.specs import SubsetSpec
from library.data.files.caption_hints import NearFiles, captions_elsewhere
from library.data.files.patience import read_all_patiently, why_not_its_fault
from library.data.files.text_files import decode_text, is_text_encoding, likely_encoding, text_lines
from library.data.findings import Fault, FaultKind, Findings
from library.data.problems import first_names

_IS_FOLDER = "is a folder, not a caption file; rename it"
_UTF8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True)
class CaptionReading:
    """The captions of a subset.

    Attributes:
        captions: Of every picture that has one or may go without. With wildcards all lines that are not blank, joined
            by newlines; else the first of them.
        findings: Pictures that are not in `captions` are faults, or a problem says why.
    """

    captions: Mapping[Path, str]
    findings: Findings


def read_captions(
    subset: SubsetSpec, images: Sequence[Path], other_files: Mapping[Path, frozenset[str]]
) -> CaptionReading:
    """Find and read the caption of every picture.

    Args:
        subset: Says which extension captions have, and what becomes of pictures without caption.
        images: The pictures.
        other_files: Names of the other files of every folder that a picture is in.
    """
    problems = policy_problems(subset)
    notes: tuple[str, ...] = ()
    sources = _caption_sources(subset, images, other_files)
    elsewhere = None
    if not any(source.is_listed for source in sources):
        elsewhere = captions_elsewhere(subset, images, other_files)
    if elsewhere is not None:
        hint, extension = elsewhere
        instead = caption_for_missing(subset)
        if instead is None:
            return CaptionReading({}, Findings(problems=(*problems, f'{hint}; set caption_extension = "{extension}"')))
        used = "class_tokens" if instead else "empty captions"
        notes = (f'{hint}; {used} are used instead, unless caption_extension = "{extension}" is set',)
    encoding = subset.caption_encoding
    if encoding is not None and not is_text_encoding(encoding):
        problems += (f'{subset.image_dir}: caption_encoding "{encoding}" is not known; a usual one is "cp1252"',)
        encoding = "latin-1"  # reads everything: the name is what is wrong, not the files
    taken = {source.path for source in sources if source.is_listed}
    near_files = None if elsewhere is not None else NearFiles(subset.caption_extension, taken, other_files)
    tally = _Tally(subset, near_files)
    contents = read_all_patiently(partial(_read_source, encoding), sources)
    for image, source, content in zip(images, sources, contents, strict=True):
        if isinstance(content, OSError):
            reason = f"({content.strerror or content}); {why_not_its_fault(content)}"
            problems += (f"{source.path} cannot be read {reason}",)
        else:
            tally.add(image, source, content)
    return CaptionReading(tally.captions, Findings(problems=problems, notes=notes) + tally.findings())


def caption_for_missing(subset: SubsetSpec) -> str | None:
    """What a picture without caption is trained with; None where that is a fault."""
    if subset.class_tokens is not None:
        return subset.class_tokens
    return "" if subset.missing_caption == "allow" else None


def caption_for_empty(subset: SubsetSpec) -> str | None:
    """What a picture is trained with whose caption has no text; None where that is a fault."""
    if subset.empty_caption == "class_tokens":
        return subset.class_tokens or ""
    return "" if subset.empty_caption == "allow" else None


def empty_advice(subset: SubsetSpec) -> str:
    """What can be done about a caption without text."""
    tokens = '"class_tokens" or ' if subset.class_tokens is not None else ""
    return f'write a caption into it, or set empty_caption = {tokens}"allow"'


def policy_problems(subset: SubsetSpec) -> tuple[str, ...]:
    """What the subset asks for and cannot have."""
    if subset.empty_caption == "class_tokens" and subset.class_tokens is None:
        place = subset.metadata_file or subset.image_dir
        return (f'{place}: empty_caption = "class_tokens" needs class_tokens',)
    return ()


class _Source(NamedTuple):
    """The caption file of a picture: its folder, its name, and whether there is a file of this name."""

    folder: str
    name: str
    is_listed: bool

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


class _Content(NamedTuple):
    """What reading one caption came to: lines, or what is wrong with the file. Neither where there is none."""

    lines: list[str] | None = None
    codec: str = "utf-8"
    fault: str | None = None
    kind: FaultKind = "unusable"


class _Tally:
    """Captions and faults of a subset as its pictures are gone through.

    Args:
        subset: The subset.
        near_files: Finds files that may be captions; None where they have been told already.
    """

    def __init__(self, subset: SubsetSpec, near_files: NearFiles | None) -> None:
        self.subset = subset
        self.near_files = near_files
        self.captions: dict[Path, str] = {}
        self.owners: dict[_Source, Path] = {}
        self.faults: list[Fault] = []
        self.missing: list[str] = []
        self.overlooked: list[str] = []
        self.empty: list[str] = []
        self.with_more_lines: list[str] = []
        self.encoded: dict[str, list[str]] = {}

    def add(self, image: Path, source: _Source, content: _Content) -> None:
        if content.fault is not None:
            self.faults.append(Fault(Path(source.path), content.fault, image, content.kind))
        elif content.lines is None:
            self._add_missing(image, source)
        elif self.owners.setdefault(source, image) is not image:
            self._add_shared(image, source)
        elif not content.lines:
            self._add_empty(image, source)
        else:
            self._add_text(image, source, content)

    def _add_shared(self, image: Path, source: _Source) -> None:
        """Whose caption it is cannot be told, so none of the pictures can be used."""
        owner = self.owners[source]
        pairs = [(owner, image), (image, owner)] if owner in self.captions else [(image, owner)]
        self.captions.pop(owner, None)
        for one, other in pairs:
            problem = f"shares the caption file {source.name} with {other.name}; rename one"
            self.faults.append(Fault(one, problem, kind="shared-caption"))

    def findings(self) -> Findings:
        """All faults, and how many pictures each exception was made for."""
        place = self.subset.image_dir
        has_tokens = self.subset.class_tokens is not None
        instead = "class_tokens are used" if has_tokens else "empty captions are used"
        are_others_captioned = len(self.owners) > 0
        notes = [
            f"{place}: {what}: {len(names)} ({first_names(names)})"
            for what, names in (
                (
                    "files beside pictures without caption that may be theirs but have another ending or letter case, "
                    f"so that {instead}; rename them, or set caption_extension",
                    self.overlooked,
                ),
                (
                    "pictures without caption file and class_tokens, trained with an empty caption",
                    [] if has_tokens else self.missing,
                ),
                (
                    "pictures without caption file, trained with class_tokens although others have one",
                    self.missing if has_tokens and are_others_captioned else [],
                ),
                (f"caption files without text, {self._instead()}", self.empty),
                (
                    "caption files with several lines, of which only the first is used (enable_wildcard uses all)",
                    self.with_more_lines,
                ),
            )
            if names
        ]
        remarks = [
            f"{place}: caption files read as {codec.upper()}: {len(names)} ({first_names(names)})"
            for codec, names in self.encoded.items()
        ]
        return Findings(faults=tuple(self.faults), notes=tuple(notes), remarks=tuple(remarks))

    def _instead(self) -> str:
        uses_tokens = self.subset.empty_caption == "class_tokens"
        return "class_tokens are used instead" if uses_tokens else "trained with an empty caption"

    def _add_missing(self, image: Path, source: _Source) -> None:
        caption = caption_for_missing(self.subset)
        near = self.near_files.of(image) if self.near_files is not None else []
        if caption is None:
            there = f" (there is {first_names(near)})" if near else ""
            advice = 'write one, or set class_tokens or missing_caption = "allow"'
            problem = f"has no caption file {source.name}{there}; {advice}"
            self.faults.append(Fault(image, problem, kind="missing-caption"))
            return
        self.missing.append(image.name)
        self.overlooked += near
        self.captions[image] = caption

    def _add_empty(self, image: Path, source: _Source) -> None:
        caption = caption_for_empty(self.subset)
        if caption is None:
            problem = f"has no text; {empty_advice(self.subset)}"
            self.faults.append(Fault(Path(source.path), problem, image, "empty-caption"))
            return
        self.empty.append(source.name)
        self.captions[image] = caption

    def _add_text(self, image: Path, source: _Source, content: _Content) -> None:
        lines = content.lines or []
        if content.codec not in _UTF8:
            self.encoded.setdefault(content.codec, []).append(source.name)
        if self.subset.captions.enable_wildcard:
            self.captions[image] = "\n".join(lines)
            return
        if len(lines) > 1:
            self.with_more_lines.append(source.name)
        self.captions[image] = lines[0]


def _caption_sources(
    subset: SubsetSpec, images: Sequence[Path], other_files: Mapping[Path, frozenset[str]]
) -> list[_Source]:
    """Where the caption of every picture is looked for."""
    names_in = {os.fspath(folder): names for folder, names in other_files.items()}
    sources = []
    for image in images:
        folder, file = os.path.split(os.fspath(image))
        name = os.path.splitext(file)[0] + subset.caption_extension
        sources.append(_Source(folder, name, name in names_in.get(folder or ".", ())))
    return sources


def _read_source(encoding: str | None, source: _Source) -> _Content | OSError:
    """The caption of one picture, or what the drive has against reading it."""
    if not source.is_listed:
        return _Content(fault=_IS_FOLDER) if os.path.isdir(source.path) else _Content()
    try:
        with open(source.path, "rb", buffering=0) as file:
            data = file.read()
        text, codec = decode_text(data, encoding)
    except IsADirectoryError:
        return _Content(fault=_IS_FOLDER)
    except OSError as error:
        if why_not_its_fault(error) is not None:
            return error
        return _Content(fault=f"cannot be read ({error.strerror or error}); make it readable")
    except ValueError as error:
        example = f'caption_encoding = "{likely_encoding(data)}"'
        declare = "" if encoding else f", or declare its encoding, for instance {example}"
        return _Content(fault=f"{error}; save it again as UTF-8{declare}", kind="encoding")
    return _Content(lines=text_lines(text), codec=codec)
