"""Options of the tools that write metadata files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from library.options.groups import CommonOptions
from library.options.groups.logging import ConsoleOptions
from library.options.spec import OptionGroup, ScriptText, opt
from library.preparing.options.folder import PictureFolderOptions

_ENDINGS = (".json", ".jsonl")
MAY_GO = "Write over an OUT_JSON that is there even where it has entries, keys or texts that the new one will not have."


def overwrite_remark(is_overwrite: bool, source: Path | None, target: Path | None) -> Iterator[str]:
    """What is told of --overwrite where IN_JSON is the file that is written."""
    if is_overwrite and source in (None, target):
        yield "--overwrite has no effect: OUT_JSON is the file that is read."


@dataclass(frozen=True, kw_only=True)
class MergeOptions(OptionGroup):
    """Which metadata file, and which text files go into it."""

    title: ClassVar[str] = "Metadata"

    out_json: Path | None = opt(None, "File to write, .json or .jsonl.", positional=True)
    in_json: Path | None = opt(
        None, "Metadata file whose entries are taken over. Not set means OUT_JSON itself, if it is there."
    )
    caption_extension: str = opt(".caption", "Ending of the text files.")
    caption_encoding: str | None = opt(
        None, "Encoding of text files that are neither UTF-8 nor marked UTF-16, such as cp1252."
    )
    full_path: bool = opt(
        False, "Name pictures by their absolute paths. Otherwise they are named by their paths below TRAIN_DATA_DIR."
    )
    overwrite: bool = opt(False, f"With --in_json: {MAY_GO[0].lower()}{MAY_GO[1:]}")

    @property
    def extension(self) -> str:
        """Ending of the text files, with its dot."""
        extension = self.caption_extension.strip()
        return extension if extension.startswith(".") else f".{extension}"

    def check(self) -> Iterator[str]:
        if self.out_json is not None and self.out_json.suffix.lower() not in _ENDINGS:
            yield f"OUT_JSON must end in .json or .jsonl, got {self.out_json}."
        if len(self.extension) < 2 or set(self.extension) & set("/\\"):
            yield f"--caption_extension needs the ending of files, for instance .txt, got '{self.caption_extension}'."

    def remarks(self) -> Iterator[str]:
        yield from overwrite_remark(self.overwrite, self.in_json, self.out_json)


@dataclass(frozen=True, kw_only=True)
class MergedCaptionOptions(MergeOptions):
    """Captions go into it."""

    caption_extension: str = opt(".caption", "Ending of the caption files.", aliases=("caption_extention",))


@dataclass(frozen=True, kw_only=True)
class MergedTagOptions(MergeOptions):
    """Tags go into it."""

    caption_extension: str = opt(".txt", "Ending of the tag files.")


@dataclass(frozen=True, kw_only=True)
class CleaningFileOptions(OptionGroup):
    """What is read and what is written."""

    title: ClassVar[str] = "Metadata"

    in_json: Path | None = opt(None, "Metadata file to clean, .json or .jsonl.", positional=True)
    out_json: Path | None = opt(None, "File to write, .json or .jsonl. It may be the same as IN_JSON.", positional=True)
    out_json_after_folder: str = opt(
        "",
        "Only for older commands, which name the folder of the pictures first: FOLDER IN_JSON OUT_JSON. Then this is "
        "OUT_JSON; the folder is not used.",
        positional=True,
    )
    overwrite: bool = opt(False, MAY_GO)
    keep_tokens: int = opt(
        1,
        "That many tags at the start of each picture may be trigger words: they are never dropped, and keep their "
        "underscores unless other pictures have them further behind. Ratings before them are dropped.",
        minimum=0,
    )

    @property
    def source(self) -> Path:
        """The file to read."""
        path = self.out_json if self.out_json_after_folder else self.in_json
        assert path is not None
        return path

    @property
    def target(self) -> Path:
        """The file to write."""
        path = Path(self.out_json_after_folder) if self.out_json_after_folder else self.out_json
        assert path is not None
        return path

    def check(self) -> Iterator[str]:
        if self.in_json is None or self.out_json is None:
            return
        if self.out_json_after_folder and self.in_json.suffix.lower() in _ENDINGS:
            yield (
                f"IN_JSON and OUT_JSON are all that is needed, got '{self.out_json_after_folder}' after them. Where "
                "there are three, the first is a folder."
            )
        elif self.target.suffix.lower() not in _ENDINGS:
            yield f"OUT_JSON must end in .json or .jsonl, got {self.target}."

    def remarks(self) -> Iterator[str]:
        if self.out_json_after_folder:
            yield f"The folder {self.in_json} is not needed: IN_JSON and OUT_JSON are enough."
        yield from overwrite_remark(self.overwrite, self.source, self.target)


@dataclass(frozen=True, kw_only=True)
class MetadataLogOptions(ConsoleOptions):
    """What is told on the console or in its file."""

    debug: bool = opt(False, "Tell what becomes of each picture, and the traceback of an error.")


@dataclass(frozen=True, kw_only=True)
class MergingOptions(CommonOptions):
    """What both tools that merge have."""

    logging: MetadataLogOptions = field(default_factory=MetadataLogOptions)
    pictures: PictureFolderOptions = field(default_factory=PictureFolderOptions)
    merge: MergeOptions = field(default_factory=MergeOptions)

    leading: ClassVar[tuple[str, ...]] = ("pictures", "merge")


@dataclass(frozen=True, kw_only=True)
class MergeCaptionsOptions(MergingOptions):
    """Options of finetune/merge_captions_to_metadata.py."""

    merge: MergedCaptionOptions = field(default_factory=MergedCaptionOptions)


@dataclass(frozen=True, kw_only=True)
class MergeTagsOptions(MergingOptions):
    """Options of finetune/merge_dd_tags_to_metadata.py."""

    merge: MergedTagOptions = field(default_factory=MergedTagOptions)


@dataclass(frozen=True, kw_only=True)
class CleanOptions(CommonOptions):
    """Options of finetune/clean_captions_and_tags.py."""

    logging: MetadataLogOptions = field(default_factory=MetadataLogOptions)
    files: CleaningFileOptions = field(default_factory=CleaningFileOptions)

    leading: ClassVar[tuple[str, ...]] = ("files",)


MERGE_CAPTIONS_SCRIPT: ScriptText = {
    "prog": "finetune/merge_captions_to_metadata.py",
    "description": "Put the captions beside the pictures of a folder into a metadata file.",
    "example": "python finetune/merge_captions_to_metadata.py pictures meta.json --caption_extension .txt",
    "ignored": {},
}
MERGE_TAGS_SCRIPT: ScriptText = {
    "prog": "finetune/merge_dd_tags_to_metadata.py",
    "description": "Put the tags beside the pictures of a folder into a metadata file.",
    "example": "python finetune/merge_dd_tags_to_metadata.py pictures meta.json",
    "ignored": {},
}
CLEAN_SCRIPT: ScriptText = {
    "prog": "finetune/clean_captions_and_tags.py",
    "description": "Mend captions and tags of a metadata file: underscores, ratings, tags that contradict or repeat "
    "each other, words that captioners add.",
    "example": "python finetune/clean_captions_and_tags.py meta.json meta_clean.json",
    "ignored": {},
}
